"""Which Dockerfile an image is built from, and which of its stages runs.

What may be changed here: the images that are known to start a program of their own, and how names
are compared.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gracefulworker.tools.manifests import launch
from gracefulworker.tools.manifests.dockerfile import Dockerfile, Image, shell_of
from gracefulworker.tools.manifests.scripts import Scripts
from gracefulworker.tools.manifests.units import Unit

#: Images that start a program of their own, whatever else is in the files; by the last part of the
#: name. Those of the Docker Hub's official ones, and of sidecars, that stand beside web services.
OWN_START = frozenset(
    {
        *("adminer", "alertmanager", "alpine", "busybox", "caddy", "cadvisor", "cassandra"),
        *("certbot", "clickhouse", "clickhouse-server", "cloud-sql-proxy", "cloudflared"),
        *("consul", "couchdb", "debian", "dynamodb-local", "elasticsearch", "envoy", "etcd"),
        *("flower", "fluent-bit", "fluentd", "gce-proxy", "git-sync", "grafana", "haproxy"),
        *("httpd", "influxdb", "jaeger", "kafka", "keycloak", "kibana", "kong", "localstack"),
        *("logstash", "loki", "mailhog", "mailpit", "mariadb", "meilisearch", "memcached"),
        *("memcached-exporter", "minio", "mongo", "mongo-express", "mongodb", "mosquitto"),
        *("mssql-server", "mysql", "mysqld-exporter", "nats", "neo4j", "nginx"),
        *("nginx-prometheus-exporter", "nginx-unprivileged", "node-exporter", "oauth2-proxy"),
        *("openresty", "opensearch", "opentelemetry-collector", "opentelemetry-collector-contrib"),
        *("otel-collector", "pause", "percona", "pgbackrest", "pgbouncer", "pgvector"),
        *("phpmyadmin", "portainer", "postgis", "postgres", "postgres-exporter", "postgresql"),
        *("prometheus", "promtail", "proxyv2", "rabbitmq", "redis", "redis-commander"),
        *("redis-exporter", "redis-stack", "registry", "selenium", "solr", "squid"),
        *("statsd-exporter", "timescaledb", "traefik", "ubuntu", "valkey", "varnish", "vault"),
        *("vector", "wait-for-it", "watchtower", "zipkin", "zookeeper"),
    }
)


@dataclass
class Images:
    """All Dockerfiles, and what is known of their stages.

    :param by_name: the Dockerfile of an image, where the user said it.
    :param target: the stage of a Dockerfile that is built, where the user said it.
    """

    scripts: Scripts
    by_name: Mapping[str, str]
    target: str | None
    dockerfiles: list[Dockerfile] = field(default_factory=list)
    #: Stages whose own start is known to be used, or replaced by what is judged.
    built: set[tuple[str, int]] = field(default_factory=set)
    #: Sentences about what could not be told.
    notes: list[str] = field(default_factory=list)

    def of(self, unit: Unit, all_units: Sequence[Unit]) -> tuple[Image | None, str]:
        """The image that a unit is probably of; else why its start is not known.

        What the user or the platform says comes first, then the name of the Dockerfile or of its
        directory. A single Dockerfile is taken for the only image that nothing else is known of.
        """
        if unit.image == "" and not unit.dockerfiles:
            return None, "it has neither a command nor an image here"
        reason = f"its image, {unit.image}, starts it: give its Dockerfile too"
        for name, path in self.by_name.items():
            if name in (unit.base, unit.image, unit.repository):
                return self._built([path], unit.target), reason
        for other in all_units:
            if not unit.dockerfiles and other.dockerfiles and other.image == unit.image:
                return self._built(other.dockerfiles, other.target), reason
        if unit.dockerfiles:
            reason = f"the image of {unit.dockerfiles[0]} starts it: give that too"
            return self._built(unit.dockerfiles, unit.target), reason
        named = [file for file in self.dockerfiles if unit.base in _names(file.file)]
        plain = [one for one in named if "." not in os.path.basename(one.file)]
        named = plain if len(plain) == 1 else named
        if len(named) == 1:
            return self._stage_of(named[0], unit.target), reason
        if not self.dockerfiles or unit.base in OWN_START:
            return None, reason
        reason = (
            f"its image, {unit.image}, starts it, and no Dockerfile is called like that: say which "
            f"one it is, as in {shlex.quote(f'{unit.base}=Dockerfile')}"
        )
        candidates = {
            one.repository for one in all_units if one.image and one.base not in OWN_START
        }
        # A compose file says of each image how it is built; of a registry's it says nothing.
        is_claimed = self.by_name or any(
            one.dockerfiles and (one.image or unit.node is None) for one in all_units
        )
        if len(self.dockerfiles) == len(candidates) == 1 and not is_claimed:
            return self._stage_of(self.dockerfiles[0], unit.target), reason
        return None, reason

    def shell_of(self, name: str) -> str:
        """What `sh` is in an image: by its name, or since all Dockerfiles have the same."""
        sh = shell_of(name)
        shells = {stage.sh for file in self.dockerfiles for stage in file.stages}
        return shells.pop() if name and sh == "dash" and len(shells) == 1 else sh

    def _built(self, paths: Sequence[str], target: str) -> Image | None:
        by_path = {os.path.realpath(file.file): file for file in self.dockerfiles}
        found = (by_path[path] for path in map(os.path.realpath, paths) if path in by_path)
        file = next(found, None)
        return None if file is None else self._stage_of(file, target)

    def inherit(self, units: Sequence[Unit]) -> None:
        """Have each stage start as its base does, where that is built from one of the files."""
        files = {
            unit.image: self._built(unit.dockerfiles, unit.target)
            for unit in units
            if unit.image and unit.dockerfiles
        }
        self.dockerfiles = [
            replace(
                file,
                stages=tuple(
                    stage.on(base) if (base := files.get(stage.base)) is not None else stage
                    for stage in file.stages
                ),
            )
            for file in self.dockerfiles
        ]

    def _stage_of(self, file: Dockerfile, target: str) -> Image | None:
        image = file.stage(target) if target else None
        stages = [image] if image is not None else self.stages(file)
        if not stages:
            return None
        if stages[0] is not file.stages[-1] and not target and self.target is None:
            self.notes.append(
                f"{file.file}: the last stage starts no gunicorn, so the stage "
                f"{stages[0].stage or stages[0].base} is judged: say which one it is with --target"
            )
            self.built |= {stage.origin for stage in stages}
        return stages[0]

    def stages(self, file: Dockerfile) -> list[Image]:
        """The stages to judge: the target, or the last; else all that start gunicorn."""
        target = file.stage(self.target) if self.target is not None else None
        if target is not None:
            return [target]
        last = list(file.stages[-1:])
        if any(self._starts(image) for image in last):
            return last
        return [image for image in file.stages if self._starts(image)] or last

    def _starts(self, image: Image) -> bool:
        around = self.scripts.around(image.file, image.environ, image.sh, image)
        return bool(launch.find(image.words, image.place, around))


def _names(file: str) -> set[str]:
    """What the image of a Dockerfile may be called: as its directory, or as the file itself."""
    directory, name = os.path.split(os.path.abspath(file))
    parts = directory.split(os.sep)
    while parts and parts[-1] in ("docker", ".docker", "build", "deploy", "deployment"):
        parts.pop()
    names = {part for part in re.split(r"[.]|(?i:docker|container)file", name) if part}
    return {*parts[-1:], *(part.strip("-_.") for part in names)} - {""}
