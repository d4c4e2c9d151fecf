"""What the arbiter and its workers share: one memory page and two bells.

The page is a shared mapping made before the first fork. It has a name that /proc shows, by which
`gracefulworker drain` finds the arbiter and reads its phase. The arbiter alone writes the
phase and the times; each worker has a slot with its own flags and counters, given and freed by the
arbiter. A bell is a pipe whose only write end is the arbiter's: closing it makes every worker's
read end readable for good, and so does the arbiter's death, so "readable" means "look at the
page". Signals are not needed for any of this, so an application that installs its own SIGTERM
handler changes nothing.

What may be changed here: cells may be added, and number themselves. Each is eight aligned bytes,
written by one process only (`Page.complete`: always the same), or under `Slot.count`'s lock; times
are ``time.monotonic_ns()``, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import threading
import zlib
from collections.abc import Callable
from functools import partial
from typing import overload

from gracefulworker.phases import KILL_MARGIN, SECOND, ListenerState, Phase
from gracefulworker.shared.probes import State

#: Room for the cells of the page's head and of each slot (eight bytes each).
HEAD_CELLS = 16
SLOT_CELLS = 16

#: Workers that can live at once: HUP doubles them and TTIN has no bound. Pages of the mapping
#: that nobody touches cost no memory.
SLOTS = 16384


#: With this `gracefulworker drain` asks for LAME_DUCK. gunicorn uses it for nothing, and a process
#: that has no handler for it ignores it, so a mistake in the process does no harm.
ASK = signal.SIGURG

#: The page's size in bytes, and its name in /proc/PID/fd.
SIZE = 8 * (HEAD_CELLS + SLOTS * SLOT_CELLS)
NAME = "gracefulworker"


def _memory() -> mmap.mmap:
    """Shared memory that forked processes inherit; of a name, where the system has such (Linux).

    Without a name `gracefulworker drain` does not find the service; nothing else differs.
    """
    try:
        fd = os.memfd_create(NAME)
    except (AttributeError, OSError):  # macOS; a sandbox that forbids it
        return mmap.mmap(-1, SIZE)
    try:
        os.ftruncate(fd, SIZE)
        return mmap.mmap(fd, SIZE)  # which keeps a descriptor of its own
    except OSError:  # a limit on the size of files (RLIMIT_FSIZE; Python ignores its signal)
        return mmap.mmap(-1, SIZE)
    finally:
        os.close(fd)


class Cell:
    """A cell by its name; its `index` is its place among those of its class."""

    __slots__ = ("index",)

    def __set_name__(self, owner: type[Cells], name: str) -> None:
        self.index = owner.used
        owner.used += 1
        assert owner.used <= owner.room, f"{owner.__name__} has no room for {name}"

    @overload
    def __get__(self, run: None, owner: type[Cells]) -> Cell: ...

    @overload
    def __get__(self, run: Cells, owner: type[Cells]) -> int: ...

    def __get__(self, run: Cells | None, owner: type[Cells]) -> int | Cell:
        return self if run is None else run.cells[run.base + self.index]

    def __set__(self, run: Cells, value: int) -> None:
        run.cells[run.base + self.index] = value


class Cells:
    """Named views of a run of cells, which begins at `base` in those of the page."""

    room = 0  #: cells that there can be
    used = 0  #: cells that have names

    def __init__(self, cells: memoryview[int], base: int) -> None:
        self.cells = cells
        self.base = base


class Slot(Cells):
    """One worker's flags and counters; the counters begin at SIGTERM."""

    room = SLOT_CELLS

    retire = Cell()  #: set by the arbiter: stop, whatever the shared phase says
    term_at = Cell()  #: ns of a SIGTERM that came without `retire`
    booted = Cell()
    dismissed = Cell()  #: set by the arbiter: if you are still booting, do not begin to serve
    wants_to_retire = Cell()  #: max_requests or the reloader; the arbiter says when
    drained = Cell()  #: has seen the sealed accept queue empty
    in_flight = Cell()  #: requests that the application holds
    accepted = Cell()
    accepted_at = Cell()  #: ns of the last new connection
    served = Cell()
    told_to_close = Cell()
    closed_idle = Cell()
    from_queue = Cell()
    websockets_told = Cell()  #: that they are to end
    cut = Cell()

    def __init__(self, cells: memoryview[int], base: int) -> None:
        super().__init__(cells, base)
        self._lock = threading.Lock()
        self._retire, self._term_at = base + Slot.retire.index, base + Slot.term_at.index

    def has_orders(self) -> bool:
        """Whether `retire` or `term_at` is set; asked in each pass of a loop."""
        return bool(self.cells[self._retire] or self.cells[self._term_at])

    def gauge(self) -> Callable[[int], None]:
        """A fast way to write `in_flight`, which each request does twice."""
        return partial(self.cells.__setitem__, self.base + Slot.in_flight.index)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter from any of the worker's threads."""
        with self._lock:
            setattr(self, name, getattr(self, name) + number)

    def copy(self) -> Slot:
        """The same figures in memory of their own, for a process that the application forks."""
        cells = memoryview(bytearray(8 * SLOT_CELLS)).cast("q")
        cells[:] = self.cells[self.base : self.base + SLOT_CELLS]
        return Slot(cells, 0)

    def clear(self) -> None:
        for index in range(self.base, self.base + SLOT_CELLS):
            self.cells[index] = 0


class Page(Cells):
    """The head that all workers read, and the slots."""

    room = HEAD_CELLS

    _phase = Cell()  # the first: see `head`
    _listeners = Cell()
    term_at = Cell()  #: ns of SIGTERM
    drain_at = Cell()  #: ns of the end of the delay
    deadline = Cell()  #: ns at which workers cut what is left
    magic = Cell()  #: `MAGIC`, in a page that is one
    delay_ends = Cell()  #: ns at which the delay is over at the latest; set as LAME_DUCK begins
    delay_over_at = Cell()  #: ns; LAME_DUCK may end, and does at the next SIGTERM
    arbiter = Cell()  #: its process id, once it hears signals
    expected = Cell()  #: workers that there shall be
    strangers = Cell()  #: workers of other classes, without a slot, that have booted
    complete = Cell()  #: as many as expected have been up together; set by whoever sees it
    _slots_used = Cell()  #: slots that have ever been taken

    def __init__(self, head: bytes | None = None) -> None:
        """:param head: what another process's page says in its head, to be read only."""
        super().__init__(memoryview(_memory() if head is None else head).cast("q"), 0)
        self._free: list[int] = []
        if head is None:
            self.magic = MAGIC

    def is_one(self) -> bool:
        """Whether this is a page, and of this version: anybody can make a file of that name."""
        return self.magic == MAGIC and self.cells[0] in list(Phase)

    def head(self) -> memoryview[int]:
        """The cells, of which the first is the phase: the fastest way to ask for it."""
        assert Page._phase.index == 0
        return self.cells

    def is_serving(self) -> bool:
        """Whether SIGTERM has not come yet."""
        return not self.cells[0]

    @property
    def phase(self) -> Phase:
        """The shared phase; written by the arbiter alone, and never backwards."""
        return _PHASES[self.cells[0]]

    @phase.setter
    def phase(self, phase: Phase) -> None:
        assert phase >= self._phase, f"phases go one way: {self.phase!r} to {phase!r}"
        self._phase = phase

    def is_overdue(self, at: int) -> bool:
        """Whether whoever was still there `at` ns has been ended since, and not by itself."""
        return bool(self.deadline) and at > self.deadline + round(KILL_MARGIN / 2 * SECOND)

    @property
    def listeners(self) -> ListenerState:
        return ListenerState(self._listeners)

    @listeners.setter
    def listeners(self, state: ListenerState) -> None:
        self._listeners = state

    def state(self) -> State:
        """How many workers serve, as it is at this moment."""
        first = HEAD_CELLS + Slot.booted.index
        end = first + self._slots_used * SLOT_CELLS
        booted = self.strangers + sum(self.cells[first:end:SLOT_CELLS])
        if booted >= self.expected:
            self.complete = 1
        return State(self.phase, booted, self.expected, bool(self.complete))

    def take_slot(self) -> Slot:
        """A cleared slot, for a worker about to be forked (arbiter only).

        :raises RuntimeError: when `SLOTS` workers are alive.
        """
        if self._free:
            index = self._free.pop()
        elif self._slots_used < SLOTS:
            index = self._slots_used
            self._slots_used += 1
        else:
            raise RuntimeError(f"more than {SLOTS} workers are alive: lower `workers`")
        slot = Slot(self.cells, HEAD_CELLS + index * SLOT_CELLS)
        slot.clear()
        return slot

    def free_slot(self, slot: Slot) -> None:
        """Take back the slot of a worker that has been reaped (arbiter only)."""
        slot.booted = 0
        self._free.append((slot.base - HEAD_CELLS) // SLOT_CELLS)


_PHASES = tuple(Phase)

#: What a page says of itself. It follows from the names and the order of the head's cells, for
#: `gracefulworker drain` may be of another version.
_NAMES = " ".join(name for name, value in vars(Page).items() if isinstance(value, Cell))
MAGIC = int.from_bytes(b"gw", "big") << 32 | zlib.crc32(_NAMES.encode())


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


class Nudge:
    """Ends the arbiter's wait, from any process, thread or signal handler, and needs no signal."""

    def __init__(self) -> None:
        self.fd, self.write_fd = os.pipe()
        for fd in (self.fd, self.write_fd):
            os.set_blocking(fd, False)

    def give(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it will wake; it has gone
            os.write(self.write_fd, b".")

    def take(self) -> None:
        """Read all that were given."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 65536)


class Broadcast:
    """The page and the bells of one arbiter, and the way back to it."""

    def __init__(self) -> None:
        self.page = Page()
        self.lame_duck = Bell()
        self.draining = Bell()
        self.nudge = Nudge()
        # Any fork, not only gunicorn's of workers: the dirty arbiter and a user's
        # multiprocessing must not hold the write ends either, or the arbiter's death goes unheard.
        os.register_at_fork(after_in_child=self._disown)

    def _disown(self) -> None:
        self.lame_duck.disown()
        self.draining.disown()
