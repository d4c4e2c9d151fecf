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

from gracefulworker import seam
from gracefulworker.arbiter import metrics
from gracefulworker.arbiter.metrics import Report
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


@dataclass
class Totals:
    """What the workers that are gone have counted since SIGTERM."""

    accepted: int = 0
    accepted_at: int = 0
    served: int = 0
    told_to_close: int = 0
    closed_idle: int = 0
    from_queue: int = 0
    websockets_told: int = 0
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


def write(log: seam.Log, report: Report, path: str, service: str) -> None:
    """Write the report to a file; one that cannot be written is a log line.

    It is JSON, or Prometheus' text format, with the label `service`, when the name ends as its
    text-file collector wants it. A regular file is replaced, whole or not at all, and so is a link
    to one. What is none is written into: /dev/stdout, replaced by root, would be lost to the whole
    machine.
    """
    try:
        if path.endswith(metrics.SUFFIX):
            words = metrics.as_text(report, service, _old(path))
        else:
            words = json.dumps(report) + "\n"
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


def _old(path: str) -> str:
    """What a regular file says until now, and "" for anything else.

    :raises OSError: it may not be read.
    """
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


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


def warn_of_late_newcomers(log: seam.Log, report: Report, delay: float) -> None:
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


def say(log: seam.Log, report: Report) -> None:
    """Log the last line."""
    how, last, seconds = report["outcome"], report["last_connection"], report["seconds"]
    if how == "quick":
        how = f"quick ({report['signal']})"
    if report["served"] is None:
        line = (
            f"stopped: {'' if how is None else how + ' '}after {seconds:.1f} s; what workers of"
            " another class have served and lost is not known"
        )
    else:
        newest = "no new connection" if last is None else f"last new connection +{last:.1f} s"
        line = (
            f"stopped: {how} after {seconds:.1f} s; served {report['served']} after SIGTERM,"
            f" {newest}, told to close {report['told_to_close']}, closed idle"
            f" {report['closed_idle']}, from the queue {report['from_queue']}, cut {report['cut']}"
        )
    if report["websockets_told"]:
        line += f", told {report['websockets_told']} WebSockets"
    if report["killed"]:
        line += f", workers killed {report['killed']}"
    try:
        log.info("%s", line, extra={f"graceful_{key}": value for key, value in report.items()})
    except TypeError:  # a user's logger_class whose methods take no keywords
        log.info("%s", line)
