"""One gunicorn with all that is known around it: a `Server`, which is what the rules look at.

What may be changed here: what a rule can ask of a server, its pod, and what stands beside them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from gracefulworker import settings
from gracefulworker.tools import engines
from gracefulworker.tools.configuration import Configuration
from gracefulworker.tools.manifests import dockerfile, prestop
from gracefulworker.tools.manifests.documents import Node
from gracefulworker.tools.manifests.launch import Launch
from gracefulworker.tools.manifests.sources import Place
from gracefulworker.tools.manifests.units import Stop


@dataclass(frozen=True)
class Container:
    """One container of a pod.

    :param environ: its variables; None where the value comes from elsewhere.
    """

    node: Node
    name: str
    image: str
    environ: Mapping[str, str | None]

    def ports(self) -> dict[str, int]:
        """The declared ports by name; those without one by their number."""
        found = {}
        for port in self.node["ports"]:
            number = port["containerPort"].number
            if number is not None:
                found[port["name"].text or f"{number:g}"] = int(number)
        return found


@dataclass(frozen=True)
class Pod:
    """A pod, or a workload's template of one."""

    kind: str
    name: str
    workload: Node
    metadata: Node
    spec: Node
    #: What its containers start that is not gunicorn, by their names.
    programs: dict[str, str] = field(default_factory=dict)

    @property
    def containers(self) -> list[Node]:
        """Those that run side by side; what is in initContainers starts before and ends after."""
        return list(self.spec["containers"])

    @property
    def sidecars(self) -> list[Node]:
        """Native ones: they are sent their stop signal when all others have ended (KEP-753)."""
        return [n for n in self.spec["initContainers"] if n["restartPolicy"].text == "Always"]

    @property
    def labels(self) -> dict[str, str]:
        """The pod's labels."""
        return {key: value.text or "" for key, value in self.metadata["labels"].pairs()}

    @property
    def annotations(self) -> dict[str, str]:
        """The pod's annotations."""
        return {key: value.text or "" for key, value in self.metadata["annotations"].pairs()}

    @property
    def stop(self) -> Stop:
        """From the deletion (the preStop hook included) to SIGKILL."""
        period = self.spec["terminationGracePeriodSeconds"]
        return Stop(
            "terminationGracePeriodSeconds",
            period.number if period else 30.0,
            period.place,
            bool(period),
            "terminationGracePeriodSeconds: {}",
            to="child" if self.spec["shareProcessNamespace"].text == "true" else "pid1",
        )


@dataclass
class Server:
    """One gunicorn, and all that is known around it; a rule's argument.

    :param read: the configuration that gunicorn would load.
    :param is_complete: whether nothing else can set options: no config file that was not given,
        no arguments that are not known.
    :param pod: None outside Kubernetes.
    :param stop: how it is ended; None where the files do not say what runs it.
    """

    name: str
    launch: Launch
    read: Configuration
    is_complete: bool
    environ: Mapping[str, str | None]
    cluster: Cluster
    pod: Pod | None = None
    container: Container | None = None
    image: dockerfile.Image | None = None
    stop: Stop | None = None
    is_procfile: bool = False
    config_file: str | None = None
    refusal: str | None = None
    ours: settings.Settings | None = None

    @property
    def place(self) -> Place:
        """Where it is started."""
        return self.launch.place

    def knows(self, name: str) -> bool:
        """Tell whether the value of one of gunicorn's settings is certain."""
        if name in self.read.unclear:
            return False
        return self.is_complete or name in self.read.given

    @property
    def worker(self) -> str | None:
        """The name of its worker class, None when that is not known."""
        if not self.knows("worker_class"):
            return None
        return str(self.read.cfg.worker_class_str)

    @cached_property
    def is_delayed(self) -> bool | None:
        """Whether gracefulworker gives it its delay: by the worker class, or by the hook."""
        if self.read.has_hook or self.read.has_our_class:
            return True
        worker = self.worker
        return None if worker is None else engines.is_ours(worker)

    @property
    def delay(self) -> float | None:
        """Seconds that it serves on after SIGTERM; None when that is not known."""
        if self.is_delayed is False:
            return 0.0
        if self.is_delayed is None or self.ours is None or not self.knows_ours("graceful_delay"):
            return None
        return self.ours.delay

    @property
    def finish(self) -> float | None:
        """Seconds that it gives to what is in flight after that; None when that is not known."""
        if not self.knows("graceful_timeout"):
            return None
        if self.is_delayed and self.ours is not None:
            return self.ours.finish
        return float(self.read.cfg.graceful_timeout)

    @property
    def known(self) -> dict[str, str]:
        """Its environment, as far as it is known."""
        return known_in(self.environ)

    def knows_ours(self, name: str) -> bool:
        """Tell whether the value of one of our settings is certain."""
        variable = name.upper()
        if variable in self.environ:
            value = self.environ[variable]
            return value is not None and "$" not in value
        return self.is_complete

    @property
    def is_unready(self) -> bool:
        """Whether its readiness probe fails from SIGTERM on."""
        return self.ours is not None and self.ours.unready

    def presleep(self) -> float | None:
        """Seconds that its preStop hook keeps SIGTERM from it; None when that is not known."""
        if self.container is None:
            return 0.0
        words = prestop.command(self.container.node, self.environ)
        # On a worker class that is not ours the command fails at once.
        if words and self.is_delayed is False and words[:2] == ["gracefulworker", "drain"]:
            return 0.0
        return prestop.sleeps(self.container.node, self.environ)

    def place_of(self, words: str) -> Place:
        """Where the first variable of the container stands that is named in `words`.

        Or the first setting of the config file, if they name that; else where gunicorn is started.
        """
        named = set(re.findall(r"\w+", words))
        if "the config file" in words and self.config_file is not None:
            return _place_in_file(self.config_file, named)
        for entry in self.container.node["env"] if self.container is not None else ():
            if entry["name"].text in named:
                return entry["value"].place
        return self.place


def _place_in_file(path: str, names: Collection[str]) -> Place:
    """Where a config file, or ``python:MODULE``, sets one of these names."""
    with (
        contextlib.suppress(OSError),
        open(path.removeprefix("file:"), encoding="utf-8", errors="replace") as stream,
    ):
        for number, line in enumerate(stream, 1):
            match = re.match(r"(\w+)\s*[=:]|def (\w+)", line)
            if match is not None and (match[1] or match[2]) in names:
                return Place(path, number, match[1] or match[2])
    return Place(path, 1, "")


def known_in(environ: Mapping[str, str | None]) -> dict[str, str]:
    """The variables whose values are known to the last letter."""
    return {key: value for key, value in environ.items() if value is not None and "$" not in value}


@dataclass
class Cluster:
    """What stands beside the pods in the files that were given."""

    services: list[Node] = field(default_factory=list)
    ingresses: list[Node] = field(default_factory=list)
    target_groups: list[Node] = field(default_factory=list)
    config_maps: dict[str, Node] = field(default_factory=dict)

    def services_of(self, pod: Pod) -> list[Node]:
        """The Services that select the pod."""
        labels, namespace = pod.labels.items(), _namespace(pod.workload)
        found = []
        for service in self.services:
            selector = {k: v.text or "" for k, v in service["spec"]["selector"].pairs()}
            if selector and selector.items() <= labels and _namespace(service) == namespace:
                found.append(service)
        return found

    def ingresses_of(self, pod: Pod) -> list[Node]:
        """The Ingresses that lead to the pod's Services."""
        names = {service["metadata"]["name"].text for service in self.services_of(pod)}
        namespace = _namespace(pod.workload)
        return [
            ingress
            for ingress in self.ingresses
            if _namespace(ingress) == namespace and names & set(_backends(ingress))
        ]


def _backends(ingress: Node) -> Iterator[str | None]:
    spec = ingress["spec"]
    yield (spec["defaultBackend"]["service"] or spec["backend"])["name"].text
    for rule in spec["rules"]:
        for path in rule["http"]["paths"]:
            backend = path["backend"]
            yield backend["service"]["name"].text or backend["serviceName"].text


def _namespace(node: Node) -> str:
    return node["metadata"]["namespace"].text or "default"
