"""The image that a Dockerfile describes, as far as its start is concerned.

What may be changed here: the instructions that are read, and which base images bring which shell.
The format: https://docs.docker.com/reference/dockerfile/
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from gracefulworker.tools.manifests.launch import Word
from gracefulworker.tools.manifests.shell import expand
from gracefulworker.tools.manifests.sources import Place, Source

#: What `sh` is in a base image, by a part of its name; anything else is taken for Debian.
SHELL_OF = (
    ("alpine", "busybox"),
    ("busybox", "busybox"),
    ("ubi", "bash"),
    ("centos", "bash"),
    ("fedora", "bash"),
    ("rocky", "bash"),
    ("alma", "bash"),
    ("amazonlinux", "bash"),
    ("oraclelinux", "bash"),
    ("lambda/python", "bash"),
)

_INSTRUCTION = re.compile(r"\s*([A-Za-z]+)\s+(.*)", re.DOTALL)
_HEREDOC = re.compile(r"<<-?\s*[\"']?([A-Za-z_]\w*)")
_ESCAPE = re.compile(r"#\s*escape\s*=\s*`", re.IGNORECASE)


@dataclass(frozen=True)
class Start:
    """An ENTRYPOINT or CMD."""

    words: tuple[str, ...]
    place: Place


@dataclass(frozen=True)
class Image:
    """What a stage of a Dockerfile leads to.

    :param sh: what `sh` is there: ``dash``, ``bash`` or ``busybox``.
    :param base: the image that it is made from, which may bring a start of its own.
    :param place: where the stage begins.
    :param copies: the files that are copied into it, each with its path there.
    """

    file: str
    sh: str
    base: str = ""
    stage: str = ""
    place: Place = field(default_factory=lambda: Place("", 0, ""))
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    entrypoint: Start | None = None
    command: Start | None = None
    stop_signal: tuple[str, Place] | None = None
    environ: dict[str, str] = field(default_factory=dict)
    copies: tuple[tuple[str, str], ...] = ()

    @property
    def origin(self) -> tuple[str, int]:
        """Its file, and the line where the stage begins."""
        return self.file, self.place.line

    def on(self, base: Image) -> Image:
        """The same image, made from one that is known."""
        return replace(
            self,
            sh=base.sh,
            entrypoint=self.entrypoint or base.entrypoint,
            command=self.command or (base.command if self.entrypoint is None else None),
            stop_signal=self.stop_signal or base.stop_signal,
            environ=base.environ | self.environ,
        )

    @property
    def words(self) -> tuple[str, ...]:
        """What it starts: ENTRYPOINT, then CMD."""
        entrypoint = self.entrypoint.words if self.entrypoint else ()
        return entrypoint + (self.command.words if self.command else ())


@dataclass(frozen=True)
class Dockerfile:
    """A Dockerfile: its stages in their order."""

    file: str
    stages: tuple[Image, ...]

    def stage(self, name: str) -> Image | None:
        """The stage of that name; None when there is none."""
        return next((one for one in self.stages if one.stage == name.lower()), None)


def read(source: Source) -> Dockerfile:
    """Return what a Dockerfile describes; without FROM it has no stage."""
    stages: list[Image] = []
    arguments: dict[str, str] = {}
    for line, name, rest in _instructions(source.text):
        if name == "FROM":
            words = [word for word in rest.split() if not word.startswith("--")]
            base = expand(words[0], arguments) if words else ""
            stage = words[2].lower() if len(words) == 3 else ""
            place = Place(source.file, line, name)
            known = next((one for one in stages if one.stage == base.lower() != ""), None)
            if known is None:
                known = Image(source.file, shell_of(base), base=base)
                if "distroless/python" in base:
                    known = replace(known, entrypoint=Start(("python3",), place))
            stages.append(replace(known, stage=stage, place=place))
        elif stages:
            stages[-1] = _apply(stages[-1], name, rest, Place(source.file, line, name))
        elif name == "ARG" and "=" in rest:
            key, _, value = rest.partition("=")
            arguments[key.strip()] = value.strip().strip("\"'")
    return Dockerfile(source.file, tuple(stages))


def shell_of(base: str) -> str:
    """What `sh` is in an image, by the name of the image."""
    return next((shell for part, shell in SHELL_OF if part in base.lower()), "dash")


def _apply(image: Image, name: str, rest: str, place: Place) -> Image:
    """Return the image after one more instruction."""
    if name == "SHELL":
        return replace(image, shell=_exec_form(rest) or image.shell)
    if name in ("CMD", "ENTRYPOINT"):
        words = _exec_form(rest)
        if words is None:
            start = Start((*image.shell, Word.at(place, rest)), place)
        else:
            start = Start(tuple(Word.at(place, word, is_literal=True) for word in words), place)
        if name == "CMD":
            return replace(image, command=start)
        # An ENTRYPOINT resets a CMD of the stage before, not one of its own.
        command = image.command
        if command is not None and command.place.line < image.place.line:
            command = None
        return replace(image, entrypoint=start, command=command)
    if name in ("COPY", "ADD"):
        return replace(image, copies=image.copies + _copies(rest))
    if name == "STOPSIGNAL":
        return replace(image, stop_signal=(rest.strip(), place))
    if name == "ENV":
        return replace(image, environ=image.environ | _environ(rest, image.environ))
    return image


def _exec_form(rest: str) -> tuple[str, ...] | None:
    try:
        words = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    is_words = isinstance(words, list) and all(isinstance(word, str) for word in words)
    return tuple(words) if is_words else None


def _copies(rest: str) -> tuple[tuple[str, str], ...]:
    """The files of a COPY, which are not those of another stage."""
    if "--from" in rest:
        return ()
    words = [word for word in _exec_form(rest) or rest.split() if not word.startswith("--")]
    if len(words) < 2:
        return ()
    *files, target = words
    if len(files) > 1 or target.endswith("/") or posixpath.basename(target) in (".", ""):
        return tuple((file, posixpath.join(target, posixpath.basename(file))) for file in files)
    return ((files[0], target),)


def _environ(rest: str, known: dict[str, str]) -> dict[str, str]:
    first, _, value = rest.strip().partition(" ")
    if "=" not in first:  # ENV NAME the value
        return {first: expand(value.strip(), known)}
    pairs = re.findall(r"(\w+)=(\"[^\"]*\"|'[^']*'|\S*)", rest)
    return {name: expand(text.strip("\"'"), known) for name, text in pairs}


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, name in capitals and the rest, continued lines joined, of each instruction."""
    lines = text.splitlines()
    escape = "`" if lines and _ESCAPE.match(lines[0]) else "\\"
    number = 0
    while number < len(lines):
        first, line = number, lines[number]
        number += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        joined = line.rstrip()
        while joined.endswith(escape) and number < len(lines):
            following = lines[number].rstrip()
            number += 1
            # Comments and empty lines may stand between the parts.
            if following and not following.lstrip().startswith("#"):
                joined = joined[:-1] + " " + following
        match = _INSTRUCTION.match(joined.removesuffix(escape))
        if match is None:
            continue
        name = match[1].upper()
        if name in ("RUN", "COPY", "ADD"):
            for delimiter in _HEREDOC.findall(match[2]):
                while number < len(lines) and lines[number].strip() != delimiter:
                    number += 1
                number += 1
        yield first + 1, name, match[2].strip()
