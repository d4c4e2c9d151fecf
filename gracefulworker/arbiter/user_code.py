"""The functions of a user's config file that are called in the arbiter's main loop.

Whatever they do, the plan stands: what one raises is logged, and while one runs, a thread does what
is due (`gracefulworker.arbiter.watch`). One that still runs when its time is over is ended by an
exception there. Code that does not come back to the interpreter meanwhile (a name lookup, C code)
is not reached before it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from gracefulworker import seam
from gracefulworker.arbiter.watch import Watch
from gracefulworker.shared.page import ASK


class Overtime(BaseException):
    """Raised into a function whose time is over; no `except Exception` there shall stop it."""


class UserCode:
    """Calls them, one at a time."""

    def __init__(self, log: seam.Log) -> None:
        self.log = log
        self._running = False
        self._over = False
        #: ns until which the present one may run; 0 when there is none
        self.until: Callable[[], int] = int

    def call(
        self,
        name: str,
        function: Callable[..., object],
        until: Callable[[], int],
        look: Callable[[], int],
        *args: object,
    ) -> None:
        """Call a function.

        :param name: the setting's.
        :param until: tells until when (ns) it may run.
        :param look: does what is due meanwhile, in a thread, and returns when to look again (ns).
        """
        pid = os.getpid()
        try:
            self.watch(name, function, until, look, *args)
        except Overtime as overtime:
            self.log.warning("%s", overtime)
        except BaseException:
            if os.getpid() != pid:
                raise  # it has forked, and its child must not go on as a second arbiter
            # sys.exit() in it, or gunicorn's HaltServer, is no more than a mistake there, too.
            self.log.exception("%s failed", name)

    def watch(
        self,
        name: str,
        function: Callable[..., object],
        until: Callable[[], int],
        look: Callable[[], int],
        *args: object,
    ) -> None:
        """The same, and what it raises is raised.

        :raises Overtime: its time was over.
        """
        pid = os.getpid()
        watch = Watch(look)
        watch.start()
        try:
            try:
                self._over, self.until, self._running = False, until, True
                function(*args)
            finally:
                self._running, self.until = False, int
        except Overtime:
            self._running, self.until = False, int
            raise Overtime(f"{name} was still running when its time was over: ended") from None
        finally:
            if os.getpid() == pid:
                watch.stop()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """For a signal handler that works in its place, and may be interrupted by another."""
        before, self._running = self._running, False
        try:
            yield
        finally:
            self._running = before

    def end(self) -> None:
        """Its time is over: the main thread's next `raise_if_over` ends it."""
        self._over = True
        main = threading.main_thread().ident
        if self._running and main is not None and threading.get_ident() != main:
            signal.pthread_kill(main, ASK)  # whose handler ends with `raise_if_over`

    def raise_if_over(self) -> None:
        """At the end of a signal handler.

        :raises Overtime: into the function that runs.
        """
        if self._running and self._over:
            self._over = False
            raise Overtime
