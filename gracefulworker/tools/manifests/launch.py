"""From a container's command line, through wrappers and shells, to gunicorn's own arguments.

What may be changed here: `WRAPPERS` (programs that run the rest of their command line), and what
each shell does with its last command.

Which shells stay above what they run was tried with ``SHELL -c TEXT`` (dash 0.5.12, bash 5.2,
busybox 1.35). dash stays unless the command has an ``exec``. bash replaces itself with the last
command if nothing is around it and it has no redirection, and its line is either one list of ``&&``
and ``||``, or has a ``;`` before it. busybox does so too, within an ``if``, a ``case``, a group or
a subshell as well, and with a redirection; but not if the text ends with a newline. None does so in
a pipeline, in a function or a loop, or after a ``trap``. In a script file, any shell stays.

A shell that stays ignores SIGTERM as PID 1, since it has no handler for it. Below an init (tini,
dumb-init with its process group, too) it is ended by it, and the init then ends the container,
whatever else has got the signal; this was tried in PID namespaces.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from gracefulworker.tools.configuration import DOLLAR
from gracefulworker.tools.manifests import shell
from gracefulworker.tools.manifests.sources import Place, Source

#: Programs that run as PID 1, pass SIGTERM on to their child and end when it has ended.
INITS = frozenset({"tini", "tini-static", "dumb-init", "catatonit", "docker-init", "s6-svscan"})

#: Programs that replace themselves with what is named after their own options, or pass SIGTERM on
#: to it. Any word of theirs before that is skipped.
WRAPPERS = INITS | {
    *("env", "nice", "ionice", "nohup", "stdbuf", "setpriv", "setsid", "gosu", "su-exec"),
    *("chpst", "sudo", "dotenv", "envdir", "doppler", "timeout", "numactl", "taskset"),
    *("chamber", "infisical", "vault-env", "launcher", "ddtrace-run", "newrelic-admin"),
    *("opentelemetry-instrument", "elasticapm-run", "poetry", "uv", "uvx", "pipenv", "pdm"),
    *("pipx", "rye", "hatch", "conda", "micromamba", "mamba", "coverage", "watchmedo"),
    *("sentry-run", "scout-apm", "memray", "py-spy", "with-contenv", "dockerize"),
    *("wait-for", "wait-for-it", "aws-vault", "op", "sops", "jemalloc.sh", "time", "chroot"),
    *("s6-setuidgid", "s6-applyuidgid", "s6-envdir", "s6-envuidgid", "s6-notifyoncheck"),
}

#: Programs that run a Procfile.
OF_PROCFILES = frozenset({"honcho", "foreman", "hivemind", "overmind", "forego", "goreman"})

#: Programs that start others, as they are told elsewhere.
SUPERVISORS = OF_PROCFILES | {"supervisord", "circusd", "runsvdir", "s6-svscan"}

#: Programs whose arguments may name gunicorn without starting it.
_MENTIONING = frozenset(
    {
        *("pip", "pip3", "echo", "printf", "pkill", "pgrep", "killall", "grep", "which", "type"),
        *("mkdir", "chown", "chmod", "rm", "touch", "cp", "mv", "ln", "ls", "cat", "sed", "tee"),
        *("install", "useradd", "adduser", "groupadd", "apt-get", "apk", "hash", "stat", "id"),
    }
)

#: gunicorn as a word of a command line, or of a text in one.
NAMED = re.compile(r"(^|[\s/;&'\"])gunicorn(\s|\Z)")

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

#: gunicorn3 is Debian's, gunicorn-3.9 Fedora's.
_GUNICORN = re.compile(r"gunicorn(-?3(\.\d+)?)?")

#: What starts a program in Python.
_STARTING = re.compile(r"\bexec[lv]|subprocess|\bsystem\(|\bgunicorn\.app\b|\.py\b")

_PYTHON = re.compile(r"(python|pypy)[\d.]*\Z")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)

#: What is a script, by its name, and what may well be one.
_SCRIPT = re.compile(r"\.(sh|bash)\Z|entrypoint[^/]*\Z", re.IGNORECASE)
_PERHAPS_SCRIPT = re.compile(
    r"(/|^bin/)(start|run|boot|launch|serve|init|up|web|cmd|go)(\b|_)[^/]*\Z", re.IGNORECASE
)

#: Commands of others that are known to start gunicorn, unless they are told not to.
STARTERS = frozenset({("airflow", "webserver"), ("mlflow", "server"), ("mlflow", "ui")})

#: With one of these gunicorn prints something and ends.
NO_SERVER = frozenset({"--help", "-h", "--version", "-v", "--check-config", "--print-config"})

#: Scripts that run scripts: as deep as one looks, since they can run each other in a circle.
_MAX_DEPTH = 8


class Word(str):
    """A word of a command line that knows where it stands, as those of a manifest do.

    :param is_literal: whether a ``$`` in it is one, unless a shell reads the word.
    """

    place: Place
    is_literal: bool

    @classmethod
    def at(cls, place: Place, text: str, is_literal: bool = False) -> Word:
        """Return a word; a text that a shell will read begins at its place."""
        word = cls(text)
        word.place, word.is_literal = place, is_literal
        return word


#: How a gap ends that may be a gunicorn.
MAY_START = "may start gunicorn, in a way that is not read here"

#: What clients see of some of the shells that stay.
CUT_AT_ONCE = "every request under way is cut at once"

#: What is to be done with a command below a shell that stays, by where it stands.
_FIXES = {
    "": "write `exec` before `{}` in the shell (and no trap)",
    "subshell": "take `{}` out of the parentheses, and write `exec` before it",
    "pipeline": "take `{}` out of the pipeline, and write `exec` before it (its output may go on "
    "to a program all the same: `exec gunicorn ... > >(tee FILE)` in bash)",
    "background": "start gunicorn last, in the foreground and with `exec`, and what runs beside it "
    "somewhere else; or have the shell wait for it in a trap: trap 'kill -TERM $PID; wait $PID' "
    "TERM",
}


#: Where no variable has to be put in, which needs a shell.
_WITHOUT_SHELL = ', or start gunicorn without a shell (["gunicorn", "app:app"], the exec form)'


@dataclass(frozen=True)
class Holder:
    """A shell that stays above gunicorn, and why SIGTERM ends there.

    :param name: as in "the shell that runs this script".
    :param place: where it starts what leads to gunicorn.
    :param reason: the rest of a sentence that begins with the name.
    :param effect: what clients see; "" where that is up to what runs the shell.
    """

    name: str
    place: Place
    fix: str
    reason: str = "does not pass SIGTERM on"
    effect: str = ""


@dataclass(frozen=True)
class Launch:
    """A gunicorn that is started.

    :param arguments: gunicorn's own, without its name.
    :param place: where it stands.
    :param holders: the shells that keep SIGTERM to themselves, from PID 1 on; none when it arrives.
    :param has_init: whether PID 1 is an init, which passes SIGTERM on to what it started.
    :param assigned: environment variables that are set on the way to it.
    :param condition: what decides whether it is started, when that is not known.
    """

    arguments: tuple[str, ...]
    place: Place
    holders: tuple[Holder, ...] = ()
    has_init: bool = False
    assigned: Mapping[str, str] = field(default_factory=dict)
    condition: shell.Condition | None = None


class Given(Protocol):
    """The scripts that were given."""

    def get(self, path: str) -> Source | None:
        """The script that a command line calls so; None when it was not given."""

    def copied(self, path: str) -> str | None:
        """The path of the file that an image has by this name; None when that is not known."""


@dataclass(frozen=True)
class Surroundings:
    """What a command line is read in.

    :param scripts: the scripts that were given, by the paths that they may have there.
    :param environ: the environment as far as it is known (None: a value that is not).
    :param sh: what plain ``sh`` is.
    :param gaps: collects why it is not known what is started: sentences.
    :param beside: collects what may start another gunicorn where one is found: sentences.
    :param supervised: the supervisors whose configuration is among the files.
    :param used: collects the origins of the scripts that are run.
    """

    scripts: Given
    environ: Mapping[str, str | None]
    sh: str = "dash"
    depth: int = 0
    gaps: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    supervised: frozenset[str] = frozenset()
    used: set[tuple[str, int]] = field(default_factory=set)

    def miss(self, gap: str) -> None:
        """Note something that could not be followed."""
        if gap not in self.gaps:
            self.gaps.append(gap)


def find(words: Sequence[str], place: Place, around: Surroundings) -> list[Launch]:
    """Return each gunicorn that the command line starts; mostly one, or none.

    When there is none, `around.gaps` says what could not be followed, if anything.
    """
    if not words or words[0].startswith("-") or around.depth > _MAX_DEPTH:
        return []
    name, rest = os.path.basename(words[0]), words[1:]
    place = getattr(words[0], "place", place)
    if _GUNICORN.fullmatch(name):
        if NO_SERVER & set(rest):
            around.miss("gunicorn is only asked to print something, and ends")
            return []
        return [Launch(tuple(map(_final, rest)), place)]
    if _PYTHON.match(name):
        return _from_python(rest, place, around)
    if name == "sh" or name in SHELLS:
        return _from_shell(SHELLS.get(name, around.sh), name, rest, place, around)
    if name in ("su", "runuser") and around.sh != "busybox":
        return _from_su(name, rest, place, around)
    if name == "su" and "-c" in rest:
        return _from_shell("busybox", "sh", rest[rest.index("-c") :], place, around)
    if (script := around.scripts.get(words[0])) is not None:
        return _from_script(script, rest, around)
    if name in WRAPPERS:
        return _from_wrapper(name, rest, place, around)
    return _from_unknown(name, words, place, around)


def _final(word: str) -> str:
    """A word as it reaches gunicorn."""
    is_literal = isinstance(word, Word) and word.is_literal
    return word.replace("$", DOLLAR) if is_literal else word


def _from_unknown(
    name: str, words: Sequence[str], place: Place, around: Surroundings
) -> list[Launch]:
    """A script that was not given, a variable, or another program."""
    said = f"`{words[0]}` ({os.path.basename(place.file)}:{place.line})"
    if _may_run_the_rest(words[0]):
        # What it does with its words is not known.
        rest = [Word.at(getattr(word, "place", place), word) for word in words[1:]]
        found = _from_wrapper(name, rest, place, replace(around, gaps=[]))
        if shell.UNKNOWN in words[0]:
            if not found:
                around.miss(f"{said} is not known")
        elif _SCRIPT.search(words[0]):
            around.miss(f"the script {around.scripts.copied(words[0]) or words[0]} was not given")
        else:
            around.miss(f"{said} was not given, if it is a script")
        return found
    named = [word for word in words if NAMED.search(word) or word.startswith("--gunicorn")]
    if name in around.supervised:
        return []
    if name in SUPERVISORS:
        around.miss(f"{name} starts what its own configuration says: give that")
    elif NAMED.match(words[0]) and len(words[0].split()) > 1:
        around.miss(f"`{words[0]}` is one word, and no program is called that: no shell splits it")
    elif (named and name not in _MENTIONING) or (name, *words[1:2]) in STARTERS:
        around.miss(f"{said} {MAY_START}")
    return []


def shell_text(words: Sequence[str]) -> list[str] | None:
    """What a shell is given with -c, and its arguments; None when it is no shell, or has none."""
    name = os.path.basename(words[0]) if words else ""
    at = next((n for n, word in enumerate(words) if re.fullmatch(r"-\w*c", word)), len(words))
    if (name == "sh" or name in SHELLS) and at + 1 < len(words):
        return [words[at + 1], *words[at + 3 :]]
    return None


def program(words: Sequence[str], around: Surroundings) -> str:
    """The name of what a command line starts that is not gunicorn: of a shell's text, its last."""
    name = os.path.basename(words[0])
    script, text, arguments = around.scripts.get(words[0]), None, words[1:]
    given = shell_text(words) if script is None else None
    if given is not None:
        text, arguments = given[0], given[1:]
    elif script is None and (name == "sh" or name in SHELLS):
        arguments = [word for word in words[1:] if not word.startswith("-")]
        script = around.scripts.get(arguments.pop(0)) if arguments else None
    if script is not None:
        text = script.text
    if text is None or around.depth > _MAX_DEPTH:
        return name
    with contextlib.suppress(shell.TooMuch):
        commands = shell.commands(text, around.environ, arguments)
        if commands:
            return program(commands[-1].words, replace(around, depth=around.depth + 1))
    return name


def in_text(
    text: str,
    place: Place,
    around: Surroundings,
    positional: Sequence[str] | None = (),
    stays: Callable[[shell.Command, Place], Holder | None] = lambda command, place: None,
) -> list[Launch]:
    """Return each gunicorn that a shell text starts.

    :param stays: tells whether the shell stays above a command.
    """
    around = replace(around, depth=around.depth + 1)
    if around.depth > _MAX_DEPTH:
        return []

    def source(path: str) -> str | None:
        script = around.scripts.get(path)
        if script is None:
            return None
        around.used.add(script.origin)
        return script.text

    found = []
    try:
        all_commands = shell.commands(text, around.environ, positional, source)
    except shell.TooMuch as error:
        around.miss(f"{_subject(place)} {error}")
        return []
    if not all_commands and "gunicorn" in text and shell.is_understood(text):
        around.miss(f"{_subject(place)} names gunicorn, and starts nothing that is known here")
    gaps: list[str] = []
    for command in all_commands:
        at = replace(place, line=place.line + command.line - 1)
        environ = {**around.environ, **command.assigned}
        inner = replace(around, environ=environ, gaps=[])
        launches = find(command.words, at, inner)
        # Where gunicorn is found, the commands beside it do not matter.
        if launches:
            around.gaps.extend(inner.gaps)
        else:
            gaps += inner.gaps
        holder = stays(command, at)
        for launch in launches:
            found.append(
                replace(
                    launch,
                    holders=((holder,) if holder is not None else ()) + launch.holders,
                    assigned={**command.assigned, **launch.assigned},
                    condition=command.condition or launch.condition,
                )
            )
    # An exec form that is not valid JSON is one such text.
    if not found and "gunicorn" in text and not shell.is_understood(text):
        around.miss(f"{_subject(place)} is not understood as shell")
    for gap in gaps:
        if not found:
            around.miss(gap)
        elif gap.endswith(MAY_START) and gap not in around.beside:
            around.beside.append(gap)
    return found


def _subject(place: Place) -> str:
    return f"the shell text at {os.path.basename(place.file)}:{place.line}"


def _from_python(words: Sequence[str], place: Place, around: Surroundings) -> list[Launch]:
    """``python -X dev -m gunicorn ...``, and a script that is named after python's options."""
    for number, word in enumerate(words):
        if word == "-m":
            module = words[number + 1] if number + 1 < len(words) else ""
            if module in ("gunicorn", "gunicorn.app.wsgiapp"):
                return find(["gunicorn", *words[number + 2 :]], place, around)
            # `python -m ddtrace.commands.ddtrace_run gunicorn`, `python -m coverage run -m ...`
            return _from_wrapper(module, words[number + 2 :], place, around)
        if os.path.basename(word) == "gunicorn":
            return find(words[number:], place, around)
        if word == "-c" or word.endswith(".py"):
            text = " ".join(words)
            if "gunicorn" in text and _STARTING.search(text):
                around.miss(f"a Python program {MAY_START}")
            break
    return []


def _from_wrapper(
    name: str, words: Sequence[str], place: Place, around: Surroundings
) -> list[Launch]:
    """What a wrapper runs begins with the first word of its command line that is known here."""
    assigned = {}
    first = next((n for n, word in enumerate(words) if not word.startswith("-")), 0)
    if "--" in words:
        first = words.index("--") + 1
    gaps: list[str] = []
    for number, word in enumerate(words):
        match = _ASSIGNMENT.match(word)
        if match is not None:
            assigned[match[1]] = match[2]
        inner = replace(around, depth=around.depth + 1, gaps=[])
        found = find(words[number:], place, inner)
        if found:
            around.gaps.extend(inner.gaps)
            return [
                replace(
                    launch,
                    has_init=launch.has_init or name in INITS,
                    assigned={**assigned, **launch.assigned},
                )
                for launch in found
            ]
        if word.startswith("-"):
            continue  # it may hold gunicorn's name, and starts nothing
        # What is named first is the command; a variable further on is an argument of one.
        is_argument = word.startswith("$") and (number != first or name.startswith("wait-for"))
        gaps = gaps or ([] if is_argument else inner.gaps)
        if os.path.basename(word) in WRAPPERS or _may_run_the_rest(word):
            break  # it has looked at all the words after it
    around.gaps.extend(gaps)
    return []


def _may_run_the_rest(word: str) -> bool:
    return bool(shell.UNKNOWN in word or _SCRIPT.search(word) or _PERHAPS_SCRIPT.search(word))


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
            stays = functools.partial(_above_text, kind=kind, name=name, text=text)
            return in_text(text, place, around, texts[2:], stays)
        script = None if word.startswith("-") else around.scripts.get(word)
        if script is not None:
            return _from_script(script, words[number + 1 :], around)
        if not word.startswith(("-", "+")) and word not in ("pipefail", "errexit", "nounset"):
            is_known = shell.UNKNOWN not in word
            around.miss(
                f"the script {word} was not given" if is_known else f"`{word}` is not known"
            )
            return []
    return []


def _from_su(name: str, words: Sequence[str], place: Place, around: Surroundings) -> list[Launch]:
    """``su USER -c TEXT``, ``runuser -u USER -- gunicorn ...``, of util-linux.

    Both stay above what they run, in a session of PAM's: they pass SIGTERM on, and send SIGKILL 2 s
    later. The user's own shell is taken for bash.
    """
    holder = Holder(
        name,
        place,
        "gosu, su-exec or setpriv in its place, which become what they run",
        "passes SIGTERM on, and kills what it has started 2 s later",
        "every request that takes longer than 2 s is cut",
    )
    if "-c" in words:
        found = _from_shell("bash", "bash", words[words.index("-c") :], place, around)
    else:
        found = _from_wrapper(name, words, place, around)
    return [replace(launch, holders=(holder, *launch.holders)) for launch in found]


def _from_script(source: Source, words: Sequence[str] | None, around: Surroundings) -> list[Launch]:
    place = Place(source.file, source.line, source.name)
    around.used.add(source.origin)
    if source.interpreter not in ("", "sh", *SHELLS):
        if "gunicorn" in source.text:
            around.miss(f"{source.name} is no shell script")
        return []
    kind = source.interpreter if source.interpreter != "sh" else around.sh
    stays = functools.partial(_above_script, kind=SHELLS.get(kind, kind))
    return in_text(source.text, place, around, words, stays)


def of_script(source: Source, around: Surroundings) -> list[Launch]:
    """Return each gunicorn that a script starts, whatever its arguments are."""
    return _from_script(source, None, around)


def _above_script(command: shell.Command, at: Place, kind: str) -> Holder | None:
    """The shell that runs a script stays, whichever it is, unless the command has an exec."""
    return _stays(command, at, "the shell that runs this script", kind == "bash")


def _above_text(
    command: shell.Command, at: Place, kind: str, name: str, text: str
) -> Holder | None:
    """Tell what stays above a command of ``-c TEXT``."""
    is_beside = command.beside not in ("", "subshell")
    if not is_beside and not command.is_trapped:
        # The last command takes the shell's own place.
        if kind == "bash" and command.is_last and not command.is_redirected:
            return None
        if kind == "busybox" and command.is_tail and not text.endswith("\n"):
            return None
    said = f"`{name} -c`" if name == kind else f"`{name} -c` (taken for {kind})"
    return _stays(command, at, said, kind == "bash")


def _stays(command: shell.Command, at: Place, name: str, is_bash: bool) -> Holder | None:
    if command.is_exec and not command.beside:
        return None
    word = command.first if len(command.first) < 40 else "the command"
    fix = _FIXES[command.beside].format(word)
    if command.is_plain and not command.beside:
        fix += _WITHOUT_SHELL
    held = Holder(name, at, fix)
    trap = command.trap or (command.at_exit if is_bash else None)
    if trap is None:
        if command.beside != "background" or command.is_followed or command.waits:
            return held
        return replace(
            held,
            reason="ends as soon as it has started gunicorn in the background",
            effect="a container ends with it, and gunicorn is killed",
        )
    if command.beside != "background":
        reason = "runs its trap for SIGTERM only when gunicorn, in the foreground, ends"
        return replace(held, reason=reason)
    if trap.is_quick:
        reason = "has a trap for SIGTERM that sends gunicorn a signal which stops it at once"
        return replace(held, reason=reason, effect=CUT_AT_ONCE)
    if not trap.passes_on:
        return replace(held, reason="has a trap for SIGTERM that does not pass it on")
    if not command.waits and command.is_followed:
        return replace(
            held,
            reason="runs its trap for SIGTERM only when what is in the foreground ends",
            effect="gunicorn hears nothing of the stop until then, and SIGKILL cuts what is still "
            "under way when the period is over",
        )
    if not trap.waits and command.waits < 2:
        reason = "ends when its trap has run (SIGTERM ends its wait), and the container with it"
        return replace(held, reason=reason, effect=CUT_AT_ONCE)
    return None
