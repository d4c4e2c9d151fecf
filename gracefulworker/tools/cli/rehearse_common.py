"""What a rehearsal here and one in a cluster have in common: options, files, and how they end.

What may be changed here: what is refused before anything is started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from rich.console import Console

    from gracefulworker.tools.rehearse.plan import Plan

#: gunicorn's options that the rehearsal sets itself, or that take a pod out of its hands.
NOT_PASSED_ON = ("-b", "--bind", "-k", "--worker-class", "-D", "--daemon")

#: Header fields that say how a message is sent, or what becomes of its connection.
FRAMING = ("connection", "content-length", "expect", "te", "transfer-encoding", "upgrade")

#: Options, also gunicorn's, whose value nobody but the user should read.
SECRET = ("--header", "--env", "-e")

#: Open files: of pods, pipes and the connections that are used once; and for each that is kept
#: alive, a client's and the balancer's two ends.
FILES, FILES_PER_CONNECTION = 1000, 3

#: Requests that are named before they are sent.
SHOWN = 5

LOST, UNUSABLE, INTERRUPTED = 1, 2, 130


def tell_trouble(console: Console, what: str, trouble: str) -> None:
    """Why there is no result, or no whole one: a sentence, and lines that follow it."""
    sentence, *more = trouble.splitlines()
    console.print(f"{what}: {sentence}", style="bold red", markup=False)
    for line in more:
        console.print(line, markup=False, soft_wrap=True)


def asked(plan: Plan) -> str:
    """What will be asked for, the first of it by name."""
    first, rest = plan.asked[:SHOWN], plan.asked[SHOWN:]
    return ", ".join([*first, f"and {len(rest)} others"] if rest else first)


def write(arguments: argparse.Namespace, data: dict[str, Any], console: Console) -> bool:
    """Write the files that are wanted.

    :returns: whether all of them are written.
    """
    from gracefulworker.tools.rehearse import picture

    try:
        if arguments.json:
            arguments.json.write_text(json.dumps(data, indent=1), encoding="utf-8")
        if arguments.html:
            arguments.html.write_text(picture.draw(data), encoding="utf-8")
            console.print("The picture:", arguments.html.resolve().as_uri(), soft_wrap=True)
    except OSError as error:
        console.print(f"{error.filename} cannot be written: {error.strerror}", markup=False)
        return False
    return True


def command_line(given: list[str]) -> str:
    """The command as it was given, but for values that may be secret: of headers and variables."""
    shown: list[str] = []
    for word in given:
        name, equals, value = word.partition("=")
        if shown and shown[-1] in SECRET:
            word = _without_value(word)
        elif equals and name in SECRET:
            word = f"{name}={_without_value(value)}"
        elif word[:2] in SECRET and len(word) > 2:
            word = word[:2] + _without_value(word[2:])
        shown.append(word)
    return shlex.join(["gracefulworker", *shown])


def _without_value(text: str) -> str:
    """Of NAME: VALUE or NAME=VALUE the name."""
    name, separator, _ = re.split("([:=])", f"{text}=", maxsplit=1)
    return f"{name}{separator}..."


def make_room(connections: int) -> None:
    """Allow as many open files as the clients and the balancer need.

    :raises ValueError: that is more than this user may have.
    """
    needed = FILES + FILES_PER_CONNECTION * connections
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        raise ValueError(f"{needed} open files are needed, {most} are allowed: see ulimit -Hn")
    if now != resource.RLIM_INFINITY and now < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan as it is wanted.

    :raises ValueError: something does not fit; the argument is a sentence.
    :raises OSError: a file cannot be read or written.
    """
    from gracefulworker.tools.rehearse.plan import Plan

    for option in arguments.passed_on:
        if option.split("=")[0] in NOT_PASSED_ON or option[:2] in NOT_PASSED_ON:
            raise ValueError(f"leave {option} to the rehearsal, it cannot be passed on")
    for file in (arguments.html, arguments.json):
        if file:
            _try_to_write(file)
    if arguments.service == "iptables":
        from gracefulworker.tools.rehearse import kubeproxy

        kubeproxy.check()
    paths: tuple[tuple[str, str, bytes], ...] = (("GET", arguments.path, b""),)
    if arguments.requests:
        paths = _requests_in(arguments.requests)
    return Plan(
        app=arguments.app or "",
        options=tuple(arguments.passed_on),
        pods=arguments.pods,
        lag=arguments.lag,
        grace=arguments.grace,
        warm_up=arguments.warm_up,
        seed=arguments.seed,
        rate=arguments.rate,
        connections=arguments.connections,
        idle_limit=arguments.idle_limit,
        timeout=arguments.timeout,
        ready_within=arguments.ready_within,
        paths=paths,
        headers=tuple(arguments.header),
        slow=arguments.slow,
        stream=arguments.stream,
        upload=arguments.upload,
        same_body=not arguments.any_body,
    )


def _try_to_write(file: Path) -> None:
    """Find out before the rehearsal whether its result can be written.

    :raises ValueError: it cannot.
    """
    target = file.resolve()
    was_there = target.exists()
    try:
        target.open("ab").close()
        if not was_there:
            target.unlink()
    except OSError as error:
        raise ValueError(f"{file} cannot be written: {error.strerror}") from None


def _requests_in(file: Path) -> tuple[tuple[str, str, bytes], ...]:
    """What `read_requests` finds in a file.

    :raises ValueError: what is wrong with it, with its name.
    """
    try:
        return read_requests(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"--requests {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--requests {file}: it is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"--requests {file}: {error}") from None


def read_requests(text: str) -> tuple[tuple[str, str, bytes], ...]:
    """A method, a path and perhaps a body on each line; lines that begin with # say nothing.

    :raises ValueError: a line that is not of that form, or none at all.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        method, _, rest = line.strip().partition(" ")
        path, _, body = rest.strip().partition(" ")
        if not method or method.startswith("#"):
            continue
        if not (method.isascii() and method.isalpha() and method.isupper()):
            raise ValueError(f"line {number} is not METHOD /PATH [BODY]: {line[:60]!r}")
        try:
            path_of(path)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"line {number} is not METHOD /PATH [BODY]: {error}") from None
        found.append((method, path, body.strip().encode()))
    if not found:
        raise ValueError("there is no request in the file")
    return tuple(found)


def path_of(text: str) -> str:
    """What stands in a request line (RFC 9112 section 3.2.1)."""
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with /")
    if not re.fullmatch(r"[!-~]+", text):
        encoded = quote(text, safe="/?&=%+,;:@!$'()*~")
        raise argparse.ArgumentTypeError(f"{text!r} has to be percent-encoded: {encoded}")
    return text


def header(text: str) -> tuple[str, str]:
    """NAME: VALUE, as curl's -H takes it."""
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not 'NAME: VALUE'")
    if not value.isprintable():
        raise argparse.ArgumentTypeError(f"{name}'s value has characters that no header may have")
    if name.lower() in FRAMING:
        raise argparse.ArgumentTypeError(f"leave {name} to the rehearsal")
    return name, value


def stop_on_signals() -> None:
    """From now on the first signal cancels the rehearsal, which cleans up; more change nothing."""
    loop, main = asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None, "called in the main task"
    stopping: list[bool] = []

    def stop() -> None:
        if not stopping:
            stopping.append(True)
            main.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)


def number(
    group: argparse._ArgumentGroup,
    name: str,
    kind: Callable[[str], float],
    default: float,
    low: float,
    high: float,
    meaning: str,
) -> None:
    """An option that takes a number from `low` to `high`."""

    def read(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}")
        return value

    read.__name__ = "number"  # argparse: "invalid number value"
    group.add_argument(
        name, type=read, default=default, metavar="N", help=f"{meaning} (default: {default:g})"
    )
