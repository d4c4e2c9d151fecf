"""The functions of a user's config file that are called in the arbiter's main loop.

Whatever they do, the plan stands: what one raises is logged, and while one runs, the arbiter's
SIGALRM handler does what is due (`Supervisor.on_alarm`). One that still runs when its time is over
is ended by an exception there. Code that does not come back to the interpreter meanwhile (a name
lookup, C code) is not reached before it does.

What may be changed here: how such a function is called, not when.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any


class Overtime(BaseException):
    """Raised into a function whose time is over; no `except Exception` there shall stop it."""


class UserCode:
    """Calls them, one at a time.

    :param alarm: has SIGALRM come at once.
    """

    def __init__(self, log: Any, alarm: Callable[[], None]) -> None:
        self.log = log
        self.alarm = alarm
        self.running = False
        self.left: Callable[[], float] = float  # the seconds that it may still take

    def call(
        self,
        name: str,
        function: Callable[..., object] | None,
        left: Callable[[], float],
        *args: object,
    ) -> None:
        """Call a function, if there is one.

        :param name: the setting's.
        :param left: tells how many seconds it may still take.
        """
        if function is None:
            return
        self.left = left
        pid = os.getpid()
        try:
            try:
                self.running = True
                self.alarm()  # one that came a moment ago has found nobody to stand in for
                function(*args)
            finally:
                self.running = False
        except Overtime:
            self.log.warning("%s was still running when its time was over: ended", name)
        except BaseException:
            if os.getpid() != pid:
                raise  # it has forked, and its child must not go on as a second arbiter
            # sys.exit() in it, or gunicorn's HaltServer, is no more than a mistake there, too.
            self.log.exception("%s failed", name)

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """For a signal handler that works in its place, and may be interrupted by another."""
        self.running = False
        try:
            yield
        finally:
            self.running = True

    def end(self) -> None:
        """End it, in a signal handler: this raises, if one runs.

        :raises Overtime:
        """
        if self.running:
            raise Overtime
