"""What platforms start, and how they stop it: a `Unit` for each program in what was given.

Kubernetes' pods, compose, ECS, Cloud Run and Knative, systemd, supervisord and Fly.io each say it
in their own way; a `Unit` says it in one. What may be changed here: the kinds of file that are
read, and each platform's own defaults, which stand in docs/platforms.md too.
"""

from __future__ import annotations

import configparser
import importlib
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gracefulworker.tools.manifests import shell
from gracefulworker.tools.manifests.documents import Node
from gracefulworker.tools.manifests.launch import Word
from gracefulworker.tools.manifests.sources import InputError, Place, Source, unrendered

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(h|min|ms|m|sec|s|)(?![a-z])")
_REFERENCE = re.compile(r"\$\$|\$\(([\w.-]+)\)")
_UNITS = {"h": 3600.0, "min": 60.0, "m": 60.0, "sec": 1.0, "s": 1.0, "": 1.0, "ms": 0.001}


@dataclass(frozen=True)
class Stop:
    """How a platform ends what it runs.

    :param label: what its period is called there.
    :param seconds: from the signal to SIGKILL; None when that is not known.
    :param place: where it is set, or would be.
    :param is_set: whether the files do.
    :param written: how it is written, with ``{}`` for the seconds; None where it cannot be changed.
    :param signal: the signal that is sent, with its place and how it is put right.
    :param to: who gets it: ``pid1`` (PID 1 of a container), ``child`` (of an init or a process
        manager, which does not wait for others) or ``all`` processes.
    """

    label: str
    seconds: float | None
    place: Place
    is_set: bool
    written: str | None
    signal: tuple[str, Place, str] | None = None
    to: str = "pid1"


@dataclass(frozen=True)
class Unit:
    """One program that a platform starts.

    :param words: its command line, without what only its image knows.
    :param arguments: what stands in the place of the image's CMD.
    :param environ: its variables; None where the value comes from elsewhere.
    :param image: the name of its image, "" where there is none.
    :param dockerfiles: where the file may be that its image is built from, if the platform says so.
    :param node: the container in its manifest.
    """

    name: str
    place: Place
    words: Sequence[str] = ()
    arguments: Sequence[str] = ()
    environ: Mapping[str, str | None] = field(default_factory=dict)
    image: str = ""
    dockerfiles: Sequence[str] = ()
    target: str = ""
    stop: Stop | None = None
    node: Node | None = None

    @property
    def base(self) -> str:
        """The last part of the image's name, without tag and digest."""
        return base_of(self.image)

    @property
    def repository(self) -> str:
        """The image's name without tag and digest."""
        name = self.image.split("@")[0]
        directory, slash, last = name.rpartition("/")
        return directory + slash + last.split(":")[0]


def base_of(image: str) -> str:
    """The last part of an image's name, without tag and digest."""
    return image.split("@")[0].rsplit("/", 1)[-1].split(":")[0]


def seconds_of(text: str) -> float | None:
    """Seconds of a duration as in ``90``, ``1m30s`` or ``5min 20s``; None for anything else."""
    text = text.strip().lower()
    if not text or _DURATION.sub("", text).strip():
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


def referring(text: str, environ: Mapping[str, str | None]) -> str:
    """Put in Kubernetes' ``$(NAME)``; one that is not known becomes the shell's ``$NAME``."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        # Kubernetes leaves a reference to nothing as it is written.
        known = environ.get(match[1], match[0])
        return f"${match[1]}" if known is None else known

    return _REFERENCE.sub(value, text)


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return []


# -- compose


def of_compose(*documents: Node) -> Iterator[Unit]:
    """The services of a compose file, and of those that are merged into it, in their order."""
    named: dict[str, list[Node]] = {}
    for services in (one["services"] for one in reversed(documents)):
        for name, node in services.pairs():
            named.setdefault(name, []).extend(_extended(services, node))
    for name, nodes in named.items():
        node, service = nodes[0], _Service(nodes)
        period = service["stop_grace_period"]
        signal = service["stop_signal"]
        stop = Stop(
            "stop_grace_period",
            seconds_of(_interpolated(period)) if period else 10.0,
            period.place,
            bool(period),
            "stop_grace_period: {}s",
            _signal(signal, "remove it, so that SIGTERM is sent"),
            "child" if service["init"].text in ("true", "yes") else "pid1",
        )
        build = service["build"]
        context = _interpolated(build if build.text else build["context"]) or "."
        paths: list[str] = []
        if build:
            paths = _below(documents[0].file, context, _interpolated(build["dockerfile"]))
        command = service["command"]
        environ: dict[str, str | None] = {}
        for one in reversed(service.nodes):
            environ |= _compose_environ(one)
        yield Unit(
            f"compose service {name}",
            (command or service["entrypoint"] or node).place,
            _compose_words(service["entrypoint"]),
            _compose_words(command),
            environ,
            _interpolated(service["image"]),
            paths,
            _interpolated(build["target"]),
            stop,
        )


def _below(file: str, context: str, name: str) -> list[str]:
    """Where a Dockerfile may be: below the compose file's directory, or below one above it.

    A path is relative to the first of several files, which may stand higher up.
    """
    directory, found = os.path.dirname(file), []
    while True:
        found.append(os.path.normpath(os.path.join(directory, context, name or "Dockerfile")))
        if directory in ("", os.sep):
            return found
        directory = os.path.dirname(directory)


@dataclass(frozen=True)
class _Service:
    """A service, and those that it extends: the nearest that has a key counts."""

    nodes: Sequence[Node]

    def __getitem__(self, key: str) -> Node:
        return next((node[key] for node in self.nodes if node[key]), self.nodes[0][key])


def _extended(services: Node, node: Node) -> list[Node]:
    """A service, then what it extends in the same file, and so on."""
    found = [node]
    while not node["extends"]["file"]:
        name = node["extends"].text or node["extends"]["service"].text or ""
        node = services[name]
        if not node or any(node.line == one.line for one in found):
            break
        found.append(node)
    return found


def _interpolated(node: Node) -> str:
    """Compose puts in variables of its own environment, with their defaults; ``$$`` is a ``$``."""
    parts = (node.text or "").split("$$")
    return "$".join(shell.expand(part, {}) for part in parts)


def _compose_words(node: Node) -> list[str]:
    """A text is split as a shell would, and not run by one."""
    place = Place(node.file, node.line + (node.is_block and 1), node.field)
    texts = _split(_interpolated(node)) if node.text else [_interpolated(item) for item in node]
    return [Word.at(place, text) for text in texts]


def _compose_environ(service: Node) -> dict[str, str | None]:
    node = service["environment"]
    environ: dict[str, str | None] = {}
    for key, value in node.pairs():
        environ[key] = _interpolated(value) if value else None
    for item in node:
        key, equals, text = _interpolated(item).partition("=")
        environ[key] = text if equals else None
    return environ


def _signal(node: Node, fix: str) -> tuple[str, Place, str] | None:
    return (node.text or "", node.place, fix) if node else None


# -- ECS, Cloud Run, Knative


def of_task_definition(containers: Iterable[Node], family: str | None) -> Iterator[Unit]:
    """The containers of an ECS task definition, which a family is the name of."""
    for node in containers:
        period = node["stopTimeout"]
        has_init = node["linuxParameters"]["initProcessEnabled"].text == "true"
        stop = Stop(
            "stopTimeout",
            period.number if period else 30.0,
            period.place,
            bool(period),
            '"stopTimeout": {}',
            to="child" if has_init else "pid1",
        )
        yield Unit(
            f"ECS task {family or 'definition'}, container {node['name'].text or ''}",
            (node["command"] or node["entryPoint"] or node["image"] or node).place,
            [item.text or "" for item in node["entryPoint"]],
            [item.text or "" for item in node["command"]],
            {e["name"].text or "": e["value"].text for e in node["environment"]},
            node["image"].text or "",
            stop=stop,
        )


def is_cloud_run(document: Node) -> bool:
    """Whether a Knative Service is one of Cloud Run, as its annotations and labels say."""
    template = document["spec"]["template"]["metadata"]
    return any(
        "googleapis.com" in key
        for metadata in (document["metadata"], template)
        for kind in ("annotations", "labels")
        for key, _ in metadata[kind].pairs()
    )


def knative_stop(document: Node) -> Stop:
    """Cloud Run's period is fixed; Knative's depends on how it was installed."""
    place = document["spec"]["template"]["spec"].place
    if is_cloud_run(document):
        return Stop("Cloud Run's period", 10.0, place, True, None)
    return Stop("Knative's period", None, place, False, None)


# -- systemd and supervisord


@dataclass(frozen=True)
class _Entry:
    value: str
    place: Place


def _of_sections(source: Source, found: dict[str, dict[str, list[_Entry]]]) -> None:
    """Add the keys of a unit file by section, each with all its values: systemd.syntax(7).

    A line goes on after a backslash. An empty value takes back all before it, also those of the
    files that were read before.
    """
    section = ""
    key = ""
    is_continued = False
    for number, line in enumerate(source.text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        entries = found.setdefault(section, {})
        if key and is_continued:
            last = entries[key][-1]
            entries[key][-1] = _Entry(f"{last.value} {stripped.rstrip(chr(92))}", last.place)
        elif stripped.startswith("[") and stripped.endswith("]"):
            section, key = stripped[1:-1], ""
        elif "=" in stripped:
            key, _, value = (part.strip() for part in stripped.partition("="))
            entry = _Entry(
                value.rstrip("\\").strip(), Place(source.file, number, f"{section}.{key}")
            )
            entries[key] = [*entries.get(key, []), entry] if value else []
        is_continued = stripped.endswith("\\") and bool(entries.get(key))


def _other_signal(signal: _Entry | None, command: _Entry | None) -> tuple[str, Place, str] | None:
    """What a unit is stopped with: KillSignal, or a kill in ExecStop, which comes first."""
    fix = "remove it, so that SIGTERM is sent"
    sent = re.search(r"\bkill\s+-(?:s\s*)?(\w+)", command.value) if command else None
    if command is not None and sent is not None:
        return sent[1], command.place, fix
    return (signal.value, signal.place, fix) if signal is not None else None


def of_systemd(sources: Sequence[Source]) -> Iterator[Unit]:
    """The service of a systemd unit: its file, then its drop-ins."""
    sections: dict[str, dict[str, list[_Entry]]] = {}
    for source in sources:
        _of_sections(source, sections)
    service = sections.get("Service", {})
    starts = service.get("ExecStart", [])
    if not starts:
        return

    def last(key: str) -> _Entry | None:
        return service[key][-1] if service.get(key) else None

    environ: dict[str, str | None] = {}
    for entry in service.get("Environment", []):
        for pair in _split(entry.value):
            name, equals, value = pair.partition("=")
            if equals:
                environ[name] = value
    start = starts[-1]
    period = last("TimeoutStopSec") or last("TimeoutSec")
    kill_mode = last("KillMode")
    signal = _other_signal(last("KillSignal"), last("ExecStop"))
    text = re.sub(r"\A[@:+!|-]+", "", start.value)
    stop = Stop(
        "TimeoutStopSec",
        # 0 is no limit there.
        (seconds_of(period.value) or None) if period else 90.0,
        (period or start).place,
        period is not None,
        "TimeoutStopSec={}",
        signal,
        "all" if kill_mode is None or kill_mode.value == "control-group" else "child",
    )
    if service.get("EnvironmentFile"):  # its variables win
        environ = dict.fromkeys(environ)
    words: list[str] = []
    for word in _split(text):
        # systemd.service(5): $NAME as a word of its own is split, ${NAME} is not.
        expanded = shell.expand(word, environ)
        words += expanded.split() if re.fullmatch(r"\$\w+", word) else [expanded]
    yield Unit(f"unit {sources[0].unit}", start.place, words, environ=environ, stop=stop)


def of_supervisord(source: Source) -> Iterator[Unit]:
    """The programs of supervisord's configuration.

    :raises InputError: when it cannot be read.
    """
    # As supervisor.options.UnhosedConfigParser has it.
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    try:
        parser.read_string(source.text)
    except configparser.Error as error:
        if "{%" in source.text:
            raise unrendered(source.file, 0) from None
        problem = str(error).splitlines()[0]
        raise InputError(source.file, 0, f"is not read: {problem}") from None
    for section in parser.sections():
        options = parser[section]
        if not section.startswith(("program:", "fcgi-program:")) or not options.get("command"):
            continue

        def place(key: str, section: str = section) -> Place:
            line = _line_in_section(source.text, section, key)
            return Place(source.file, line, f"{section}.{key}")

        environ: dict[str, str | None] = {}
        for name, *values in re.findall(
            r"(\w+)=(?:\"([^\"]*)\"|'([^']*)'|([^,]*))", options.get("environment", "")
        ):
            environ[name] = _from_supervisord("".join(values))
        signal = None
        if "stopsignal" in options:
            fix = "remove it, so that SIGTERM is sent"
            signal = (options["stopsignal"], place("stopsignal"), fix)
        is_set = "stopwaitsecs" in options
        to_all = options.get("stopasgroup", "false").lower() in ("true", "1", "yes", "on")
        stop = Stop(
            "stopwaitsecs",
            seconds_of(options.get("stopwaitsecs", "10")),
            place("stopwaitsecs" if is_set else "command"),
            is_set,
            "stopwaitsecs={} (and in a container a period of its own that is longer)",
            signal,
            "all" if to_all else "child",
        )
        words = _split(_from_supervisord(options["command"]))
        name = f"supervisord's {section}"
        yield Unit(name, place("command"), words, environ=environ, stop=stop)


def _line_in_section(text: str, section: str, key: str) -> int:
    """The line that sets a key in an INI or TOML file's section; 1 when it is not found."""
    now = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[([^]]*)\]", line)
        if header is not None:
            now = header[1].strip()
        elif now == section and re.match(rf"\s*\"?{re.escape(key)}\"?\s*[=:]", line, re.IGNORECASE):
            return number
    return 1


def _from_supervisord(text: str) -> str:
    """``%(ENV_NAME)s`` is the value of a variable, which is not known here."""
    return re.sub(r"%\((?:ENV_)?(\w+)\)[sd]", r"${\1}", text).replace("%%", "%")


# -- Fly.io


def of_fly(source: Source) -> Iterator[Unit]:
    """The processes of a fly.toml.

    :raises InputError: when it is not TOML, or this Python cannot read it.
    """
    try:
        tomllib: Any = importlib.import_module("tomllib")
    except ModuleNotFoundError:
        raise InputError(source.file, 0, "is not read: Python reads TOML from 3.11 on") from None
    try:
        data: dict[str, Any] = tomllib.loads(source.text)
    except (ValueError, RecursionError) as error:
        raise InputError(source.file, 0, f"is not valid TOML: {error}") from None

    def place(key: str, section: str = "") -> Place:
        return Place(source.file, _line_in_section(source.text, section, key), key)

    period = data.get("kill_timeout")
    table = data.get("env")
    environ = {str(k): str(v) for k, v in table.items()} if isinstance(table, dict) else {}
    stop = Stop(
        "kill_timeout",
        seconds_of(str(period)) if period is not None else 5.0,
        place("kill_timeout"),
        period is not None,
        "kill_timeout = {}",
        (
            str(data.get("kill_signal", "SIGINT")),
            place("kill_signal"),
            'kill_signal = "SIGTERM" at the top of fly.toml, or GRACEFUL_SIGINT = "true" in [env]'
            + ("" if period is not None else ", and kill_timeout = 30 beside it"),
        ),
        "child",
    )
    build = data.get("build")
    build = build if isinstance(build, dict) else {}
    directory = os.path.dirname(source.file)
    path = os.path.join(directory, str(build.get("dockerfile", "Dockerfile")))
    common = Unit(
        "Fly.io app",
        place("app"),
        environ=environ,
        image=str(build.get("image", "")),
        dockerfiles=() if build.get("image") else (path,),
        target=str(build.get("build-target", "")),
        stop=stop,
    )
    processes = data.get("processes")
    if not isinstance(processes, dict) or not processes:
        yield common
        return
    for name, command in processes.items():
        yield replace(
            common,
            name=f"Fly.io process {name}",
            place=place(name, "processes"),
            arguments=_split(str(command)),
        )
