"""The arbiter's part in the workers: who is spawned, who leaves, and in which order.

gunicorn replaces a worker when it has gone. Here its successor serves before it leaves: at HUP the
old ones leave together when all new ones have booted, at max_requests one at a time. A worker that
fails to boot is tried again while others serve.

What may be changed here: that order, and how long it is waited for. Only the main loop calls any
of this, but for `traffic` and `someone_waits`. A worker of another class (hooks, or from before a
HUP) has no slot and is gunicorn's.
"""

from __future__ import annotations

import math
import os
import signal
import time
from types import SimpleNamespace
from typing import Any

from gracefulworker.arbiter.report import Totals
from gracefulworker.phases import KILL_MARGIN, Phase
from gracefulworker.shared import sockets
from gracefulworker.shared.page import Page, Slot
from gracefulworker.shared.probes import State

#: Seconds before a worker that failed to boot is tried again, doubled each time up to the second.
RETRY_FIRST = 0.2
RETRY_MOST = 5.0


class BackOff:
    """Time between two tries to start a worker."""

    def __init__(self) -> None:
        self.step = RETRY_FIRST
        self._due = 0.0  # monotonic seconds

    def over(self) -> bool:
        return time.monotonic() >= self._due

    def begin(self) -> None:
        self._due = time.monotonic() + self.step

    def lengthen(self) -> None:
        self.step = min(self.step * 2, RETRY_MOST)


class Crew:
    """The workers of one arbiter, which are in its `WORKERS`.

    :param stock: the arbiter's own methods that are replaced on it.
    """

    def __init__(self, arbiter: Any, stock: SimpleNamespace, page: Page) -> None:
        self.arbiter = arbiter
        self.stock = stock
        self.page = page
        self.totals = Totals()
        self._emptied: set[Any] = set()  # listeners in whose queue nobody is left
        self.spawning: Slot | None = None  # of a worker that is built and about to be forked
        self.any_booted = False
        self.back_off = BackOff()
        self._seats: list[Any] = []  # our workers whose slots have not been folded yet
        self._overlap_until = 0.0  # monotonic seconds
        self._leaving_age = 0  # the age up to which workers leave, because of HUP
        self._relieved: list[Any] = []  # workers that serve on until their relief has booted
        self._relief_until = 0.0
        self._killed_at_deadline = False

    # Who they are

    def are_ours(self) -> bool:
        """Whether the workers are of our classes, which know how to drain."""
        return hasattr(self.arbiter.worker_class, "look")

    def ours(self) -> list[Any]:
        """The living workers of our classes (a HUP can change the class)."""
        return [worker for worker in self.arbiter.WORKERS.values() if hasattr(worker, "slot")]

    def heirs(self) -> list[Any]:
        """Those that stay, also when a HUP that is under way is over."""
        return [worker for worker in self._staying() if worker.age > self._leaving_age]

    def _staying(self) -> list[Any]:
        """Those that go on, the oldest first."""
        staying = [worker for worker in self._accepting() if worker not in self._relieved]
        return sorted(staying, key=lambda worker: worker.age)

    def _accepting(self) -> list[Any]:
        """Those that have not been told to leave, also those that still boot."""
        workers = self.arbiter.WORKERS.values()
        return [w for w in workers if not (hasattr(w, "slot") and w.slot.retire)]

    def _booting(self) -> list[Any]:
        return [worker for worker in self.ours() if not worker.slot.booted]

    # Who serves

    def state(self) -> State:
        """How the service stands; also asked in threads that answer probes."""
        workers = list(self.arbiter.WORKERS.values())
        strangers = [_heartbeat(worker) for worker in workers if not hasattr(worker, "slot")]
        now = time.monotonic()
        self.page.strangers = sum(-math.inf < beat <= now for beat in strangers)
        self.page.expected = self.arbiter.num_workers
        return self.page.state()

    def has_heartbeat(self) -> bool:
        """Whether there is a worker that gunicorn would not take for hung."""
        oldest = time.monotonic() - (self.arbiter.timeout or math.inf)
        return any(_heartbeat(worker) > oldest for worker in list(self.arbiter.WORKERS.values()))

    # Who waits for them

    def is_missed(self) -> bool:
        """Whether someone waits at a listener that no worker accepts from any more."""
        attended = self._emptied.union(*(worker.sockets for worker in self._accepting()))
        return self._someone_waits(set(self.arbiter.LISTENERS) - attended)

    def someone_waits(self) -> bool:
        """Whether anybody waits in an accept queue."""
        return self._someone_waits(set(self.arbiter.LISTENERS))

    def traffic(self) -> tuple[int, int, int]:
        """What the workers have accepted and answered since SIGTERM, and what they hold now."""
        slots = [worker.slot for worker in self._seats]
        return (
            self.totals.accepted + sum(slot.accepted for slot in slots),
            self.totals.served + sum(slot.served for slot in slots),
            sum(slot.in_flight for slot in slots),
        )

    def _someone_waits(self, listeners: set[Any]) -> bool:
        held = listeners.intersection(self.arbiter.LISTENERS)  # the others have been closed
        return bool(sockets.readable([listener.fileno() for listener in held]))

    # Slots

    def seat(self, worker: Any) -> Slot:
        """A slot for a worker of ours, from its `__init__` (in the arbiter, before the fork)."""
        self.spawning = self.page.take_slot()
        self._seats.append(worker)
        return self.spawning

    def fold_gone(self) -> None:
        """Add up and free the slots of workers that have been reaped."""
        self._fold({id(worker) for worker in self.arbiter.WORKERS.values()})

    def fold_all(self) -> None:
        """The same at the end: a quick stop does not wait for those that it has killed."""
        self._fold(set())

    def _fold(self, alive: set[int]) -> None:
        staying = []
        for worker in self._seats:
            slot = worker.slot
            self.any_booted = self.any_booted or bool(slot.booted)
            if id(worker) in alive or (slot is self.spawning and worker.pid == "[booting]"):
                staying.append(worker)
                continue
            worker.tmp.close()  # stock leaves it open after a failed boot
            if self.page.phase > Phase.SERVING:
                slot.cut += slot.in_flight  # it did not come back to clear this
                self.totals.fold(slot)
            if slot.drained:
                self._emptied.update(worker.sockets)
            self.page.free_slot(slot)
        self._seats = staying

    # Spawning

    def spawn_missing(self) -> None:
        if self.back_off.over():
            self.stock.spawn_workers()

    def could_not_start(self, reason: str) -> None:
        self.arbiter.log.warning("%s Next try in %.1f s", reason, self.back_off.step)
        self.back_off.begin()
        self.back_off.lengthen()

    def outlives_failed_boot(self, reason: str) -> bool:
        """Whether the service goes on after a worker failed to boot."""
        if self.page.phase == Phase.SERVING or not self.are_ours() or not self.any_booted:
            return False
        for pid in list(self.arbiter.WORKERS):
            if not _exists(pid):
                del self.arbiter.WORKERS[pid]  # gunicorn 25 raises before it does this
        self.could_not_start(reason)
        return True

    # Leaving

    def begin_overlap(self, seconds: float) -> None:
        """HUP: old workers serve on until all new ones have booted, so long at the most."""
        if any(worker.slot.booted for worker in self.ours()):
            self._dismiss(self._booting())  # a former HUP's, which this one replaces
        self._overlap_until = time.monotonic() + seconds
        self._leaving_age = self.arbiter.worker_age

    def manage(self, overlap: float) -> None:
        """As many as there shall be; those that leave are replaced before they do.

        :param overlap: seconds that a relief may take to boot.
        """
        if time.monotonic() < self._overlap_until and (self._booting() or self._missing() > 0):
            self._spawn_heirs()  # should one have died
            return  # HUP: the old ones serve until all the new ones do
        self._overlap_until = 0.0
        self._relieve(overlap)
        heirs = self.heirs()
        if self._missing() >= 0 and len(heirs) == len(self.arbiter.WORKERS):
            self.stock.manage_workers()
            return
        # Those that leave are replaced now, not when they have gone, and do not count as too many.
        self._spawn_heirs()
        leaving = self._dispensable(heirs)
        if self.page.is_serving() or self._heirs_are_up():
            leaving += [w for w in self._staying() if w.age <= self._leaving_age]
        for worker in leaving:
            self.arbiter.kill_worker(worker.pid, signal.SIGTERM)

    def _missing(self) -> int:
        """How many heirs there are too few, or, below 0, too many."""
        missing: int = self.arbiter.num_workers - len(self.heirs())
        return missing

    def _spawn_heirs(self) -> None:
        if self.back_off.over():
            for _ in range(self._missing()):
                self.arbiter.spawn_worker()

    def _dispensable(self, staying: list[Any]) -> list[Any]:
        """Those of `staying` that are too many, if the others accept from all their listeners."""
        surplus = max(len(staying) - self.arbiter.num_workers, 0)
        theirs = {listener for worker in staying[surplus:] for listener in worker.sockets}
        return [worker for worker in staying[:surplus] if theirs.issuperset(worker.sockets)]

    def _relieve(self, overlap: float) -> None:
        """Let workers go whose listeners need a successor, when that serves."""
        now = time.monotonic()
        alive = self.arbiter.WORKERS.values()
        self._relieved = [worker for worker in self._relieved if worker in alive]
        if not self._relieved and not self._booting():
            self._relieved = self._choose_to_relieve()  # their relief is spawned in this pass
            self._relief_until = now + overlap
        # From SIGTERM on a relief that fails to boot is tried again and again.
        is_late = now >= self._relief_until and self.page.is_serving()
        if is_late or self.arbiter.cfg.reload or self._heirs_are_up():
            for worker in self._relieved:
                # No signal, as in gunicorn's max_requests: the application may take SIGTERM for
                # itself.
                self.order_to_retire(worker)
            self._relieved = []

    def _heirs_are_up(self) -> bool:
        up = [w for w in self.heirs() if not hasattr(w, "slot") or w.slot.booted]
        return bool(len(up) >= self.arbiter.num_workers)

    def _choose_to_relieve(self) -> list[Any]:
        """Those that one more worker shall follow."""
        staying = self._staying()
        surplus = len(staying) - self.arbiter.num_workers
        if 0 < surplus < len(staying) and not self._dispensable(staying):
            return staying[: surplus + 1]  # TTOU with listener sets: one takes care of all theirs
        wishes = [worker for worker in self.ours() if worker.slot.wants_to_retire]
        if wishes and surplus >= 0 and len(staying) == len(self.arbiter.WORKERS):
            return [min(wishes, key=lambda worker: worker.age)]
        return []

    def order_to_retire(self, worker: Any) -> None:
        if hasattr(worker, "slot") and not worker.slot.retire:
            worker.slot.retire = 1
            worker.excused_until = time.monotonic() + worker.cfg.graceful_timeout + KILL_MARGIN

    def excuse(self) -> None:
        """Give workers in their graceful time a heartbeat, which a busy sync worker cannot."""
        now = time.monotonic()
        for worker in self.ours():
            if now < worker.excused_until:
                worker.tmp.notify()

    def dismiss_needless(self) -> None:
        """End workers that are still booting, if nobody waits for them."""
        booting = self._booting()
        serving = [worker for worker in self._accepting() if worker not in booting]
        served = {listener for worker in serving for listener in worker.sockets}
        self._dismiss([w for w in booting if not self._someone_waits({*w.sockets} - served)])

    def _dismiss(self, booting: list[Any]) -> None:
        for worker in booting:
            if worker.slot.dismissed:
                continue  # once: its handler sleeps for a moment, and another would come on top
            worker.slot.dismissed = 1
            if not worker.slot.booted:  # else it has seen the line above, or serves
                self.stock.kill_worker(worker.pid, signal.SIGQUIT)

    def dismiss_strangers(self) -> None:
        """End workers that do not see the phase, left over from before a HUP."""
        if self.are_ours():
            for pid, worker in list(self.arbiter.WORKERS.items()):
                if not hasattr(worker, "slot"):
                    self.stock.kill_worker(pid, signal.SIGTERM)

    def kill_the_rest(self) -> None:
        """The arbiter's deadline: who has not ended is stuck where Python cannot reach it."""
        if not self._killed_at_deadline:
            for worker in self.ours():
                self.arbiter.log.warning(
                    "worker (pid: %s) is still there after the deadline, with %d requests: killed",
                    worker.pid,
                    worker.slot.in_flight,
                )
                if not worker.slot.in_flight:
                    worker.slot.cut += 1
        self._killed_at_deadline = True
        for pid in list(self.arbiter.WORKERS):
            self.stock.kill_worker(pid, signal.SIGKILL)


def _heartbeat(worker: Any) -> float:
    """The monotonic second of its last one; a later one than now before its first.

    A new WorkerTmp has the time of its file, and gunicorn relies on that being later, too.
    """
    try:
        return float(worker.tmp.last_update())
    except (OSError, ValueError):
        return -math.inf  # closed: it has just been reaped


def _exists(pid: int) -> bool:
    """Whether a child is there; one that has been reaped is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
