"""One gunicorn with all that is known around it: a `Server`, which is what the rules look at.

What may be changed here: what a rule can ask of a server, its pod, and what stands beside them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from gracefulworker import settings
from gracefulworker.tools import engines
from gracefulworker.tools.configuration import Configuration
from gracefulworker.tools.manifests import dockerfile, launch, shell, units
from gracefulworker.tools.manifests.documents import Node
from gracefulworker.tools.manifests.launch import Launch
from gracefulworker.tools.manifests.sources import Place
from gracefulworker.tools.manifests.units import Stop

_REFERENCE = re.compile(r"\$\$|\$\(([\w.-]+)\)")


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
        words = _hook(self.container.node, self.environ)
        # On a worker class that is not ours the command fails at once.
        if words and self.is_delayed is False and words[:2] == ["gracefulworker", "drain"]:
            return 0.0
        return prestop_sleep(self.container.node, self.environ)

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


def prestop_sleep(container: Node, environ: Mapping[str, str | None]) -> float | None:
    """Seconds from the start of a container's preStop hook to SIGTERM, from the hook or after it.

    :returns: 0 without a hook; None for one that does not sleep, or for a time that is not known.
    """
    hook = container["lifecycle"]["preStop"]
    if not hook:
        return 0.0
    if hook["sleep"]:
        return hook["sleep"]["seconds"].number
    words = _hook(container, environ)
    slept = 0.0
    for command in _commands(words, environ):
        if _ends_gunicorn(command.words):
            return slept
        if not any("sleep" in word for word in command.words) or command.beside == "background":
            continue
        seconds = _slept(command.words, environ)
        if seconds is None or command.condition or command.in_loop:
            return None
        slept += seconds
    return slept or None


def quits_after(container: Node, is_native: bool) -> float | None:
    """Seconds from the pod's deletion until a proxy in it lets nobody in any more.

    That is at the end of its preStop hook, unless the hook itself tells it to quit. A native
    sidecar's hook is run at once as well, but its end tells the proxy nothing.

    :returns: infinity for a native sidecar that is not told; None when the hook is not understood.
    """
    hook = container["lifecycle"]["preStop"]
    slept = 0.0
    for command in _commands(_hook(container, {}), {}):
        if _tells_to_quit(command.words):
            return slept
        seconds = _slept(command.words, {})
        if is_native and seconds is None:
            return None  # it may tell the proxy in a way of its own
        slept += seconds or 0.0
    if not is_native:
        return prestop_sleep(container, {})
    return None if hook["httpGet"] else math.inf


def _hook(container: Node, environ: Mapping[str, str | None]) -> list[str]:
    """The command of a container's preStop hook, [] without one."""
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    return [referring(word.text or "", environ) for word in command]


def _commands(words: Sequence[str], environ: Mapping[str, str | None]) -> Sequence[shell.Command]:
    """What a hook's command line runs, be it one program or a shell's text; [] if that is long."""
    text = _shell_text(words)
    if text is None:
        return [shell.Command(line=1, words=list(words))] if words else []
    try:
        return shell.commands(text, environ)
    except shell.TooMuch:
        return []


def _tells_to_quit(words: Sequence[str]) -> bool:
    """Tell whether a command ends a proxy: ``kill -QUIT 1``, ``nginx -s quit``, ``caddy stop``."""
    is_kill = os.path.basename(words[0]) == "kill"
    return is_kill or any(word in ("quit", "stop", "graceful-stop") for word in words[1:])


def _ends_gunicorn(words: Sequence[str]) -> bool:
    """Tell whether a command in its container ends it: ``kill 1``, ``pkill -QUIT gunicorn``."""
    name, line = os.path.basename(words[0]), " ".join(words[1:])
    if re.search(r"(^|\s)-(s\s*)?(SIG)?(0|HUP|USR1|USR2|WINCH|TTIN|TTOU)\b", line):
        return False
    if name in ("pkill", "killall"):
        return "gunicorn" in line
    return name == "kill" and re.search(r"(^|\s)1$|\$", line) is not None


def _slept(words: Sequence[str], environ: Mapping[str, str | None]) -> float | None:
    """Seconds that a command sleeps; None when it does not, or when they are not known."""
    name = os.path.basename(words[0]) if words else ""
    if name == "busybox":
        words, name = words[1:], os.path.basename(words[1]) if len(words) > 1 else ""
    if name == "sleep":
        times = [units.seconds_of(word) for word in words[1:]]
        return None if None in times or not times else sum(time or 0.0 for time in times)
    if name.startswith("python"):
        found = re.findall(r"\bsleep\(\s*(\d+(?:\.\d+)?)\s*\)", " ".join(words))
        return sum(map(float, found)) if found else None
    return None


def _shell_text(words: Sequence[str]) -> str | None:
    """What a shell is given with -c; None when it is no shell, or is given nothing."""
    name = os.path.basename(words[0]) if words else ""
    at = next((n for n, word in enumerate(words) if re.fullmatch(r"-[a-z]*c", word)), None)
    if (name == "sh" or name in launch.SHELLS) and at is not None and at + 1 < len(words):
        return words[at + 1]
    return None


def _backends(ingress: Node) -> Iterator[str | None]:
    spec = ingress["spec"]
    yield (spec["defaultBackend"]["service"] or spec["backend"])["name"].text
    for rule in spec["rules"]:
        for path in rule["http"]["paths"]:
            backend = path["backend"]
            yield backend["service"]["name"].text or backend["serviceName"].text


def _namespace(node: Node) -> str:
    return node["metadata"]["namespace"].text or "default"


def referring(text: str, environ: Mapping[str, str | None]) -> str:
    """Put in Kubernetes' ``$(NAME)``; one that is not known becomes the shell's ``$NAME``."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        # Kubernetes leaves a reference to nothing as it is written.
        known = environ.get(match[1], match[0])
        return f"${match[1]}" if known is None else known

    return _REFERENCE.sub(value, text)
