"""`gracefulworker plan`: the timeline of a shutdown, to scale, and the period that it needs.

It reads what gunicorn would read here: the config file, GUNICORN_CMD_ARGS and GRACEFUL_* in the
environment; its own options win. What may be changed here: the picture. The fields of
``--format json`` are an interface; a change that breaks it raises `SCHEMA`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from gunicorn.workers import SUPPORTED_WORKERS

from gracefulworker import check_config, settings
from gracefulworker.arbiter import kinds
from gracefulworker.phases import Phase
from gracefulworker.tools import configuration, engines

#: Of the output of ``--format json``.
SCHEMA = 1

#: What is said when the config file cannot be run here.
ELSEWHERE = (
    "it is run here as gunicorn runs it, so it needs what the service has: run this in the"
    " service's own environment, such as `kubectl exec POD -- gracefulworker plan` or"
    " `docker run --rm --entrypoint gracefulworker IMAGE plan`"
)

#: Characters from SIGTERM to SIGKILL.
WIDTH = 60

#: What happens in LAME_DUCK and in DRAINING: with our workers, with others and the hook, and else.
OURS = ("serves as before, answers say close", "refuses newcomers, finishes the rest")
HOOKED = ("serves as before", "stops in its own way")
NEITHER = ("not with this worker class", "not with this worker class")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: the config file, gunicorn's graceful_timeout, and our settings."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="gunicorn's config file, or python:MODULE; ./gunicorn.conf.py if there is one",
    )
    parser.add_argument("-k", "--worker-class", metavar="NAME", help="gunicorn's own")
    parser.add_argument("--graceful-timeout", metavar="S", help="gunicorn's own")
    for name, row in settings.TABLE.items():
        kind = row.metadata["kind"]
        if isinstance(kind, settings.Function):
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(kind, settings.Switch):
            parser.add_argument(
                flag, metavar="no", help=kind.meaning, type=_checked(kind), nargs="?", const="yes"
            )
        else:
            parser.add_argument(
                flag, metavar=kind.unit.upper(), help=kind.meaning, type=_checked(kind)
            )
    parser.add_argument("--format", choices=("text", "json"), default="text")


def _checked(kind: Any) -> Callable[[str], str]:
    """An argparse type that refuses what the setting refuses, and leaves the text as it is."""

    def check(text: str) -> str:
        try:
            kind.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text} {error}") from None
        return text

    return check


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; 2 when the settings would stop the start."""
    try:
        read, meanings, warnings = _read(arguments)
    except (configuration.ConfigFileError, settings.SettingsError) as error:
        sentence = f"gracefulworker plan: {error}"
        cause = error.__cause__
        if cause is not None and not isinstance(cause, SyntaxError):
            sentence += f"; {ELSEWHERE}"
        print(sentence, file=sys.stderr)
        return 2
    if arguments.format == "json":
        print(json.dumps(as_json(read, warnings), indent=2))
        return 0
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(picture(read, meanings))
    return 0


def _read(
    arguments: argparse.Namespace,
) -> tuple[settings.Settings, tuple[str, str], list[str]]:
    """The settings, what they mean to the workers, and what there is to say about it."""
    options: dict[str, str] = {}
    for name in settings.TABLE:
        value = getattr(arguments, name, None)
        if value is not None:
            options[name] = value
    environ = dict(os.environ)
    given = []
    if arguments.config is not None:
        given.append(f"--config={arguments.config}")
    if arguments.worker_class is not None:
        given.append(f"--worker-class={arguments.worker_class}")
    if arguments.graceful_timeout is not None:
        given.append(f"--graceful-timeout={arguments.graceful_timeout}")
    # GUNICORN_CMD_ARGS may name the config file, and the config file a variable.
    first = configuration.load(given, environ, {})
    named = "config" in first.given
    location = first.cfg.config if named else configuration.default_config_file()
    names = configuration.load_names(location, environ) if location else {}
    loaded = configuration.load(given, environ, names)
    environ.update(loaded.cfg.env)
    warnings = []
    for _, is_fatal, sentence in loaded.mistakes:
        if is_fatal:
            raise configuration.ConfigFileError(sentence)
        warnings.append(sentence)
    if "worker_class" in loaded.given and "worker_class" not in loaded.unclear:
        _judge_class(loaded)
    read = settings.read(loaded.cfg, environ, names, options)
    remarks = [*_about_class(loaded, read)]
    meanings = OURS
    if remarks:
        meanings = HOOKED if loaded.has_hook else NEITHER
    return read, meanings, [*warnings, *read.warnings, *remarks]


def _judge_class(loaded: configuration.Configuration) -> None:
    """Look whether there is such a worker class; of others than ours by the short names only.

    :raises ConfigFileError: gunicorn would not start with it.
    """
    worker = loaded.cfg.worker_class_str
    if worker == "gracefulworker" and not loaded.imports_ours:
        raise configuration.ConfigFileError(
            "gunicorn knows the worker class gracefulworker only after `import gracefulworker` in"
            " its config file: add that, or use -k gracefulworker.gthread"
        )
    is_known_elsewhere = "." in worker or ":" in worker or worker in SUPPORTED_WORKERS
    if is_known_elsewhere and not (loaded.has_our_class or engines.is_ours(worker)):
        return
    try:
        check_config.judge_class(loaded.cfg)
    except RuntimeError as error:
        sentence = str(error)
        if "\n" in sentence:  # gunicorn's own, with a traceback
            ours = ", ".join(f"gracefulworker.{engine}" for engine in engines.STOCK)
            sentence = f"gunicorn finds no worker class {worker!r}: ours are {ours}"
        raise configuration.ConfigFileError(sentence) from None


def _about_class(loaded: configuration.Configuration, read: settings.Settings) -> Iterator[str]:
    """What does not hold for a worker class that is known not to be ours.

    Nothing about one that nobody has named here: it may be named where gunicorn is started.
    """
    if "worker_class" not in loaded.given or "worker_class" in loaded.unclear:
        return
    worker = loaded.cfg.worker_class_str
    if loaded.has_our_class or engines.is_ours(worker) is not False:
        return
    ours = engines.ours_beside(worker)
    if loaded.has_hook:
        yield f"{worker} has the delay by the hook, and then stops in its own way" + (
            f": the rest needs -k {ours}" if ours else ""
        )
        if objection := kinds.OTHERS.objection(read):
            yield objection
    else:
        hook = "put `from gracefulworker.hooks import when_ready` into the config file"
        remedy = f"use -k {ours}" if ours else hook
        yield f"{worker} stops as soon as SIGTERM comes, nothing of this plan holds: {remedy}"


def as_json(read: settings.Settings, warnings: list[str]) -> dict[str, Any]:
    """The plan for programs, times in seconds after SIGTERM."""
    return {
        "schema": SCHEMA,
        "draining": read.delay,
        "deadline": read.delay + read.finish,
        "needed": read.needed,
        "kill_after": read.kill_after,
        "assumed": read.period if read.kill_after is None else None,
        "warnings": warnings,
    }


def _needs(read: settings.Settings) -> str:
    """What the platform must give from SIGTERM to SIGKILL, beside what it was said to give."""
    needs = f"terminationGracePeriodSeconds: needs at least {read.needed}"
    if read.kill_after is not None:
        return f"{needs}, you set {read.kill_after:g} (graceful_kill_after)"
    if read.period is not None:
        return f"{needs}, you set nothing: {read.period:g} is assumed, Kubernetes' default"
    return f"{needs}, you set nothing: say it in graceful_kill_after too, and all is fitted into it"


def picture(read: settings.Settings, meanings: tuple[str, str] = OURS) -> str:
    """Return the timeline to scale, one row for each phase, and what the platform must give.

    :param meanings: of LAME_DUCK and of DRAINING.
    """
    delay, deadline = read.delay, read.delay + read.finish
    kill = float(read.needed) if read.period is None else read.period
    end = max(kill, deadline)

    def column(seconds: float) -> int:
        return round(WIDTH * seconds / end)

    serves, ends = meanings
    rows = [
        (Phase.LAME_DUCK.name, 0.0, delay, serves),
        (Phase.DRAINING.name, delay, deadline, ends),
        ("margin", deadline, kill, "exits"),
    ]
    lines = [read.plan(), "", f"{'SIGTERM':11}|{'seconds':>{WIDTH}}"]
    for name, begin, finish, meaning in rows:
        left, right = column(begin), column(finish)
        bar = " " * left + "=" * (right - left)
        lines.append(f"{name:11}|{bar:{WIDTH}}| {begin:5.1f} to {finish:5.1f}  {meaning}")
    lines.append(f"{'SIGKILL':11}|{'X':>{column(kill)}}{'':{WIDTH - column(kill)}}| at {kill:5.1f}")
    lines += ["", _needs(read)]
    return "\n".join(lines)
