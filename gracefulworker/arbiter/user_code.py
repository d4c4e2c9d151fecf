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
from collections.abc import Callable, Iterator
from types import CodeType, FrameType

from gracefulworker import seam
from gracefulworker.arbiter.watch import Watch
from gracefulworker.shared.page import ASK
from gracefulworker.shared.unpatched import original


class Overtime(BaseException):
    """Raised into a function whose time is over; no `except Exception` there shall stop it."""


class UserCode:
    """Calls them, one at a time.

    :param until: tells until when (ns) one may run.
    :param watch: does what is due meanwhile.
    """

    def __init__(self, log: seam.Log, until: Callable[[], int], watch: Watch) -> None:
        self.log = log
        self._until, self._watch = until, watch
        self._running = False
        self._over = False
        # Native, for a config file can have gevent patch the arbiter.
        self._get_ident = original("_thread", "get_ident")
        self._main = self._get_ident()
        #: ns until which the present one may run; 0 when there is none
        self.until: Callable[[], int] = int

    def call(self, name: str, function: Callable[..., object], *args: object) -> None:
        """Call a function.

        :param name: the setting's.
        """
        pid = os.getpid()
        try:
            self.watch(name, function, *args)
        except Overtime as overtime:
            self.log.warning("%s", overtime)
        except BaseException:
            if os.getpid() != pid:
                raise  # it has forked, and its child must not go on as a second arbiter
            # sys.exit() in it, or gunicorn's HaltServer, is no more than a mistake there, too.
            self.log.exception("%s failed", name)

    def watch(self, name: str, function: Callable[..., object], *args: object) -> None:
        """The same, and what it raises is raised.

        :raises Overtime: its time was over.
        """
        before = self._running, self.until
        self._watch.start()
        try:
            try:
                self._over, self.until, self._running = False, self._until, True
                function(*args)
            finally:
                self._running, self.until = before
        except Overtime:
            self._running, self.until = before
            raise Overtime(f"{name} was still running when its time was over: ended") from None
        finally:
            self._watch.stop()

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
        if self._running and self._get_ident() != self._main:
            signal.pthread_kill(self._main, ASK)  # whose handler ends with `raise_if_over`

    def raise_if_over(self, frame: FrameType | None, handlers: tuple[CodeType, ...]) -> None:
        """At the end of a signal handler.

        :param frame: what the signal has interrupted; if that is another one of `handlers`, which
            has not set the function aside yet, its signal would be lost.
        :raises Overtime: into the function that runs.
        """
        while frame is not None:
            if frame.f_code in handlers:
                return  # `end` comes again
            frame = frame.f_back
        if self._running and self._over:
            self._over = False
            raise Overtime
