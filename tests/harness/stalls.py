"""Bounds in tenths of a second, on a machine that now and then stands still."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from harness.clients import now


class Stalls(threading.Thread):
    """Measures for how long the whole machine stood still, so that a bound means the server.

    A virtual machine is taken off its processor for 50 ms and more at times; a bound of 100 ms
    says nothing about the server then. So a thread sleeps 5 ms at a time and notes by how much it
    overslept. It asks for so little that other work on the machine hardly delays it: a server
    that needs too much of the processor is not excused.
    """

    STEP = 0.005

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._found: list[tuple[float, float]] = []
        self._over = threading.Event()

    def run(self) -> None:
        last = now()
        while not self._over.wait(self.STEP):
            at = now()
            if (late := at - last - self.STEP) > self.STEP:
                self._found.append((at, late))
            last = at

    def between(self, start: float, end: float) -> float:
        return sum(late for at, late in list(self._found) if at > start and at - late < end)

    def stop(self) -> None:
        self._over.set()
        self.join()


_watching: list[Stalls] = []


@contextlib.contextmanager
def watch_stalls() -> Iterator[None]:
    """What stalls the machine from here on is taken off the bounds; conftest.py asks for it."""
    stalls = Stalls()
    stalls.start()
    _watching.append(stalls)
    try:
        yield
    finally:
        _watching.remove(stalls)
        stalls.stop()


def assert_within(bound: float, at: float, since: float, what: str) -> None:
    """``at`` is no later than ``bound`` seconds after ``since``, the machine's stalls apart."""
    stalls = sum(watching.between(since, at) for watching in _watching)
    assert at - since <= bound + stalls, (
        f"{what}: {at - since:.3f} s, allowed {bound:.3f} s, and {stalls:.3f} s of stalls"
    )
