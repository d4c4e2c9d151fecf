"""What the arbiter and its workers share: one memory page and two bells.

The page is a shared mapping made before the first fork. It has a name that /proc shows, by which
`gracefulworker drain` finds the arbiter and reads its phase. The arbiter alone writes the
phase and the times; each worker has a slot with its own flags and counters, given and freed by the
arbiter. A bell is a pipe whose only write end is the arbiter's: closing it makes every worker's
read end readable for good, and so does the arbiter's death, so "readable" means "look at the
page". Signals are not needed for any of this, so an application that installs its own SIGTERM
handler changes nothing.

What may be changed here: cells may be added (before the sizes below run out). Each cell is eight
aligned bytes, written by one process only (`Page.complete`: always the same), or under
`Slot.count`'s lock; times are
``time.monotonic_ns()``, which all processes of a machine share.
"""

from __future__ import annotations

import enum
import mmap
import os
import signal
import threading
from collections.abc import Callable
from functools import partial

from gracefulworker.phases import Phase
from gracefulworker.shared.probes import State

#: Cells of the page's head and of each slot (eight bytes each).
HEAD_CELLS = 16
SLOT_CELLS = 16

#: Workers that can live at once: HUP doubles them and TTIN has no bound. Pages of the mapping
#: that nobody touches cost no memory.
SLOTS = 16384


class ListenerState(enum.IntEnum):
    """What a draining worker does with the listening sockets."""

    OPEN = 0  #: the arbiter has not come to them yet: go on accepting
    GATED = 1  #: newcomers are refused, handshakes may still complete: go on accepting
    SEALED = 2  #: nothing more will come: accept until the queue is empty, then close
    LEFT = 3  #: they outlive us (USR2, systemd): their queue is served by others, just close


#: With this `gracefulworker drain` asks for LAME_DUCK. gunicorn uses it for nothing, and a process
#: that has no handler for it ignores it, so a mistake in the process does no harm.
ASK = signal.SIGURG

#: The page's size in bytes, and its name in /proc/PID/fd.
SIZE = 8 * (HEAD_CELLS + SLOTS * SLOT_CELLS)
NAME = "gracefulworker"

#: What the page begins to say when it is made: anybody can make a file of that name. To be changed
#: whenever a cell of the head moves, for `gracefulworker drain` may be of another version.
MAGIC = int.from_bytes(b"gw page1", "big")


def _memory() -> mmap.mmap:
    """Shared memory that forked processes inherit; of a name, where the system has such (Linux)."""
    try:
        fd = os.memfd_create(NAME)
    except (AttributeError, OSError):  # macOS; a sandbox that forbids it
        return mmap.mmap(-1, SIZE)
    try:
        os.ftruncate(fd, SIZE)
        return mmap.mmap(fd, SIZE)  # which keeps a descriptor of its own
    finally:
        os.close(fd)


def _cell(index: int) -> property:
    def read(self: _Cells) -> int:
        return self._cells[self._base + index]

    def write(self: _Cells, value: int) -> None:
        self._cells[self._base + index] = value

    return property(read, write)


class _Cells:
    """Named views of a run of cells."""

    def __init__(self, cells: memoryview[int], base: int) -> None:
        self._cells = cells
        self._base = base


#: The cell of a slot that `Page.state` adds up.
_BOOTED = 2


class Slot(_Cells):
    """One worker's flags and counters; the counters begin at SIGTERM."""

    retire = _cell(0)  #: set by the arbiter: stop, whatever the shared phase says
    term_at = _cell(1)  #: ns of a SIGTERM that came without `retire`
    booted = _cell(_BOOTED)
    dismissed = _cell(13)  #: set by the arbiter: if you are still booting, do not begin to serve
    wants_to_retire = _cell(12)  #: max_requests or the reloader; the arbiter says when
    drained = _cell(3)  #: has seen the sealed accept queue empty
    in_flight = _cell(4)  #: requests that the application holds
    accepted = _cell(5)
    accepted_at = _cell(6)  #: ns of the last new connection
    served = _cell(7)
    told_to_close = _cell(8)
    closed_idle = _cell(9)
    from_queue = _cell(10)
    cut = _cell(11)

    def __init__(self, cells: memoryview[int], base: int) -> None:
        super().__init__(cells, base)
        self._lock = threading.Lock()

    def has_orders(self) -> bool:
        """Whether `retire` or `term_at` is set; asked in each pass of a loop."""
        return bool(self._cells[self._base] or self._cells[self._base + 1])

    def gauge(self) -> Callable[[int], None]:
        """A fast way to write `in_flight`, which each request does twice."""
        return partial(self._cells.__setitem__, self._base + 4)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter from any of the worker's threads."""
        with self._lock:
            setattr(self, name, getattr(self, name) + number)

    def clear(self) -> None:
        for index in range(self._base, self._base + SLOT_CELLS):
            self._cells[index] = 0


class Page(_Cells):
    """The head that all workers read, and the slots."""

    _phase = _cell(0)
    _listeners = _cell(1)
    term_at = _cell(2)  #: ns of SIGTERM
    drain_at = _cell(3)  #: ns of the end of the delay
    deadline = _cell(4)  #: ns at which workers cut what is left
    magic = _cell(5)  #: `MAGIC`, in a page that is one
    delay_ends = _cell(6)  #: ns at which the delay is over at the latest; set as LAME_DUCK begins
    delay_over_at = _cell(8)  #: ns; LAME_DUCK may end, and does at the next SIGTERM
    arbiter = _cell(9)  #: its process id, once it hears signals
    expected = _cell(10)  #: workers that there shall be
    strangers = _cell(11)  #: workers of other classes, without a slot, that have booted
    complete = _cell(12)  #: as many as expected have been up together; set by whoever sees it
    _used = _cell(13)  #: slots that have ever been taken

    def __init__(self, head: bytes | None = None) -> None:
        """:param head: what another process's page says in its head, to be read only."""
        super().__init__(memoryview(_memory() if head is None else head).cast("q"), 0)
        self._free: list[int] = []
        if head is None:
            self.magic = MAGIC

    def head(self) -> memoryview[int]:
        """The cells, of which the first is the phase: the fastest way to ask for it."""
        return self._cells

    def is_serving(self) -> bool:
        """Whether SIGTERM has not come yet."""
        return not self._cells[0]

    @property
    def phase(self) -> Phase:
        """The shared phase; written by the arbiter alone, and never backwards."""
        return _PHASES[self._cells[0]]

    @phase.setter
    def phase(self, phase: Phase) -> None:
        assert phase >= self._phase, f"phases go one way: {self.phase!r} to {phase!r}"
        self._phase = phase

    @property
    def listeners(self) -> ListenerState:
        return ListenerState(self._listeners)

    @listeners.setter
    def listeners(self, state: ListenerState) -> None:
        self._listeners = state

    def state(self) -> State:
        """How many workers serve, as it is at this moment."""
        first = HEAD_CELLS + _BOOTED
        end = first + self._used * SLOT_CELLS
        booted = self.strangers + sum(self._cells[first:end:SLOT_CELLS])
        if booted >= self.expected:
            self.complete = 1
        return State(self.phase, booted, self.expected, bool(self.complete))

    def take_slot(self) -> Slot:
        """A cleared slot, for a worker about to be forked (arbiter only).

        :raises RuntimeError: when `SLOTS` workers are alive.
        """
        if self._free:
            index = self._free.pop()
        elif self._used < SLOTS:
            index = self._used
            self._used += 1
        else:
            raise RuntimeError(f"more than {SLOTS} workers are alive: lower `workers`")
        slot = Slot(self._cells, HEAD_CELLS + index * SLOT_CELLS)
        slot.clear()
        return slot

    def free_slot(self, slot: Slot) -> None:
        """Take back the slot of a worker that has been reaped (arbiter only)."""
        slot.booted = 0
        self._free.append((slot._base - HEAD_CELLS) // SLOT_CELLS)


_PHASES = tuple(Phase)


class Bell:
    """A broadcast that is heard once and for good, also by workers forked later."""

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe()

    def ring(self) -> None:
        """Make `fd` readable in every process; safe in a signal handler, and repeatedly."""
        write_fd, self._write_fd = self._write_fd, -1
        if write_fd >= 0:
            os.close(write_fd)

    #: A forked child gives its copy of the write end up the same way, unheard by the others.
    disown = ring


class Broadcast:
    """The page and the bells of one arbiter."""

    def __init__(self) -> None:
        self.page = Page()
        self.lame_duck = Bell()
        self.draining = Bell()
        # Any fork, not only gunicorn's of workers: the dirty arbiter and a user's
        # multiprocessing must not hold the write ends either, or the arbiter's death goes unheard.
        os.register_at_fork(after_in_child=self._disown)

    def _disown(self) -> None:
        self.lame_duck.disown()
        self.draining.disown()

    def begin_lame_duck(self, now: int) -> None:
        """SIGTERM came at `now` ns. Called in the arbiter's signal handler: no log, no lock."""
        self.page.term_at = now
        self.page.phase = Phase.LAME_DUCK
        self.lame_duck.ring()

    def begin_draining(self, now: int, deadline: int, listeners: ListenerState) -> None:
        """The delay was over at `now` ns; at `deadline` ns what is left is cut."""
        self.page.drain_at = now
        self.page.deadline = deadline
        self.page.listeners = listeners
        self.page.phase = Phase.DRAINING
        self.draining.ring()
