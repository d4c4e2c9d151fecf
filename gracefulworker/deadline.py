"""The requests that the application holds, and the deadline at which they are cut.

The deadline comes from outside: nothing is raised into the application. A native thread, started
when DRAINING begins, names what is left in the log (method, path, age, where its code stands) and
ends the process; the arbiter's SIGKILL, `phases.KILL_MARGIN` later, is only for code that holds
the interpreter so that no thread can run.

What may be changed here: what is said and done at the deadline.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import traceback
from _thread import get_ident  # bound before gevent patches it: the native one
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gracefulworker.workers.base import GracefulWorker

#: Lines of a cut request's stack that are logged, the innermost.
STACK_LINES = 20

#: Seconds between two looks at the deadline.
STEP = 0.5

_SECOND = 1_000_000_000


def _original(module: str, name: str) -> Any:
    """`module.name` as it was before gevent patched it."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None:
        return monkey.get_original(module, name)
    return getattr(sys.modules[module], name)


class InFlight:
    """The requests that the application holds.

    :param who: tells who handles a request: a thread's identifier, or a greenlet.
    """

    def __init__(self, who: Callable[[], Any] = get_ident) -> None:
        self._who = who
        self._held: dict[int, tuple[Any, float, Any]] = {}
        self._keys = itertools.count()

    def __len__(self) -> int:
        return len(self._held)

    def enter(self, request: Any) -> int:
        key = next(self._keys)
        self._held[key] = (request, time.monotonic(), self._who())
        return key

    def leave(self, key: int) -> None:
        del self._held[key]

    def all(self) -> list[tuple[Any, float, Any]]:
        """Request, monotonic second of its begin, and who handles it; oldest first."""
        return list(self._held.values())


class Deadline:
    """A thread that waits for the worker's deadline and then ends its process."""

    def __init__(self, worker: GracefulWorker) -> None:
        self.worker = worker
        self._main = get_ident()
        self._sleep = _original("time", "sleep")

    def start(self) -> None:
        # Not threading.Thread: this may be a signal handler, and under gevent it must be native.
        _original("_thread", "start_new_thread")(self._wait, ())

    def _wait(self) -> None:
        while (left := self.worker.deadline() - time.monotonic_ns()) > 0:
            # In steps: the deadline of a worker that retires moves when SIGTERM comes.
            self._sleep(min(left / _SECOND, STEP))
        self.cut()

    def cut(self) -> None:
        """Name each request that is left, and end the process."""
        worker = self.worker
        held = worker.in_flight.all()
        worker.slot.cut += max(len(held), 1)
        worker.slot.in_flight = 0
        now = time.monotonic()
        for request, since, who in held:
            worker.log.warning(
                "cut at the deadline: %s %s after %.1f s, at:\n%s",
                request.method,
                request.path,
                now - since,
                stack_of(who, self._main),
            )
        if not held:
            worker.log.warning("cut at the deadline: the worker's exit (pid: %s)", worker.pid)
        os._exit(0)


def stack_of(who: Any, main: int) -> str:
    """Where the code of a request stands, innermost call last."""
    if isinstance(who, int):
        frame = sys._current_frames().get(who)
    else:
        # A greenlet that runs now has no frame of its own: it is the main thread's.
        frame = who.gr_frame or sys._current_frames().get(main)
    lines = "".join(traceback.format_stack(frame)).splitlines() if frame else ["(no frame)"]
    return "\n".join(lines[-STACK_LINES:])
