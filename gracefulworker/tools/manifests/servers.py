"""Pods, containers, and the settings that their gunicorn would run with.

A `Server` is one gunicorn with all that is known around it, and is what the rules look at. What
may be changed here: kinds of workload, and where settings are found. Kubernetes' own words are
used: a container's ``command`` replaces the image's ENTRYPOINT, its ``args`` the CMD.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from gracefulworker import settings
from gracefulworker.tools import configuration
from gracefulworker.tools.configuration import Configuration
from gracefulworker.tools.manifests import dockerfile, documents, launch
from gracefulworker.tools.manifests.documents import Node
from gracefulworker.tools.manifests.launch import Launch, Surroundings, Word
from gracefulworker.tools.manifests.sources import InputError, Place, Source, unrendered

#: Kinds with a pod template in ``spec.template``; Rollout is Argo's.
TEMPLATED = frozenset(
    {"DaemonSet", "Deployment", "ReplicaSet", "ReplicationController", "Rollout", "StatefulSet"}
)

#: What only a template that is not rendered has in a pod's spec.
_TEMPLATE = re.compile(
    r"\{\{-?\s*(\.|\$|(if|end|else|range|with|include|template|tpl|toYaml|quote|default)\b)|\{%"
)

_REFERENCE = re.compile(r"\$\$|\$\(([\w.-]+)\)")

#: Worker classes that are known not to be ours: by the beginning of their name.
FOREIGN = ("gunicorn.", "uvicorn.", "uvicorn_worker.", "aiohttp.", "egg:gunicorn", "egg:meinheld")


@dataclass(frozen=True)
class Container:
    """One container of a pod.

    :param environ: its variables; None where the value comes from elsewhere.
    """

    node: Node
    name: str
    image: str
    environ: Mapping[str, str | None]

    @property
    def base(self) -> str:
        """The last part of the image's name, without tag and digest."""
        return self.image.split("@")[0].rsplit("/", 1)[-1].split(":")[0]

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

    @property
    def containers(self) -> list[Node]:
        """Those that run side by side; what is in initContainers starts before and ends after."""
        return list(self.spec["containers"])

    @property
    def labels(self) -> dict[str, str]:
        """The pod's labels."""
        return {key: value.text or "" for key, value in self.metadata["labels"].pairs()}

    @property
    def annotations(self) -> dict[str, str]:
        """The pod's annotations."""
        return {key: value.text or "" for key, value in self.metadata["annotations"].pairs()}

    @property
    def period(self) -> float:
        """Seconds from the deletion (the preStop hook included) to SIGKILL."""
        number = self.spec["terminationGracePeriodSeconds"].number
        return 30.0 if number is None else number


@dataclass
class Server:
    """One gunicorn, and all that is known around it; a rule's argument.

    :param read: the configuration that gunicorn would load.
    :param is_complete: whether nothing else can set options: no config file that was not given,
        no arguments that are not known.
    :param pod: None outside Kubernetes.
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
    is_procfile: bool = False
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
        if any(_is_from_us(value) for value in self.read.names.values()):
            return True
        location = self.read.cfg.config
        if isinstance(location, str) and location.startswith("python:gracefulworker"):
            return True
        worker = self.worker
        if worker is None:
            return None
        if worker.startswith(("gracefulworker", "egg:gracefulworker")):
            return True
        if "." not in worker and ":" not in worker:
            return False
        return False if worker.startswith(FOREIGN) else None

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
        """Seconds that its preStop hook sleeps; 0 without a hook, None for any other hook."""
        return 0.0 if self.container is None else prestop_sleep(self.container.node)

    def place_of(self, words: str) -> Place:
        """Where the first variable of the container stands that is named in `words`.

        Where gunicorn is started, if none is.
        """
        named = set(re.findall(r"\w+", words))
        for entry in self.container.node["env"] if self.container is not None else ():
            if entry["name"].text in named:
                return entry["value"].place
        return self.place


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


def prestop_sleep(container: Node) -> float | None:
    """Seconds that a container's preStop hook sleeps; 0 without a hook, None for any other one."""
    hook = container["lifecycle"]["preStop"]
    if not hook:
        return 0.0
    if hook["sleep"]:
        return hook["sleep"]["seconds"].number
    command = " ".join(word.text or "" for word in hook["exec"]["command"])
    units = {"": 1, "s": 1, "m": 60, "h": 3600}
    found = re.findall(r"\bsleep\s+(\d+(?:\.\d+)?)([smh]?)\b", command)
    return sum(float(number) * units[unit] for number, unit in found) if found else None


def _backends(ingress: Node) -> Iterator[str | None]:
    spec = ingress["spec"]
    yield (spec["defaultBackend"]["service"] or spec["backend"])["name"].text
    for rule in spec["rules"]:
        for path in rule["http"]["paths"]:
            backend = path["backend"]
            yield backend["service"]["name"].text or backend["serviceName"].text


def _namespace(node: Node) -> str:
    return node["metadata"]["namespace"].text or "default"


def _is_from_us(value: object) -> bool:
    """Tell whether a name of a config file holds our hook, our class, or one of our modules."""
    modules = [getattr(cls, "__module__", "") for cls in getattr(value, "__mro__", ())]
    modules += [getattr(value, "__module__", None), getattr(value, "__name__", None)]
    return any(str(name).split(".")[0] == "gracefulworker" for name in modules if name)


@dataclass
class Reader:
    """Gathers what the files hold, and then finds the servers in it.

    :param config_file: the gunicorn config file that the user gave.
    """

    config_file: str | None = None
    cluster: Cluster = field(default_factory=Cluster)
    pods: list[Pod] = field(default_factory=list)
    images: list[dockerfile.Image] = field(default_factory=list)
    scripts: dict[str, Source] = field(default_factory=dict)
    procfiles: list[Source] = field(default_factory=list)
    errors: list[InputError] = field(default_factory=list)
    #: Sentences about what could not be taken into account.
    notes: list[str] = field(default_factory=list)
    #: A config file that lies beside what was given. It is not run unless the user asks for that.
    config_beside: str | None = None

    def add(self, source: Source) -> None:
        """Take in one text."""
        beside = os.path.join(os.path.dirname(source.file), "gunicorn.conf.py")
        if os.path.exists(beside):
            self.config_beside = beside
        if source.kind == "yaml":
            try:
                for document in documents.parse(source):
                    self._add_document(document, source)
            except InputError as error:
                self.errors.append(error)
        elif source.kind == "dockerfile":
            image = dockerfile.read(source)
            if image is not None:
                self.images.append(image)
        elif source.kind == "procfile":
            self.procfiles.append(source)
        else:
            self.scripts[source.name] = source

    def _add_document(self, document: Node, source: Source) -> None:
        kind = document["kind"].text or ""
        if kind == "List" or kind.endswith("List"):
            for item in document["items"]:
                self._add_document(item, source)
            return
        if kind in TEMPLATED:
            template = document["spec"]["template"]
            metadata, spec = template["metadata"], template["spec"]
        elif kind == "Pod":
            metadata, spec = document["metadata"], document["spec"]
        else:
            self._add_neighbour(kind, document)
            return
        lines = source.text.splitlines()[spec.line - 1 : spec.last_line] if spec else []
        for number, line in enumerate(lines):
            if _TEMPLATE.search(line):
                raise unrendered(source.file, spec.line + number)
        name = document["metadata"]["name"].text or "without a name"
        self.pods.append(Pod(kind, name, document, metadata, spec))

    def _add_neighbour(self, kind: str, document: Node) -> None:
        if kind == "Service":
            self.cluster.services.append(document)
        elif kind == "Ingress":
            self.cluster.ingresses.append(document)
        elif kind == "TargetGroupBinding":
            self.cluster.target_groups.append(document)
        elif kind == "ConfigMap":
            self.cluster.config_maps[document["metadata"]["name"].text or ""] = document

    def servers(self) -> list[Server]:
        """Return every gunicorn in what was taken in."""
        found = []
        for pod in self.pods:
            for node in pod.containers:
                found += self._of_container(pod, node)
        used = [server.image for server in found]
        for image in self.images:
            own = self._of_image(image)
            if own and self.pods and image not in used:
                self._note(f"{image.file}: no container in the files is known to be of this image")
            found += own
        for procfile in self.procfiles:
            found += self._of_procfile(procfile)
        for source in self.scripts.values():
            if source.named:
                around = Surroundings(self.scripts, {})
                launches = launch.find([source.name], Place(source.file, 1, ""), around)
                found += [self._server(f"script {source.name}", one, {}) for one in launches]
        return found

    def _of_container(self, pod: Pod, node: Node) -> list[Server]:
        image_name = node["image"].text
        if image_name is None:
            return []  # a patch for another document, which has the rest
        environ = self._environ(node)
        container = Container(node, node["name"].text or "", image_name, environ)
        command = [_word(word, environ) for word in node["command"]]
        args = [_word(word, environ) for word in node["args"]]
        image = None if command else self._image_of(container, pod)
        place = (node["command"] or node["args"] or node["image"]).place
        words = [*command, *args]
        if image is not None:
            environ = {**image.environ, **environ}
            start = image.entrypoint or image.command
            words = [*(image.entrypoint.words if image.entrypoint else ())]
            words += args or (image.command.words if image.command else ())
            if not args and start is not None:
                place = start.place
        around = Surroundings(self.scripts, environ, image.sh if image else "dash")
        launches = launch.find(words, place, around)
        if not launches and not command and environ.get("GUNICORN_CMD_ARGS"):
            # The image starts gunicorn, in a way that nobody has shown us.
            launches = [Launch(("$CMD",), place)]
        name = f"{pod.kind} {pod.name}, container {container.name}"
        for source in node["envFrom"] if launches else ():
            config_map = source["configMapRef"]["name"].text
            if config_map is not None and config_map not in self.cluster.config_maps:
                self._note(f"{name}: the ConfigMap {config_map} is not among the files")
        context = {"pod": pod, "container": container, "image": image}
        # A script may start gunicorn in several ways; one of them becomes the service.
        return [self._server(name, one, environ, **context) for one in launches[-1:]]

    def _of_image(self, image: dockerfile.Image) -> list[Server]:
        words = [*(image.entrypoint.words if image.entrypoint else ())]
        words += image.command.words if image.command else ()
        start = image.command or image.entrypoint
        if start is None:
            return []
        around = Surroundings(self.scripts, image.environ, image.sh)
        launches = launch.find(words, start.place, around)
        return [self._server("the image", one, image.environ, image=image) for one in launches]

    def _of_procfile(self, procfile: Source) -> Iterator[Server]:
        for number, line in enumerate(procfile.text.splitlines(), 1):
            process, colon, text = line.partition(":")
            if not colon or process.lstrip().startswith("#"):
                continue
            place = Place(procfile.file, number, process.strip())
            # What runs a Procfile sends SIGTERM to every process, so no shell can hold it up.
            around = Surroundings(self.scripts, {})
            for _, one in launch.in_text(text, place, around):
                freed = replace(one, holder=None)
                yield self._server(f"process {process.strip()}", freed, {}, is_procfile=True)

    def _image_of(self, container: Container, pod: Pod) -> dockerfile.Image | None:
        """The Dockerfile that a container's image is probably built from, if there is one.

        With a single Dockerfile it is the one of the pod's only container whose start is left to
        its image; with several, the one whose file or directory is named like the image.
        """
        for image in self.images:
            parts = re.split(r"[/\\.]", image.file)
            if container.base in parts:
                return image
        bare = [node for node in pod.containers if not node["command"]]
        if len(self.images) == 1 and len(bare) == 1:
            return self.images[0]
        return None

    def _environ(self, container: Node) -> dict[str, str | None]:
        environ: dict[str, str | None] = {}
        for source in container["envFrom"]:
            name = source["configMapRef"]["name"].text
            prefix = source["prefix"].text or ""
            config_map = self.cluster.config_maps.get(name or "")
            for data, value in config_map["data"].pairs() if config_map else ():
                environ[prefix + data] = value.text
        for entry in container["env"]:
            name = entry["name"].text or ""
            if entry["valueFrom"]:
                reference = entry["valueFrom"]["configMapKeyRef"]
                config_map = self.cluster.config_maps.get(reference["name"].text or "")
                key = reference["key"].text
                environ[name] = config_map["data"][key].text if config_map and key else None
            else:
                environ[name] = _referring(entry["value"].text or "", environ)
        return environ

    def _server(
        self, name: str, one: Launch, environ: Mapping[str, str | None], **context: Any
    ) -> Server:
        environ = {**environ, **one.assigned}
        known = {
            key: value for key, value in environ.items() if value is not None and "$" not in value
        }
        in_service = configuration.service_environ(known)
        names: Mapping[str, object] = {}
        if self.config_file is not None:
            names = configuration.load_names(self.config_file, in_service)
        read = configuration.load(one.arguments, known, names)
        read_elsewhere = read.cfg.config if "config" in read.given else self.config_beside
        has_file = self.config_file is not None or read_elsewhere is None
        has_file |= str(read_elsewhere).startswith("python:gracefulworker")
        is_complete = has_file and not read.is_open
        is_complete &= "GUNICORN_CMD_ARGS" in known or "GUNICORN_CMD_ARGS" not in environ
        if not has_file:
            self._note(f"{name}: gunicorn probably reads {read_elsewhere}: give it with -c")
        server = Server(name, one, read, is_complete, environ, self.cluster, **context)
        self._read_ours(server, known)
        return server

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _read_ours(self, server: Server, environ: Mapping[str, str]) -> None:
        try:
            server.ours = settings.read(server.read.cfg, environ, server.read.names)
        except settings.SettingsError as error:
            server.refusal = str(error)


def _word(node: Node, environ: Mapping[str, str | None]) -> str:
    """One word of a container's command, with its place."""
    # The text of a block begins on the line after its | or >.
    line = node.line + (node.is_block and 1)
    field = node.field.rpartition("[")[0]
    return Word.at(Place(node.file, line, field), _referring(node.text or "", environ))


def _referring(text: str, environ: Mapping[str, str | None]) -> str:
    """Put in Kubernetes' ``$(NAME)``; one that is not known becomes the shell's ``$NAME``."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        # Kubernetes leaves a reference to nothing as it is written.
        known = environ.get(match[1], match[0])
        return f"${match[1]}" if known is None else known

    return _REFERENCE.sub(value, text)


def read_all(inputs: Sequence[Source | InputError], config_file: str | None) -> Reader:
    """Return a reader that has taken in all that can be read."""
    reader = Reader(config_file)
    for one in inputs:
        if isinstance(one, InputError):
            reader.errors.append(one)
        else:
            reader.add(one)
    return reader
