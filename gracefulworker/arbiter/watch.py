"""A look at what is due while the arbiter's main loop cannot: user code holds it.

A thread, so that it needs no signal and no timer, which user code may want for itself. It exists
only from SIGTERM on, and only as long as such code runs. It is a native one, for a config file can
have gevent patch the arbiter.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from gracefulworker.phases import SECOND
from gracefulworker.shared.unpatched import original, start_thread

#: Seconds between two looks at the most: a signal may have changed what is due.
STEP = 0.05


class Watch:
    """Calls `look` whenever that is due.

    :param look: returns the ns at which to look again, 0 for whenever.
    """

    def __init__(self, look: Callable[[], int]) -> None:
        self._look = look
        self._over = original("_thread", "allocate_lock")()
        self._join: Callable[[], object] = bool

    def start(self) -> None:
        """:raises RuntimeError: there can be no more threads."""
        self._over.acquire()
        self._join = start_thread(self._run)

    def stop(self) -> None:
        """Return when its last look is over."""
        self._over.release()
        self._join()

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the main thread's
        wait = 0.0
        while not self._over.acquire(timeout=wait):
            due = self._look()
            wait = min((due - time.monotonic_ns()) / SECOND, STEP) if due else STEP
            wait = max(wait, 0.001)
