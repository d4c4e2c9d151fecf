"""A look at what is due while the arbiter's main loop cannot: user code holds it.

A thread, so that it needs no signal and no timer, which user code may want for itself. It exists
only as long as such code runs, and not while the process forks: what a thread holds then, nobody
gives back in the child. It is a native one, for a config file can have gevent patch the arbiter.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from gracefulworker.phases import SECOND
from gracefulworker.shared.forks import at_fork
from gracefulworker.shared.unpatched import original, start_thread

#: Seconds between two looks at the most: a signal may have changed what is due.
STEP = 0.05


class Watch:
    """Calls `look` whenever that is due, from the first `start` to the last `stop`.

    :param look: returns the ns at which to look again, 0 for whenever.
    """

    def __init__(self, look: Callable[[], int]) -> None:
        self._look = look
        self._pid = os.getpid()
        self._wanted = 0
        #: Of the thread, if there is one: what ends it, and the wait for its end.
        self._ends: list[tuple[Any, Callable[[], object]]] = []
        at_fork(before=self._leave, after_in_parent=self._come)

    def start(self) -> None:
        self._wanted += 1
        self._come()

    def stop(self) -> None:
        """The last one returns when the last look is over."""
        self._wanted -= 1
        if not self._wanted:
            self._leave()

    def _come(self) -> None:
        if not self._wanted or self._ends or os.getpid() != self._pid:
            return
        over = original("_thread", "allocate_lock")()
        over.acquire()
        with contextlib.suppress(RuntimeError):  # there can be no more threads
            self._ends.append((over, start_thread(lambda: self._run(over))))

    def _leave(self) -> None:
        with contextlib.suppress(IndexError):  # there is none; or another thread forks, too
            over, join = self._ends.pop()
            over.release()
            join()

    def _run(self, over: Any) -> None:
        wait = 0.0
        while not over.acquire(timeout=wait):
            due = self._look()
            wait = min((due - time.monotonic_ns()) / SECOND, STEP) if due else STEP
            wait = max(wait, 0.001)
