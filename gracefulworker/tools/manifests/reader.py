"""Which gunicorns the files start, and the settings that they would run with.

The `Reader` takes in all texts, then finds a `Server` for each gunicorn. What starts something
else, and what cannot be judged, is kept too, so that nothing is passed over in silence. What may be
changed here: kinds of workload, and where settings are found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gracefulworker import settings
from gracefulworker.tools import configuration
from gracefulworker.tools.manifests import dockerfile, documents, launch, units
from gracefulworker.tools.manifests.documents import Node
from gracefulworker.tools.manifests.images import OWN_START, Images
from gracefulworker.tools.manifests.launch import Launch, Surroundings, Word
from gracefulworker.tools.manifests.scripts import Scripts
from gracefulworker.tools.manifests.servers import Cluster, Container, Pod, Server, known_in
from gracefulworker.tools.manifests.sources import InputError, Place, Source, unrendered
from gracefulworker.tools.manifests.units import Stop, Unit, referring

#: Kinds with a pod template in ``spec.template``; Rollout is Argo's.
TEMPLATED = frozenset(
    {
        *("DaemonSet", "Deployment", "DeploymentConfig", "ReplicaSet", "ReplicationController"),
        *("Rollout", "StatefulSet"),
    }
)

#: Kinds that run to their end and serve nobody.
JOBS = frozenset({"CronJob", "Job"})

#: Programs by whose names it is known what an image is given as arguments, if its own ENTRYPOINT is
#: not; `web` may be a program as well as a word for a script.
PROGRAMS = frozenset(
    {
        *("bash", "celery", "daphne", "django-admin", "dramatiq", "flask", "flower", "gulp"),
        *("huey_consumer", "hypercorn", "nginx", "node", "npm", "npx", "postgres", "python"),
        *("python3", "redis-server", "rq", "sh", "uvicorn", "uwsgi", "yarn"),
    }
)

#: What only a template that is not rendered has in a pod's spec.
_TEMPLATE = re.compile(
    r"\{\{-?\s*(\.|\$|(if|end|else|range|with|include|template|tpl|toYaml|quote|default)\b)|\{%"
)


@dataclass(frozen=True)
class Unjudged:
    """Something that starts a program, or may, and was not judged.

    :param why: a sentence.
    """

    name: str
    place: Place
    why: str


@dataclass
class Reader:
    """Gathers what the files hold, and then finds the servers in it.

    :param config_file: the gunicorn config file that the user gave.
    :param images_by_name: the Dockerfile of an image, where the user said it.
    :param target: the stage of a Dockerfile that is built, where the user said it.
    """

    config_file: str | None = None
    images_by_name: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    cluster: Cluster = field(default_factory=Cluster)
    pods: list[Pod] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    scripts: Scripts = field(default_factory=Scripts)
    procfiles: list[Source] = field(default_factory=list)
    errors: list[InputError] = field(default_factory=list)
    #: Each service with a gunicorn, once, in whatever ways it may be started.
    judged: list[str] = field(default_factory=list)
    not_judged: list[Unjudged] = field(default_factory=list)
    #: What starts another program than gunicorn, with that program's name.
    others: list[tuple[str, Place, str]] = field(default_factory=list)
    #: Files without anything that starts a program.
    passed_over: list[str] = field(default_factory=list)
    #: Sentences about what could not be taken into account.
    notes: list[str] = field(default_factory=list)
    #: A config file that lies beside what was given. It is not run unless the user asks for that.
    config_beside: str | None = None
    images: Images = field(init=False)
    _compose: list[Node] = field(default_factory=list)
    _systemd: list[Source] = field(default_factory=list)
    _drop_ins: list[Source] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.images = Images(self.scripts, self.images_by_name, self.target)

    def add(self, source: Source) -> None:
        """Take in one text."""
        beside = os.path.join(os.path.dirname(source.file), "gunicorn.conf.py")
        if os.path.exists(beside):
            self.config_beside = beside
        try:
            if source.kind == "yaml":
                found = documents.parse(source)
                known = [self._add_document(one, source) for one in found]
                if not any(known):
                    self._pass_over(source, found)
            elif source.kind == "dockerfile":
                self.images.dockerfiles.append(dockerfile.read(source))
            elif source.kind == "procfile":
                self.procfiles.append(source)
                self.scripts.supervised |= launch.OF_PROCFILES
            elif source.kind == "systemd":
                self._systemd.append(source)
            elif source.kind == "drop-in":
                self._drop_ins.append(source)
            elif source.kind == "supervisord":
                self.units += units.of_supervisord(source)
                self.scripts.supervised |= {"supervisord"}
            elif source.kind == "fly":
                self.units += units.of_fly(source)
            elif source.kind == "other":
                self._pass_over(source)
            else:
                self.scripts.add([source])
        except InputError as error:
            self.errors.append(error)

    def _pass_over(self, source: Source, found: Sequence[Node] = ()) -> None:
        """Name a file that may start gunicorn, and is of no kind that is known."""
        in_line = re.search(r"\bgunicorn[\"',]*[ \t]+[\"'$-]*\w", source.text)
        if source.kind == "other" or in_line or any(map(_may_start_gunicorn, found)):
            why = "it names gunicorn, in a form that is not read here"
            place = Place(source.file, 1, "")
            self.not_judged.append(Unjudged(f"the file {source.name}", place, why))
        else:
            self.passed_over.append(source.file)

    def _add_document(self, document: Node, source: Source) -> bool:
        """Take in one document; tell whether it is of a kind that is known, or starts something."""
        kind = document["kind"].text or ""
        name = document["metadata"]["name"].text or "without a name"
        if kind == "Template":
            values = {one["name"].text or "": one["value"].text for one in document["parameters"]}
            document.substitute({key: value for key, value in values.items() if key and value})
        if kind == "List" or kind.endswith("List") or kind == "Template":
            items = [*document["items"], *document["objects"]]
            found = [self._add_document(item, source) for item in items]
            return any(found)
        if kind in TEMPLATED:
            template = document["spec"]["template"]
            metadata, spec = template["metadata"], template["spec"]
        elif kind == "Pod":
            metadata, spec = document["metadata"], document["spec"]
        elif (document["apiVersion"].text or "").startswith("serving.knative.dev/"):
            self._add_knative(name, document)
            return True
        elif not kind and _is_compose(document):
            self._compose.append(document)
            return True
        elif (task := _task_definition(document)) is not None:
            self.units += units.of_task_definition(*task)
            return True
        else:
            return self._add_neighbour(kind, name, document)
        lines = source.text.splitlines()[spec.line - 1 : spec.last_line] if spec else []
        for number, line in enumerate(lines):
            if _TEMPLATE.search(line):
                raise unrendered(source.file, spec.line + number)
        self.pods.append(Pod(kind, name, document, metadata, spec))
        return True

    def _add_knative(self, name: str, document: Node) -> None:
        kind = document["kind"].text or ""
        platform = "Cloud Run" if units.is_cloud_run(document) else "Knative"
        stop = units.knative_stop(document)
        for node in document["spec"]["template"]["spec"]["containers"]:
            title = f"{platform} {kind} {name}, container {node['name'].text or ''}".rstrip()
            if stop.seconds is None:
                self._note(
                    f"{title}: how long it may take to stop is not judged (10 s on Cloud Run)"
                )
            self.units.append(self._unit_of(title, node, stop))

    def _add_neighbour(self, kind: str, name: str, document: Node) -> bool:
        if kind == "Service":
            self.cluster.services.append(document)
        elif kind == "Ingress":
            self.cluster.ingresses.append(document)
        elif kind == "TargetGroupBinding":
            self.cluster.target_groups.append(document)
        elif kind == "ConfigMap":
            self.cluster.config_maps[name] = document
            self.scripts.add(_scripts_of(document))
        elif kind in JOBS:
            why = "a job ends by itself, and serves nobody"
            self.not_judged.append(Unjudged(f"{kind} {name}", document.place, why))
        elif kind != "CustomResourceDefinition" and kind and _may_start_gunicorn(document):
            why = f"the kind {kind} is not read here"
            self.not_judged.append(Unjudged(f"{kind} {name}", document.place, why))
        elif document.holds("ContainerDefinitions"):
            why = "CloudFormation is not read here: give the task definition itself"
            self.not_judged.append(Unjudged("the ECS task definition", document.place, why))
        return bool(kind) or document.holds("ContainerDefinitions")

    # -- what is started

    def servers(self) -> list[Server]:
        """Return every gunicorn in what was taken in."""
        found = []
        names = {one.file for one in self._compose}
        for document in self._compose:
            # `docker compose up` merges the two by itself.
            merged = [one for one in self._compose if document.file in _overridden(one.file)]
            if not names & _overridden(document.file):
                self.units += units.of_compose(document, *merged)
        units_given = {source.unit for source in self._systemd}
        for source in self._systemd:
            changes = [one for one in self._drop_ins if one.unit == source.unit]
            self.units += units.of_systemd([source, *changes])
        for source in self._drop_ins:
            if source.unit not in units_given:
                why = f"it changes {source.unit}, which was not given"
                self.not_judged.append(Unjudged("the drop-in", Place(source.file, 1, ""), why))
        in_pods = [
            (self._unit_of_pod(pod, node), pod)
            for pod in self._pods_of_their_own()
            for node in pod.containers
            if self._has_image(pod, node)
        ]
        all_units = [*(unit for unit, _ in in_pods), *self.units]
        self.images.inherit(all_units)
        for unit, pod in in_pods:
            found += self._of_unit(unit, all_units, pod)
        self._pass_over_inits()
        for unit in self.units:
            found += self._of_unit(unit, all_units, None)
        for file in self.images.dockerfiles:
            own = self._of_dockerfile(file)
            if own and all_units:
                why = "no container in the files is known to start this image as it is"
                self._note(f"{file.file}: {why}")
            found += own
        for procfile in self.procfiles:
            found += self._of_procfile(procfile)
        found += self._of_scripts()
        for note in (*self.images.notes, *self.scripts.notes()):
            self._note(note)
        return found

    def _pods_of_their_own(self) -> list[Pod]:
        """Those that no other workload in the files has made, as `kubectl get all` shows them."""
        names = {(pod.kind, pod.name) for pod in self.pods}
        return [
            pod
            for pod in self.pods
            if not any(
                (owner["kind"].text, owner["name"].text) in names
                for owner in pod.workload["metadata"]["ownerReferences"]
            )
        ]

    def _pass_over_inits(self) -> None:
        """Name native sidecars that start gunicorn; other init containers end before it does."""
        for pod in self._pods_of_their_own():
            for node in pod.spec["initContainers"]:
                unit = self._unit_of_pod(pod, node)
                around = self.scripts.around(node.file, unit.environ)
                words = [*unit.words, *unit.arguments]
                is_sidecar = node["restartPolicy"].text == "Always"
                if is_sidecar and launch.find(words, unit.place, around):
                    why = "a native sidecar is not judged"
                    self.not_judged.append(Unjudged(unit.name, unit.place, why))

    def _has_image(self, pod: Pod, node: Node) -> bool:
        if node["image"].text is not None or _triggering(pod, node):
            return True
        name = f"{pod.kind} {pod.name}, container {node['name'].text or ''}"
        why = "it is a patch for another document, which has its image"
        self.not_judged.append(Unjudged(name, node.place, why))
        return False

    def _unit_of_pod(self, pod: Pod, node: Node) -> Unit:
        name = f"{pod.kind} {pod.name}, container {node['name'].text or ''}"
        unit = self._unit_of(name, node, pod.stop)
        return unit if unit.image else replace(unit, image=_triggering(pod, node))

    def _unit_of(self, name: str, node: Node, stop: Stop) -> Unit:
        """Kubernetes: ``command`` replaces the image's ENTRYPOINT, ``args`` its CMD."""
        environ = self._environ(node)
        return Unit(
            name,
            (node["command"] or node["args"] or node["image"] or node).place,
            [_word(word, environ) for word in node["command"]],
            [_word(word, environ) for word in node["args"]],
            environ,
            (node["image"].text or "").strip(),
            stop=stop,
            node=node,
        )

    def _of_unit(self, unit: Unit, all_units: Sequence[Unit], pod: Pod | None) -> list[Server]:
        image, reason = self.images.of(unit, all_units)
        words, place, environ = [*unit.words, *unit.arguments], unit.place, unit.environ
        sh = self.images.shell_of(unit.image)
        if image is not None:
            environ = {**image.environ, **environ}
            sh = image.sh
            if not unit.words:
                start = image.entrypoint or image.command
                words = [*(image.entrypoint.words if image.entrypoint else ())]
                words += unit.arguments or (image.command.words if image.command else ())
                if not unit.arguments and start is not None:
                    place = start.place
        elif not unit.words:
            # What its ENTRYPOINT does with them is not known.
            words = [Word.at(getattr(word, "place", place), word) for word in words]
        around = self.scripts.around(place.file, environ, sh, image)
        launches = launch.find(words, place, around)
        if not launches and not words and environ.get("GUNICORN_CMD_ARGS"):
            # The image starts gunicorn, in a way that nobody has shown us.
            launches = [Launch(("$(its image's own command)",), place)]
        if image is not None and (
            launches or not (unit.words or unit.arguments) or image.command is None
        ):
            self.images.built.add(image.origin)
        if not launches:
            self._other(unit, words, image, reason, around, pod)
            return []
        if image is None and not unit.words and unit.arguments:
            around.miss("the ENTRYPOINT of its image is not known")
        self._note_gaps(unit.name, around)
        if unit.node is not None:
            for source in unit.node["envFrom"]:
                config_map = source["configMapRef"]["name"].text
                if config_map is not None and config_map not in self.cluster.config_maps:
                    self._note(f"{unit.name}: the ConfigMap {config_map} is not among the files")
        container = None
        if pod is not None and unit.node is not None:
            name = unit.node["name"].text or ""
            container = Container(unit.node, name, unit.image, unit.environ)
        context = {"pod": pod, "container": container, "image": image, "stop": unit.stop}
        return self._servers(unit.name, launches, environ, **context)

    def _other(
        self,
        unit: Unit,
        words: Sequence[str],
        image: dockerfile.Image | None,
        reason: str,
        around: Surroundings,
        pod: Pod | None = None,
    ) -> None:
        """Keep what a unit starts that is not gunicorn, or why that is not known."""
        base = units.base_of(image.base) if image is not None and not image.words else unit.base
        program = None
        if (image is None or not image.words) and base in OWN_START and not unit.words:
            program = base
        elif around.gaps:
            self.not_judged.append(Unjudged(unit.name, unit.place, "; ".join(around.gaps)))
        elif words and (
            unit.words
            or os.path.basename(words[0]) in PROGRAMS
            or (image is not None and not words[0].startswith("-"))
        ):
            program = launch.program(words, around)
        else:
            if image is not None:
                reason = f"its base image, {image.base}, starts it"
            self.not_judged.append(Unjudged(unit.name, unit.place, reason))
        if program is not None:
            self.others.append((unit.name, unit.place, program))
            if pod is not None and unit.node is not None:
                pod.programs[unit.node["name"].text or ""] = program

    def _of_dockerfile(self, file: dockerfile.Dockerfile) -> list[Server]:
        found: list[Server] = []
        stages = self.images.stages(file)
        for image in stages:
            if image.origin in self.images.built:
                continue
            start = image.command or image.entrypoint
            name = f"the image of {file.file}"
            if len(stages) > 1 or image is not file.stages[-1]:
                name += f", stage {image.stage or image.base}"
            place = start.place if start is not None else image.place
            around = self.scripts.around(image.file, image.environ, image.sh, image)
            launches = launch.find(image.words, place, around)
            if launches:
                self._note_gaps(name, around)
                found += self._servers(name, launches, image.environ, image=image)
                continue
            if image.command is None and _reads_arguments(image, around):
                around.miss("what it starts depends on the arguments that it is given")
            unit = Unit(name, place, image="its own")
            self._other(unit, image.words, image, "", around)
        if not stages:
            place = Place(file.file, 1, "")
            self.not_judged.append(Unjudged("the Dockerfile", place, "it has no FROM"))
        return found

    def _of_procfile(self, procfile: Source) -> list[Server]:
        found: list[Server] = []
        for number, line in enumerate(procfile.text.splitlines(), 1):
            process, colon, text = line.partition(":")
            if not colon or process.lstrip().startswith("#"):
                continue
            name = f"process {process.strip()}"
            place = Place(procfile.file, number, process.strip())
            around = self.scripts.around(procfile.file, {})
            # Heroku sends SIGTERM to every process, so no shell can hold it up; SIGKILL 30 s later.
            launches = [replace(one, holders=()) for one in launch.in_text(text, place, around)]
            if launches:
                self._note_gaps(name, around)
                stop = Stop("Heroku's period, if that runs it", 30.0, place, True, None, to="all")
                found += self._servers(name, launches, {}, is_procfile=True, stop=stop)
            elif around.gaps:
                self.not_judged.append(Unjudged(name, place, "; ".join(around.gaps)))
            else:
                self.others.append((name, place, next(iter(text.split()), "nothing")))
        return found

    def _of_scripts(self) -> list[Server]:
        """The scripts that were named; of those in a directory the ones that something starts."""
        found: list[Server] = []
        for source in list(self.scripts.unused()):
            place = Place(source.file, source.line, "")
            name = f"script {source.name}"
            around = self.scripts.around(source.file, {})
            launches = launch.of_script(source, around)
            if not source.named:
                if launches or around.gaps:
                    why = "nothing in the files starts it"
                    why += "" if source.title else ": name it to have it judged"
                    self.not_judged.append(Unjudged(name, place, why))
            elif launches:
                self._note_gaps(name, around)
                found += self._servers(name, launches, {})
            else:
                why = "; ".join(around.gaps) or "it starts no gunicorn by itself"
                self.not_judged.append(Unjudged(name, place, why))
        return found

    # -- settings

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
                environ[name] = referring(entry["value"].text or "", environ)
        return environ

    def _servers(
        self,
        name: str,
        launches: Sequence[Launch],
        environ: Mapping[str, str | None],
        **context: Any,
    ) -> list[Server]:
        """One for each way in which gunicorn may be started; the developer's is left out."""
        served = [one for one in launches if "--reload" not in one.arguments] or launches
        # Where it is started in the same manner whichever way is taken, none decides.
        alike = len({(one.arguments, bool(one.holders)) for one in served}) == 1
        taken = {id(one.condition) for one in served}
        for one in served:
            ways = one.condition.ways if one.condition is not None and alike else []
            if one.condition is not None and not (ways and {*map(id, ways)} <= taken):
                self._note(
                    f"{name}: whether gunicorn is started depends on `{one.condition}`, and it is "
                    "judged as if it were"
                )
        self.judged.append(name)
        return [self._server(name, one, environ, **context) for one in served]

    def _server(
        self, name: str, one: Launch, environ: Mapping[str, str | None], **context: Any
    ) -> Server:
        environ = {**environ, **one.assigned}
        known = known_in(environ)
        in_service = configuration.service_environ(known)
        names: Mapping[str, object] = {}
        if self.config_file is not None:
            names = configuration.load_names(self.config_file, in_service)
        read = configuration.load(one.arguments, known, names)
        read_elsewhere = self.config_beside
        if "config" in read.given:
            read_elsewhere = str(read.unclear.get("config", read.cfg.config))
        has_file = self.config_file is not None or read_elsewhere is None
        has_file |= str(read_elsewhere).startswith("python:gracefulworker")
        is_complete = has_file and not read.is_open
        is_complete &= "GUNICORN_CMD_ARGS" in known or "GUNICORN_CMD_ARGS" not in environ
        if not has_file:
            reads = "reads" if "config" in read.given else "probably reads"
            self._note(f"{name}: gunicorn {reads} {read_elsewhere}: give it with -c")
        server = Server(name, one, read, is_complete, environ, self.cluster, **context)
        server.config_file = self.config_file
        self._read_ours(server, known)
        self._note_unknown(server)
        return server

    def _note_unknown(self, server: Server) -> None:
        """Say what keeps the rules silent about a server."""
        read = server.read
        if read.open_words:
            words = ", ".join(read.open_words)
            self._note(f"{server.name}: {words} is not known, and what it may set is not judged")
        unclear = read.unclear.get("worker_class")
        if unclear is not None or (server.worker is not None and server.is_delayed is None):
            self._note(
                f"{server.name}: the worker class {unclear or server.worker} is not known here: "
                "whether it serves on after SIGTERM is not judged"
            )

    def _note_gaps(self, name: str, around: Surroundings) -> None:
        for gap in around.gaps:
            self._note(f"{name}: {gap}, and is taken to pass everything on")
        for one in around.beside:
            self._note(f"{name}: beside it, {one}")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _read_ours(self, server: Server, environ: Mapping[str, str]) -> None:
        try:
            server.ours = settings.read(server.read.cfg, environ, server.read.names)
        except settings.SettingsError as error:
            server.refusal = str(error)


def _is_compose(document: Node) -> bool:
    """Whether a document has compose's services, and not those of azd, which are called so, too."""
    services = [service for _, service in document["services"].pairs()]
    is_azure = any(service["host"] and service["project"] for service in services)
    return document["services"].is_mapping and not is_azure


def _overridden(file: str) -> set[str]:
    """The compose files that one is merged into, going by its name; none if it is no override."""
    stem, dot, end = file.rpartition(".override.")
    return {f"{stem}.{one}" for one in ("yml", "yaml")} if dot and end in ("yml", "yaml") else set()


def _reads_arguments(image: dockerfile.Image, around: Surroundings) -> bool:
    """Whether what an image starts depends on arguments: a wrapper's, or those that a script uses.

    A shell form has none.
    """
    first = image.words[0] if image.words else ""
    script = around.scripts.get(first)
    if script is not None:
        return re.search(r"\$[@*1]|\$\{[@*1]", script.text) is not None
    return os.path.basename(first) in launch.WRAPPERS


def _may_start_gunicorn(document: Node) -> bool:
    """Whether a document of any kind has pods, or gunicorn in what looks like a command."""
    if any(map(document.holds, ("containers", "podSpec", "podTemplate"))):
        return True
    texts = document.texts_under(("command", "args", "cmd", "entrypoint", "startCommand"))
    return any(launch.NAMED.search(text) for text in texts)


def _triggering(pod: Pod, node: Node) -> str:
    """The image stream that OpenShift fills in a container's image from, "" if there is none."""
    for trigger in pod.workload["spec"]["triggers"]:
        change = trigger["imageChangeParams"]
        if node["name"].text in [one.text for one in change["containerNames"]]:
            return change["from"]["name"].text or ""
    return ""


def _scripts_of(config_map: Node) -> Iterator[Source]:
    """The scripts in a ConfigMap, which containers mount."""
    for name, value in config_map["data"].pairs():
        text = value.text or ""
        if name.endswith((".sh", ".bash")) or text.startswith("#!"):
            yield Source(
                value.file, "script", text, False, name, value.line + (value.is_block and 1)
            )


def _task_definition(document: Node) -> tuple[Iterable[Node], str | None] | None:
    """The containers of an ECS task definition, and its name; also of the bare list of them."""
    for task in (document, document["taskDefinition"]):
        if task["containerDefinitions"]:
            return task["containerDefinitions"], task["family"].text
    listed = list(document)
    if listed and all(one["name"].text and one["image"].text for one in listed):
        return listed, None
    return None


def _word(node: Node, environ: Mapping[str, str | None]) -> str:
    """One word of a container's command, with its place."""
    # The text of a block begins on the line after its | or >.
    line = node.line + (node.is_block and 1)
    field = node.field.rpartition("[")[0]
    text = node.text or ""
    # The shell's $NAME is no reference of Kubernetes'.
    is_literal = re.search(r"\$(?![(])", text) is not None
    return Word.at(Place(node.file, line, field), referring(text, environ), is_literal)


def read_all(
    inputs: Sequence[Source | InputError],
    config_file: str | None,
    images_by_name: Mapping[str, str] | None = None,
    target: str | None = None,
) -> Reader:
    """Return a reader that has taken in all that can be read."""
    reader = Reader(config_file, images_by_name or {}, target)
    seen: set[str] = set()
    for one in inputs:
        # A file that was named, and stands in a directory that was, counts once.
        path = os.path.realpath(one.file)
        if path in seen and one.file != "<stdin>":
            continue
        seen.add(path)
        if isinstance(one, InputError):
            reader.errors.append(one)
        else:
            reader.add(one)
    return reader
