"""`gracefulworker plan`: the timeline of a shutdown, to scale, and the period that it needs.

It reads what gunicorn would read here: the config file, GUNICORN_CMD_ARGS and GRACEFUL_* in the
environment; its own options win. What may be changed here: the picture.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from gracefulworker import settings
from gracefulworker.phases import Phase
from gracefulworker.tools import configuration

#: Characters from SIGTERM to SIGKILL.
WIDTH = 60


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: the config file, gunicorn's graceful_timeout, and our settings."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="gunicorn's config file, or python:MODULE; ./gunicorn.conf.py if there is one",
    )
    parser.add_argument("--graceful-timeout", metavar="S", help="gunicorn's own")
    for name, row in settings.TABLE.items():
        kind = row.metadata["kind"]
        if isinstance(kind, settings.Function):
            continue
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=kind.unit.upper() or "YES",
            help=kind.meaning,
            type=_checked(kind),
        )


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
        read = _read(arguments)
    except (configuration.ConfigFileError, settings.SettingsError) as error:
        print(f"gracefulworker plan: {error}", file=sys.stderr)
        return 2
    for warning in read.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(picture(read))
    return 0


def _read(arguments: argparse.Namespace) -> settings.Settings:
    options: dict[str, str] = {}
    for name in settings.TABLE:
        value = getattr(arguments, name, None)
        if value is not None:
            options[name.upper()] = value
    environ = {**os.environ, **options}
    given = []
    if arguments.config is not None:
        given.append(f"--config={arguments.config}")
    if arguments.graceful_timeout is not None:
        given.append(f"--graceful-timeout={arguments.graceful_timeout}")
    # GUNICORN_CMD_ARGS may name the config file, and the config file a variable.
    first = configuration.load(given, environ, {})
    named = "config" in first.given
    location = first.cfg.config if named else configuration.default_config_file()
    names = configuration.load_names(location, environ) if location else {}
    loaded = configuration.load(given, environ, names)
    environ.update(loaded.cfg.env)
    environ.update(options)
    for _, is_fatal, sentence in loaded.mistakes:
        if is_fatal:
            raise configuration.ConfigFileError(sentence)
        print(f"warning: {sentence}", file=sys.stderr)
    return settings.read(loaded.cfg, environ, names)


def picture(read: settings.Settings) -> str:
    """Return the timeline to scale, one row for each phase, and what the platform must give."""
    delay, deadline = read.delay, read.delay + read.finish
    kill = float(read.needed) if read.period is None else read.period
    end = max(kill, deadline)

    def column(seconds: float) -> int:
        return round(WIDTH * seconds / end)

    rows = [
        (Phase.LAME_DUCK.name, 0.0, delay, "serves as before, answers say close"),
        (Phase.DRAINING.name, delay, deadline, "refuses newcomers, finishes the rest"),
        ("margin", deadline, kill, "exits"),
    ]
    lines = [read.plan(), "", f"{'SIGTERM':11}|{'seconds':>{WIDTH}}"]
    for name, begin, finish, meaning in rows:
        left, right = column(begin), column(finish)
        bar = " " * left + "=" * (right - left)
        lines.append(f"{name:11}|{bar:{WIDTH}}| {begin:5.1f} to {finish:5.1f}  {meaning}")
    lines.append(f"{'SIGKILL':11}|{'X':>{column(kill)}}{'':{WIDTH - column(kill)}}| at {kill:5.1f}")
    lines += ["", f"terminationGracePeriodSeconds: {read.needed}"]
    return "\n".join(lines)
