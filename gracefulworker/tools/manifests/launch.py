"""From a container's command line, through wrappers and shells, to gunicorn's own arguments.

What may be changed here: `WRAPPERS` (programs that run the rest of their command line), and what
each shell does with its last command.

Which shells stay above what they run was tried with ``SHELL -c TEXT`` (dash 0.5.12, bash 5.2,
busybox 1.35): dash stays unless the command has an ``exec``; busybox replaces itself with the last
command, unless that one stands in a pipeline; bash does so too, unless it has a redirection (before
5.1 only with a single command). In a script file, any shell stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gracefulworker.tools.manifests import shell
from gracefulworker.tools.manifests.sources import Place, Source

#: Programs that replace themselves with what is named after their own options, or pass SIGTERM on
#: to it. Any word of theirs before that is skipped.
WRAPPERS = frozenset(
    {
        *("env", "nice", "ionice", "nohup", "stdbuf", "setpriv", "setsid", "gosu", "su-exec"),
        *("chpst", "sudo", "tini", "dumb-init", "catatonit", "dotenv", "envdir", "doppler"),
        *("chamber", "infisical", "vault-env", "launcher", "ddtrace-run", "newrelic-admin"),
        *("opentelemetry-instrument", "elasticapm-run", "poetry", "uv", "uvx", "pipenv", "pdm"),
        *("pipx", "rye", "hatch", "conda", "micromamba", "mamba", "coverage", "watchmedo"),
        *("tini-static", "docker-init", "sentry-run", "scout-apm", "memray", "py-spy"),
    }
)

#: The shells, each with the one whose manners it has; plain `sh` depends on the image.
SHELLS = {
    "dash": "dash",
    "ash": "busybox",
    "busybox": "busybox",
    "bash": "bash",
    "zsh": "bash",
    "ksh": "bash",
    "mksh": "bash",
}

_PYTHON = re.compile(r"(python|pypy)[\d.]*\Z")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)

#: Scripts that run scripts: as deep as one looks, since they can run each other in a circle.
_MAX_DEPTH = 8


class Word(str):
    """A word of a command line that knows where it stands, as those of a manifest do."""

    place: Place

    @classmethod
    def at(cls, place: Place, text: str) -> Word:
        """Return a word; a text that a shell will read begins at its place."""
        word = cls(text)
        word.place = place
        return word


@dataclass(frozen=True)
class Launch:
    """A gunicorn that is started.

    :param arguments: gunicorn's own, without its name.
    :param place: where it stands.
    :param holder: the shell that stays above it and keeps SIGTERM to itself, as in ``sh -c`` or
        ``a script``; None when SIGTERM arrives.
    :param assigned: environment variables that are set on the way to it.
    """

    arguments: tuple[str, ...]
    place: Place
    holder: str | None = None
    assigned: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Surroundings:
    """What a command line is read in.

    :param scripts: the scripts that were given, by the last part of their path.
    :param environ: the environment as far as it is known (None: a value that is not).
    :param sh: what plain ``sh`` is.
    """

    scripts: Mapping[str, Source]
    environ: Mapping[str, str | None]
    sh: str = "dash"
    depth: int = 0


def find(words: Sequence[str], place: Place, around: Surroundings) -> list[Launch]:
    """Return each gunicorn that the command line starts; mostly one, or none."""
    if not words or around.depth > _MAX_DEPTH:
        return []
    name, rest = os.path.basename(words[0]), words[1:]
    place = getattr(words[0], "place", place)
    if name == "gunicorn":
        return [Launch(tuple(rest), place)]
    if _PYTHON.match(name):
        return _from_python(rest, place, around)
    if name == "sh" or name in SHELLS:
        return _from_shell(SHELLS.get(name, around.sh), name, rest, place, around)
    if name in around.scripts:
        return _from_script(around.scripts[name], rest, around)
    if name in WRAPPERS or name.endswith(".sh") or "entrypoint" in name:
        return _from_wrapper(name, rest, place, around)
    return []


def in_text(
    text: str, place: Place, around: Surroundings, positional: Sequence[str] = ()
) -> list[tuple[shell.Command, Launch]]:
    """Return each gunicorn that a shell text starts, with the command that does so."""
    around = replace(around, depth=around.depth + 1)
    environ = dict(around.environ)
    assigned: dict[str, str] = {}
    found = []
    for command in shell.commands(text):
        here = {name: shell.expand(value, environ) for name, value in command.assigned.items()}
        words = command.words
        if words[:1] == ["export"] or not words:
            for word in words[1:]:
                match = _ASSIGNMENT.match(word)
                if match is not None:
                    here[match[1]] = shell.expand(match[2], environ)
            environ |= here
            assigned |= here
            continue
        expanded: list[str] = []
        for word in words:
            expanded += positional if word in ("$@", "$*") else [shell.expand(word, environ)]
        line = place.line + command.line - 1
        at = replace(place, line=line)
        for launch in find(expanded, at, around):
            given = {**assigned, **here, **launch.assigned}
            found.append((command, replace(launch, assigned=given)))
    return found


def _from_python(words: Sequence[str], place: Place, around: Surroundings) -> list[Launch]:
    """``python -X dev -m gunicorn ...``, and a script that is named after python's options."""
    for number, word in enumerate(words):
        if word == "-m":
            module = words[number + 1] if number + 1 < len(words) else ""
            if module in ("gunicorn", "gunicorn.app.wsgiapp"):
                return [Launch(tuple(words[number + 2 :]), place)]
            # `python -m ddtrace.commands.ddtrace_run gunicorn`, `python -m coverage run -m ...`
            return _from_wrapper(module, words[number + 2 :], place, around)
        if os.path.basename(word) == "gunicorn":
            return [Launch(tuple(words[number + 1 :]), place)]
        if word == "-c" or word.endswith(".py"):
            break
    return []


def _from_wrapper(
    name: str, words: Sequence[str], place: Place, around: Surroundings
) -> list[Launch]:
    """What a wrapper runs begins with the first word of its command line that is known here."""
    assigned = {}
    for number, word in enumerate(words):
        match = _ASSIGNMENT.match(word)
        if match is not None:
            assigned[match[1]] = match[2]
        found = find(words[number:], place, replace(around, depth=around.depth + 1))
        if found:
            # They send SIGTERM to the whole process group, so a shell does not matter.
            reaches_all = name == "dumb-init" and not {"-c", "--single-child"} & set(words[:number])
            reaches_all |= name.startswith("tini") and "-g" in words[:number]
            return [
                replace(
                    launch,
                    holder=None if reaches_all else launch.holder,
                    assigned={**assigned, **launch.assigned},
                )
                for launch in found
            ]
    return []


def _from_shell(
    kind: str, name: str, words: Sequence[str], place: Place, around: Surroundings
) -> list[Launch]:
    """``sh -c TEXT [NAME ARGUMENTS...]``, ``bash -euo pipefail -c TEXT``, ``sh SCRIPT``."""
    if name == "busybox":
        words = words[1:]
    for number, word in enumerate(words):
        if word.startswith("-") and not word.startswith("--") and "c" in word[1:]:
            texts = words[number + 1 :]
            text = texts[0] if texts else ""
            place = getattr(text, "place", place)
            return [
                replace(launch, holder=_holder(command, kind, name, text) or launch.holder)
                for command, launch in in_text(text, place, around, texts[2:])
            ]
        script = os.path.basename(word)
        if script in around.scripts:
            return _from_script(around.scripts[script], words[number + 1 :], around)
    return []


def _from_script(source: Source, words: Sequence[str], around: Surroundings) -> list[Launch]:
    place = Place(source.file, 1, source.name)
    return [
        replace(launch, holder=script_holder(source.text, command) or launch.holder)
        for command, launch in in_text(source.text, place, around, words)
    ]


def script_holder(text: str, command: shell.Command) -> str | None:
    """The shell that runs a script stays, whichever it is, unless the command has an exec."""
    if (command.is_exec and not _is_beside(command)) or _traps_sigterm(text):
        return None
    return "the shell that runs this script"


def _holder(command: shell.Command, kind: str, name: str, text: str) -> str | None:
    """Tell what stays above a command of ``-c TEXT``."""
    if _traps_sigterm(text) or (command.is_exec and not _is_beside(command)):
        return None
    all_commands = shell.commands(text)
    is_last = all_commands[-1].line == command.line and all_commands[-1].words == command.words
    keeps = kind == "dash" or (kind == "bash" and command.is_redirected)
    if is_last and not keeps and not _is_beside(command):
        return None
    return f"`{name} -c`" if name == kind else f"`{name} -c` ({kind})"


def _is_beside(command: shell.Command) -> bool:
    """In a pipeline, or in the background: an exec replaces a subshell only."""
    return "|" in (command.before, command.after) or command.after in ("&", "|&")


def _traps_sigterm(text: str) -> bool:
    return re.search(r"\btrap\b[^\n]*\b(SIG)?TERM\b|\btrap\b[^\n]*\b15\b", text) is not None
