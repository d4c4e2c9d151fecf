"""The arbiter's part in the workers: what `crew_plan` has decided is done here.

A snapshot of the workers is taken, and orders are carried out: a flag in a slot, a signal, a fork.

What may be changed here: how that is done. Only the main loop calls any of this, but for `state`,
`has_heartbeat`, `traffic` and `someone_waits`.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from gracefulworker import seam
from gracefulworker.arbiter import crew_plan
from gracefulworker.arbiter.crew_plan import Handover, Member, Roster
from gracefulworker.arbiter.report import Totals
from gracefulworker.phases import KILL_MARGIN, Phase
from gracefulworker.shared import sockets
from gracefulworker.shared.page import Page, Slot
from gracefulworker.shared.probes import State

#: Seconds before a worker that failed to boot is tried again, doubled each time up to the second.
RETRY_FIRST = 0.2
RETRY_MOST = 5.0

#: Seconds after which a worker that boots seems to hang, where `graceful_overlap` is 0.
HANGS_AFTER = 10.0


class OurWorker:
    """What makes a worker class one of ours: it knows how to drain, and has a slot.

    Of those in `WORKERS`, that is: the arbiter has built them, so `seat` gave each its slot. A
    worker of any other class is a stranger (hooks, or from before a HUP), and gunicorn's.
    """

    slot: Slot
    excused_until: float  #: monotonic seconds; until then a missing heartbeat is no fault
    built_at: float  #: monotonic seconds
    is_successor: bool  #: whether others served when it was built

    # gunicorn's Worker has these.
    age: int
    cfg: seam.Config  #: the configuration that it was built with


class BackOff:
    """Time between two tries to start a worker.

    :param clock: gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """All are up."""
        self.failures = 0  #: since then
        self._step = RETRY_FIRST
        self._due = 0.0  # monotonic seconds

    def left(self) -> float:
        """Seconds to the next try, at which it is 0."""
        return max(self._due - self._clock(), 0.0)

    def over(self) -> bool:
        return not self.left()

    def fail(self) -> None:
        """Of those that have been started together each may fail, and that is one try."""
        self.failures += 1
        if self.over():
            self._due = self._clock() + self._step
            self._step = min(self._step * 2, RETRY_MOST)

    def cut_short(self) -> None:
        """What stood in the way may have gone."""
        self._due = 0.0


class Crew:
    """The workers of one arbiter, which are in its `WORKERS`.

    :param stock: the arbiter's own methods that are replaced on it.
    """

    def __init__(self, arbiter: seam.Arbiter, stock: SimpleNamespace, page: Page) -> None:
        self.arbiter = arbiter
        self.stock = stock
        self.page = page
        self.totals = Totals()
        self._emptied: set[Any] = set()  # listeners in whose queues nobody is left
        self.spawning: Slot | None = None  # of a worker that is built and about to be forked
        self.any_booted = False
        self.stops = False  # the service ends, maybe at once: nobody who has gone is missed
        self.back_off = BackOff()
        self._seats: list[Any] = []  # our workers whose slots have not been folded yet
        self._looked_at = 0  # ns at which all seats that are left were alive
        self._handover = Handover()
        self.killed: set[int] = set()  # the process ids of those that had to be

    # Who they are

    def are_ours(self) -> bool:
        """Whether the workers are of our classes, which know how to drain."""
        cls = self.arbiter.worker_class
        return isinstance(cls, type) and issubclass(cls, OurWorker)

    def ours(self) -> list[Any]:
        """The living workers of our classes (a HUP can change the class)."""
        return [w for w in self._workers() if isinstance(w, OurWorker)]

    def heirs(self) -> list[Any]:
        """Those that stay, also when a HUP that is under way is over."""
        return self._alive(self._roster().heirs)

    def _workers(self) -> list[Any]:
        """A copy, for gunicorn 23 reaps in a signal handler."""
        return list(self.arbiter.WORKERS.values())

    def _roster(self, hangs_after: float = math.inf) -> Roster:
        """:param hangs_after: seconds that a worker may take to boot."""
        workers = sorted(self._workers(), key=lambda worker: worker.age)
        hangs_since = time.monotonic() - hangs_after
        return Roster(
            [_member(worker, hangs_since) for worker in workers],
            self.arbiter.num_workers,
            self._handover,
            frozenset(self.arbiter.LISTENERS),
        )

    def _alive(self, members: Iterable[Member]) -> list[Any]:
        """Those of `members` that are still there, in that order."""
        workers = {worker.age: worker for worker in self._workers()}
        return [workers[member.age] for member in members if member.age in workers]

    # Who serves

    def state(self) -> State:
        """How the service stands; also asked in threads that answer probes."""
        strangers = [w for w in self._workers() if not isinstance(w, OurWorker)]
        self.page.strangers = sum(_has_booted(worker) for worker in strangers)
        self.page.expected = self.arbiter.num_workers
        return self.page.state()

    def has_heartbeat(self) -> bool:
        """Whether there is a worker that gunicorn would not take for hung."""
        oldest = time.monotonic() - (self.arbiter.timeout or math.inf)
        return any(_heartbeat(worker) > oldest for worker in self._workers())

    def someone_serves(self) -> bool:
        """Whether a worker has booted."""
        return any(_has_booted(worker) for worker in self._workers())

    # Who waits for them

    def is_missed(self) -> bool:
        """Whether someone waits at a listener that no worker accepts from any more."""
        attended = self._emptied.union(*(m.listeners for m in self._roster().accepting))
        return bool(self._waited_at() - attended)

    def someone_waits(self) -> bool:
        """Whether anybody waits in an accept queue."""
        return bool(self._waited_at())

    def _waited_at(self) -> set[Any]:
        """The listeners in whose accept queues somebody waits."""
        at = {listener.fileno(): listener for listener in self.arbiter.LISTENERS}
        return {at[fd] for fd in sockets.readable(list(at))}

    def traffic(self) -> tuple[int, int, int]:
        """What the workers have accepted and answered since SIGTERM, and what they hold now."""
        slots = [worker.slot for worker in self._seats]
        return (
            self.totals.accepted + sum(slot.accepted for slot in slots),
            self.totals.served + sum(slot.served for slot in slots),
            sum(slot.in_flight for slot in slots),
        )

    # Slots

    def seat(self, worker: Any) -> Slot:
        """A slot for a worker of ours, from its `__init__` (in the arbiter, before the fork)."""
        self.spawning = self.page.take_slot()
        worker.built_at, worker.is_successor = time.monotonic(), self.someone_serves()
        self._seats.append(worker)
        return self.spawning

    def fold_gone(self) -> list[Any]:
        """Add up and free the slots of workers that have been reaped; those that had not booted."""
        return self._fold({id(worker) for worker in self._workers()})

    def fold_all(self) -> None:
        """The same at the end: a quick stop does not wait for those that it has killed."""
        self._fold(set())

    def _fold(self, alive: set[int]) -> list[Any]:
        staying, failed = [], []
        for worker in self._seats:
            slot = worker.slot
            self.any_booted = self.any_booted or bool(slot.booted)
            if id(worker) in alive or (slot is self.spawning and worker.pid == "[booting]"):
                staying.append(worker)
                continue
            if worker.pid != "[booting]" and not (slot.booted or slot.dismissed or slot.retire):
                failed.append(worker)
            worker.tmp.close()  # stock leaves it open after a failed boot
            if self.page.phase > Phase.SERVING or self.stops:
                slot.cut += slot.in_flight  # it did not come back to clear this
                if self.page.is_overdue(self._looked_at):
                    slot.cut = slot.cut or 1  # its exit, which it could not name itself
                self.totals.fold(slot)
            if slot.drained:
                self._emptied.update(worker.sockets)
            self.page.free_slot(slot)
        self._seats, self._looked_at = staying, time.monotonic_ns()
        return failed

    # Spawning

    def spawn_missing(self) -> None:
        if self.back_off.over():
            self.stock.spawn_workers()

    def forget_vanished(self) -> None:
        """Where SIGCHLD is ignored, the kernel reaps, and nobody else is told."""
        for pid in list(self.arbiter.WORKERS):
            if not _exists(pid):
                del self.arbiter.WORKERS[pid]

    def outlives_fork(self, error: BaseException) -> bool:
        """Whether the service goes on though a worker could not be forked; then that is logged.

        A service that has not come up, or that nobody else serves, ends as gunicorn's does.
        """
        if self.page.is_serving():
            if isinstance(error, StopIteration) or not isinstance(error, Exception):
                return False  # an order to the arbiter
            if not (self.are_ours() and self.page.complete and self.someone_serves()):
                return False
        if not isinstance(error, OSError):
            self.arbiter.log.error("Exception while a worker was started", exc_info=error)
        self._try_again(f"A worker could not be started: {error!r}.")
        return True

    def outlives_boot(self, failed: list[Any], reason: str) -> bool:
        """The same, of one that failed to boot; `failed` has gone, it among them."""
        if self.stops:
            return True
        if self.page.is_serving():
            # The first to fail alone is the last.
            are_successors = bool(failed) and all(worker.is_successor for worker in failed)
            if not (self.are_ours() and self.page.complete and are_successors):
                return False
        elif not (self.any_booted or self.page.strangers):
            return False
        self._try_again(reason, failed)
        return True

    def note_unbooted(self, failed: list[Any]) -> None:
        """`failed` have gone in a way of which gunicorn thinks nothing: a signal, or sys.exit."""
        has_come_up = self.page.complete or not self.page.is_serving()
        if failed and has_come_up and not self.stops:
            self._try_again("A worker has ended before it had booted.", failed)

    def _try_again(self, reason: str, failed: Sequence[Any] = ()) -> None:
        self.back_off.fail()
        if failed and all(worker.is_successor for worker in failed) and not self.someone_serves():
            self.back_off.cut_short()  # whom they were to relieve has gone meanwhile
        self.arbiter.log.warning("%s Next try in %.1f s", reason, self.back_off.left())

    # Leaving

    def begin_overlap(self, seconds: float) -> None:
        """HUP: old workers serve on until all new ones have booted, so long at the most."""
        self._handover, dismissed = crew_plan.begin_overlap(
            self._roster(), self.arbiter.worker_age, time.monotonic() + seconds
        )
        self._dismiss(dismissed)
        self.back_off.reset()

    def manage(self, overlap: float) -> None:
        """As many as there shall be; those that leave are replaced before they do.

        :param overlap: seconds that a successor may take to boot.
        """
        roster = self._roster(overlap or HANGS_AFTER)
        if roster.heirs_are_up:
            self.back_off.reset()
        self._handover, orders = crew_plan.plan(
            roster,
            now=time.monotonic(),
            overlap=overlap,
            serving=self.page.is_serving(),
            may_spawn=self.back_off.over(),
            failures=self.back_off.failures,
            impatient=self.arbiter.cfg.reload,
        )
        self._say_who_leaves_first(roster.handover)
        if orders.as_gunicorn:
            self.stock.manage_workers()
        for worker in self._alive(orders.retire):
            self.order_to_retire(worker)
        for _ in range(orders.spawn):
            self.arbiter.spawn_worker()
        for worker in self._alive(orders.terminate):
            self.arbiter.kill_worker(worker.pid, signal.SIGTERM)

    def _say_who_leaves_first(self, before: Handover) -> None:
        if self._handover.blamed_at and not before.blamed_at:
            self.back_off.cut_short()  # of no use before they have gone
            self.arbiter.log.warning(
                "No worker has booted beside those that it shall replace: they leave first"
            )
        if self._handover.leave_first and not before.leave_first:
            self.arbiter.log.warning(
                "A worker has booted as soon as another had left: until the next HUP they leave"
                " before they are replaced, as they do with graceful_overlap = 0"
            )

    def order_to_retire(self, worker: Any) -> None:
        if isinstance(worker, OurWorker) and not worker.slot.retire:
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
        self._dismiss(crew_plan.needless(self._roster(), self._waited_at()))

    def _dismiss(self, booting: Iterable[Member]) -> None:
        for worker in self._alive(booting):
            worker.slot.dismissed = 1
            if not worker.slot.booted:  # else it has seen the line above, or serves
                self.stock.kill_worker(worker.pid, signal.SIGQUIT)

    def dismiss_strangers(self) -> None:
        """End workers that do not see the phase, left over from before a HUP."""
        if self.are_ours():
            for pid, worker in list(self.arbiter.WORKERS.items()):
                if not isinstance(worker, OurWorker):
                    self.stock.kill_worker(pid, signal.SIGTERM)

    def kill_the_rest(self) -> None:
        """The arbiter's deadline: who has not ended is stuck where Python cannot reach it."""
        self.stops = True
        for pid in list(self.arbiter.WORKERS):
            self.note_killed(pid)
            self.stock.kill_worker(pid, signal.SIGKILL)

    def note_killed(self, pid: int) -> None:
        """Say that a worker had to be killed at the end, once."""
        worker = self.arbiter.WORKERS.get(pid)
        if worker is None or pid in self.killed:
            return
        self.killed.add(pid)
        has = ""
        if isinstance(worker, OurWorker):
            has = f", with {worker.slot.in_flight} requests"
            worker.slot.cut = worker.slot.cut or int(not worker.slot.in_flight)
        self.arbiter.log.warning("worker (pid: %s) has not ended in time%s: killed", pid, has)


def _member(worker: Any, hangs_since: float) -> Member:
    listeners = frozenset(worker.sockets)
    if not isinstance(worker, OurWorker):
        return Member(worker.age, listeners, is_ours=False)
    slot = worker.slot
    return Member(
        worker.age,
        listeners,
        booted=bool(slot.booted),
        retiring=bool(slot.retire),
        wants_to_retire=bool(slot.wants_to_retire),
        dismissed=bool(slot.dismissed),
        hangs=not slot.booted and worker.built_at < hangs_since,
    )


def _has_booted(worker: Any) -> bool:
    if isinstance(worker, OurWorker):
        return bool(worker.slot.booted)
    return -math.inf < _heartbeat(worker) <= time.monotonic()


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
