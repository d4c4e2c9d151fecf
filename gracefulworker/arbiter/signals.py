"""The arbiter's own signal handlers: they note, flip and hand on.

They never log or wait. What a signal means, `gracefulworker.phases` decides.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from types import FrameType
from typing import Any

from gracefulworker import seam
from gracefulworker.arbiter.shutdown import Shutdown
from gracefulworker.phases import SECOND, DrainRequest, Signal
from gracefulworker.shared.forks import at_fork
from gracefulworker.shared.page import ASK, Nudge

#: What ends a service.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Signals:
    """The handlers of one arbiter, and its wait for signals."""

    def __init__(self, arbiter: seam.Arbiter, shutdown: Shutdown, nudge: Nudge) -> None:
        self.arbiter = arbiter
        self.shutdown = shutdown
        self.pid = os.getpid()
        self._nudge = nudge
        self._mask_before_fork: set[Any] | None = None
        self._handlers = Signals._on_stopping.__code__, Signals._on_request.__code__

    def install(self) -> None:
        for number in STOPPING:
            signal.signal(number, self._on_stopping)
        signal.signal(ASK, self._on_request)
        at_fork(
            before=self._hold,
            after_in_parent=self._release,
            after_in_child=self._release,
        )

    def _on_stopping(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            # A forked worker that has not installed its own handlers yet.
            if number != signal.SIGTERM:
                os._exit(0)
            if self.shutdown.crew.spawning is not None:
                self.shutdown.crew.spawning.term_at = time.monotonic_ns()
            return
        user_code = self.shutdown.user_code
        with user_code.set_aside():
            self.shutdown.feed(Signal(signal.Signals(number).name))
            self.arbiter.signal(number, frame)
        user_code.raise_if_over(frame, self._handlers)

    def _on_request(self, number: int, frame: FrameType | None) -> None:
        """`gracefulworker drain`, or `UserCode.end` in another thread."""
        if os.getpid() != self.pid:
            return
        user_code = self.shutdown.user_code
        with user_code.set_aside():
            self.shutdown.feed(DrainRequest())
        user_code.raise_if_over(frame, self._handlers)

    # Around each fork

    def _hold(self) -> None:
        """A signal that the new process gets in its first moment is not lost.

        CPython forgets what a forked process has been sent before it runs any Python code
        (PyOS_AfterFork_Child); a quick stop then waits for a worker that has not heard of it.
        """
        if os.getpid() == self.pid and threading.current_thread() is threading.main_thread():
            self._mask_before_fork = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # may run a handler that raises

    def _release(self) -> None:
        if os.getpid() == self.pid and threading.current_thread() is not threading.main_thread():
            return  # another thread's fork; what is held may be the main thread's
        held, self._mask_before_fork = self._mask_before_fork, None
        if held is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    # The main loop's wait

    def wait(self, timeout: float) -> None:
        """Wait for a signal, a nudge, or what is due; so many seconds at the most.

        A signal that comes between Python's last check and the block in SimpleQueue.get is heard
        when that times out, a second later. A descriptor that signals write to is not missed.
        """
        if due := self.shutdown.due:
            timeout = min(timeout, max(due - time.monotonic_ns(), 0) / SECOND)
        # Each time: who runs an event loop in a hook (asyncio.run) leaves none behind.
        signal.set_wakeup_fd(self._nudge.write_fd, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._nudge.fd, select.POLLIN)
        poll.poll(timeout * 1000)
        self._nudge.take()
