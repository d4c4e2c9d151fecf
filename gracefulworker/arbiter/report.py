"""What a service says of its end: the last log line, a file, metrics.

One dictionary, the report, has the figures; everything else is made from it. Its keys are public:
they are in the file, in the log record (with `graceful_` before them) and in what
`graceful_on_drained` is given.

What may be changed here: what is said. Keys may be added, and none renamed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from dataclasses import dataclass, fields
from typing import Any

from gunicorn.instrument.statsd import Statsd

from gracefulworker.phases import SECOND
from gracefulworker.shared.page import Slot

#: New connections in this part of the delay, its last, mean that it was hardly long enough.
LATE = 0.2

#: Seconds of delay from which on such a part means anything: below, it is no longer than the way
#: of a packet and a scheduler's pause.
LATE_LEAST = 1.0

#: How much longer a delay is proposed then.
LONGER = 1.5

#: Links that lead from one to the next at the most, as in `/dev/stdout`.
LINKS = 8

#: What the metrics' names begin with, after gunicorn's --statsd-prefix.
METRIC = "gunicorn.graceful."


Report = dict[str, Any]


@dataclass
class Totals:
    """What the workers that are gone have counted since SIGTERM."""

    accepted: int = 0
    accepted_at: int = 0
    served: int = 0
    told_to_close: int = 0
    closed_idle: int = 0
    from_queue: int = 0
    cut: int = 0

    def fold(self, slot: Slot) -> None:
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(slot, field.name)
            together = max(mine, theirs) if field.name == "accepted_at" else mine + theirs
            setattr(self, field.name, together)


def compose(
    totals: Totals, signal: str, began: int, *, quick: bool, known: bool, killed: int
) -> Report:
    """Return the report. What is not known is None.

    :param signal: what ended SERVING: a signal's name, or "drain request".
    :param began: ns at which that was.
    :param quick: whether the service was stopped at once.
    :param known: whether the workers are ours, and so have counted.
    :param killed: workers that had to be killed.
    """
    outcome = "clean" if known else None
    report: Report = {
        "outcome": "quick" if quick else "cut" if totals.cut or killed else outcome,
        "signal": signal,
        "seconds": _seconds(began, time.monotonic_ns()),
        "last_connection": _seconds(began, totals.accepted_at) if totals.accepted else None,
    }
    counters = (field.name for field in fields(totals) if field.name != "accepted_at")
    report.update((name, getattr(totals, name) if known else None) for name in counters)
    return {**report, "killed": killed}


def _seconds(began: int, at: int) -> float:
    return round((at - began) / SECOND, 3)


def write(log: Any, report: Report, path: str) -> None:
    """Write the report to a file; one that cannot be written is a log line.

    A regular file is replaced, whole or not at all, and so is a link to one. What is none is
    written into: /dev/stdout, replaced by root, would be lost to the whole machine.
    """
    words = json.dumps(report) + "\n"
    try:
        fd = _own_descriptor(path)
        if fd is None and os.path.exists(path) and not os.path.isfile(path):
            # A pipe that nobody reads would hold the exit up.
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        if fd is None:
            _replace(path, words)
        else:
            with open(fd, "w", encoding="utf-8") as file:
                file.write(words)
    except (OSError, ValueError) as error:
        log.warning("the report could not be written: %s", error)


def _own_descriptor(path: str) -> int | None:
    """A copy of the descriptor that a name such as /dev/stdout leads to; None when it does not.

    To open it anew is not the same: a file would be written from its begin, and a socket cannot be.

    :raises OSError: it is closed.
    """
    for _ in range(LINKS):
        directory, name = os.path.split(path)
        if name.isdigit() and os.path.realpath(directory) == f"/proc/{os.getpid()}/fd":
            return os.dup(int(name))
        if not os.path.islink(path):
            break
        path = os.path.join(directory, os.readlink(path))
    return None


def _replace(path: str, words: str) -> None:
    """:raises OSError: its directory is not there, or may not be written to."""
    unfinished = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unfinished)  # PID 1 was PID 1 before it was killed, too
    # In a directory of everybody's, what comes there now is somebody's trap.
    fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(words)
        os.replace(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def measure(log: Any, report: Report) -> None:
    """Send the figures to statsd, if that is the logger (gunicorn's --statsd-host)."""
    if not isinstance(log, Statsd):
        return
    # Its own methods, because its `info` passes over a value of 0 before gunicorn 26.
    for name, value in report.items():
        if type(value) is int:
            log.increment(METRIC + name, value)
        elif type(value) is float:
            log.gauge(METRIC + name, value)
    if report["outcome"] is not None:
        log.increment(f"{METRIC}outcome.{report['outcome']}", 1)


def warn_of_late_newcomers(log: Any, report: Report, delay: float) -> None:
    """Say so when the delay was hardly long enough.

    :param delay: in seconds; it must not have been cut short.
    """
    last = report["last_connection"]
    if last is None or delay < LATE_LEAST or last < delay * (1 - LATE):
        return
    log.warning(
        "new connections were still arriving %.1f s after %s, when the delay of %.1f s was all but"
        " over: raise graceful_delay (to %d, say), unless your clients come without a balancer",
        last,
        report["signal"],
        delay,
        math.ceil(delay * LONGER),
    )


def say(log: Any, report: Report) -> None:
    """Log the last line."""
    how, last = report["outcome"], report["last_connection"]
    if how == "quick":
        how = f"quick ({report['signal']})"
    line = f"stopped: {'' if how is None else how + ' '}after {report['seconds']:.1f} s; "
    if report["served"] is None:
        line += "what workers of another class have served and lost is not known"
    else:
        newest = "no new connection" if last is None else f"last new connection +{last:.1f} s"
        line += (
            f"served {report['served']} after SIGTERM, {newest},"
            f" told to close {report['told_to_close']}, closed idle {report['closed_idle']},"
            f" from the queue {report['from_queue']}, cut {report['cut']}"
        )
    if report["killed"]:
        line += f", workers killed {report['killed']}"
    try:
        log.info("%s", line, extra={f"graceful_{key}": value for key, value in report.items()})
    except TypeError:  # a user's logger_class whose methods take no keywords
        log.info("%s", line)
