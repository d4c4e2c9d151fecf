"""What happens in the arbiter: SIGTERM is intercepted, and its own main loop leads to the end.

gunicorn's arbiter answers SIGTERM with `stop()`: it closes the listeners first, then polls until
the workers are gone, respawns and times out nobody. All that is needed for a better end is already
in its normal loop, so SIGTERM only moves the phase, and the loop goes on: in LAME_DUCK as before
(respawn, timeout, max_requests), in DRAINING until no worker is left. Nothing of it is copied and
no class is patched: `Supervisor` replaces methods on the one arbiter instance, each of which that
loop looks up by name (gunicorn 20.1 to 27). Each replacement says what it leans on.

What may be changed here: what the arbiter does in each phase. Anything that workers must see goes
through `gracefulworker.lifecycle`. Signal handlers note, flip and hand on: they never log or block.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from dataclasses import dataclass, fields
from types import FrameType, SimpleNamespace
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from gracefulworker import gate, settings
from gracefulworker.container import shell_as_pid1
from gracefulworker.lifecycle import Lifecycle, Listeners, Slot
from gracefulworker.phases import EXIT_CUT, KILL_MARGIN, REPEAT_WINDOW, Phase, Schedule

#: Seconds between two looks at the handshakes under way.
SETTLE_STEP = 0.02

#: Seconds before a worker that failed to boot is tried again, doubled each time up to the second.
RETRY_FIRST = 0.2
RETRY_MOST = 5.0

#: Seconds that a quick stop (SIGINT, SIGQUIT) waits for workers, as gunicorn's second SIGINT does.
QUICK_LIMIT = 2

_SECOND = 1_000_000_000

#: The arbiter's methods that `Supervisor` replaces.
REPLACED = (
    "handle_term",
    "handle_int",
    "handle_quit",
    "handle_hup",
    "handle_usr2",
    "handle_winch",
    "spawn_workers",
    "spawn_worker",
    "manage_workers",
    "murder_workers",
    "kill_worker",
    "reap_workers",
    "wait_for_signals",
    "wakeup",
    "halt",
)


class _LeaveReload(Exception):
    """Ends the wait for old workers in the arbiter's reload(), which blocks its main loop."""


@dataclass
class Totals:
    """What the workers that are gone have counted since SIGTERM."""

    accepted: int = 0
    accepted_at: int = 0
    served: int = 0
    told_to_close: int = 0
    closed_idle: int = 0
    from_queue: int = 0
    cut: int = 0

    def fold(self, slot: Slot) -> None:
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(slot, field.name)
            together = max(mine, theirs) if field.name == "accepted_at" else mine + theirs
            setattr(self, field.name, together)


def supervise() -> Supervisor | None:
    """The supervisor of the arbiter that this code runs in, made at the first call.

    A worker class reaches the arbiter by itself: its `check_config` and `__init__` run there, after
    `init_signals`. None outside an arbiter, where a worker must simply work as stock.
    """
    handler = signal.getsignal(signal.SIGTERM)
    owner = getattr(handler, "__self__", None)
    if isinstance(owner, Supervisor):
        return owner
    if isinstance(owner, Arbiter):
        return Supervisor.of(owner)
    # A user's hook has replaced the handler: the arbiter is in a caller's frame.
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Arbiter):
            return Supervisor.of(caller)
        frame = frame.f_back
    return None


class Supervisor:
    """Leads one arbiter through the phases."""

    @classmethod
    def of(cls, arbiter: Any) -> Supervisor:
        """The supervisor of `arbiter`, made at the first call.

        :raises SettingsError: which gunicorn prints as one line, with exit status 1.
        """
        supervisor = vars(arbiter).get("_gracefulworker")
        if supervisor is None:
            supervisor = arbiter._gracefulworker = cls(arbiter)
        return supervisor  # type: ignore[no-any-return]

    def __init__(self, arbiter: Any) -> None:
        self.arbiter = arbiter
        self.pid = os.getpid()
        self.log = arbiter.log
        self.lifecycle = Lifecycle()
        self.page = self.lifecycle.page
        self.totals = Totals()
        self.began: str | None = None  # the signal that ended SERVING, once it has been logged
        self.term_signal = signal.SIGTERM
        self.quick: str | None = None  # SIGINT or SIGQUIT: stop at once
        self.quick_at = 0
        self.hurry = False  # a later SIGTERM: end the delay
        self.reloading = False
        self.overlap_until = 0.0  # monotonic seconds
        self.relieved: Any = None  # a worker that serves on until its relief has booted
        self.relief_until = 0.0
        self.any_booted = False
        self.retry_after = 0.0  # monotonic seconds
        self.retry_step = RETRY_FIRST
        self.seats: list[Any] = []  # our workers whose slots have not been folded yet
        self.spawning: Slot | None = None  # of a worker that is built and about to be forked
        self.unix_paths = gate.UnixPaths()
        self.queue_emptied = False
        self.killed_at_deadline = False
        self.ungated: list[Any] = []
        self.tcp_ports: frozenset[int] = frozenset()
        try:
            self.read_settings()
        except settings.SettingsError as error:
            if not arbiter.WORKERS:
                raise
            # A HUP has brought our workers into a service that runs.
            self.log.error("%s; using the defaults", error)
            self.settings = settings.read(self.cfg, {}, {})
            self.schedule = Schedule(self.settings.delay, self.settings.finish)
        self.stock = SimpleNamespace(**{name: getattr(arbiter, name) for name in REPLACED})
        for name in REPLACED:
            setattr(arbiter, name, getattr(self, name))
        self.wake_fd, self.wake_push_fd = os.pipe()
        for fd in (self.wake_fd, self.wake_push_fd):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self.wake_push_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self.on_signal)
        signal.signal(signal.SIGALRM, self.on_alarm)
        # The interpreter puts SIGALRM's default back on its way out, and that kills.
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
        sentence = shell_as_pid1(self.pid)
        if sentence:
            self.log.warning("%s", sentence)

    # Settings

    def read_settings(self) -> None:
        """Read and fit the settings of the present configuration; HUP makes a new one."""
        self.cfg = self.arbiter.cfg
        self.settings = settings.read(self.cfg, os.environ)
        self.schedule = Schedule(self.settings.delay, self.settings.finish)
        for sentence in self.settings.warnings:
            self.log.warning("%s", sentence)
        self.log.info("%s", self.settings.plan())

    def reread_settings(self) -> None:
        if self.arbiter.cfg is self.cfg:
            return
        try:
            self.read_settings()
        except settings.SettingsError as error:
            # The service runs: a slip in a reloaded file must not end it.
            self.cfg = self.arbiter.cfg
            self.log.error("%s; keeping the former settings", error)

    # Signal handlers: note, flip, hand on.

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic_ns()
        if os.getpid() != self.pid:
            # A forked worker that has not installed its own handlers yet.
            if number != signal.SIGTERM:
                os._exit(0)
            if self.spawning is not None:
                self.spawning.term_at = now
            return
        if number == signal.SIGTERM or (number == signal.SIGINT and self.sigint_is_term(now)):
            self.note_term(now, number)
        else:
            self.quick = signal.Signals(number).name
            self.quick_at = now
        self.arbiter.signal(number, frame)

    def sigint_is_term(self, now: int) -> bool:
        if not self.settings.sigint:
            return False
        return self.page.phase == Phase.SERVING or self.is_repeat(now)

    def is_repeat(self, now: int) -> bool:
        return bool(now - self.page.term_at < REPEAT_WINDOW * _SECOND)

    def note_term(self, now: int, number: int) -> None:
        if self.page.phase == Phase.SERVING:
            self.term_signal = signal.Signals(number)
            self.lifecycle.begin_lame_duck(now)
            # gunicorn uses no timer and no SIGALRM; a fork clears this one.
            alarm_in(self.schedule.delay)
        elif not self.is_repeat(now):
            self.hurry = True

    def on_alarm(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            return
        if self.page.phase == Phase.STOPPED:
            if time.monotonic_ns() < self.page.deadline:
                return
            os.write(2, b"gracefulworker: exit code is still running at the deadline: exiting\n")
            os._exit(EXIT_CUT)
        self.arbiter.wakeup()

    # The main loop's wait

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Arbiter.wait_for_signals (25.0 on), without its lost wake-ups.

        A signal that comes between Python's last check and the block in SimpleQueue.get is heard
        when that times out, a second later. A descriptor that signals write to is not missed.
        """
        if self.arbiter.SIG_QUEUE.empty():
            poll = select.poll()
            poll.register(self.wake_fd, select.POLLIN)
            poll.poll(timeout * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)
        return self.stock.wait_for_signals(timeout=0)  # type: ignore[no-any-return]

    def wakeup(self) -> None:
        """Arbiter.wakeup (25.0 on), also from the control server's thread."""
        self.stock.wakeup()
        with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
            os.write(self.wake_push_fd, b".")

    # The arbiter's handlers, looked up by name in Arbiter.run.

    def handle_term(self) -> None:
        """Arbiter.handle_term ends the loop; here the phase has moved, and the loop goes on."""
        if self.page.phase == Phase.SERVING:
            # Queued before our signal handler was installed.
            self.note_term(time.monotonic_ns(), signal.SIGTERM)
        self.tick()

    def handle_int(self) -> None:
        """Arbiter.handle_int stops quickly; with graceful_sigint the first one is a SIGTERM."""
        if self.quick is None and self.settings.sigint:
            self.handle_term()
            return
        if not self.settings.sigint and not _has_terminal():
            self.log.info(
                "SIGINT stops at once; where the platform sends it to end a service,"
                " set graceful_sigint = True"
            )
        self.stop_quickly(self.stock.handle_int)

    def handle_quit(self) -> None:
        """Arbiter.handle_quit, with a bound on the wait."""
        self.stop_quickly(self.stock.handle_quit)

    def stop_quickly(self, handler: Any) -> None:
        # Arbiter.stop waits as long as graceful_timeout says, also for a quick stop.
        self.arbiter.cfg.set("graceful_timeout", QUICK_LIMIT)
        if self.listeners_are_ours():
            # Arbiter.stop would unlink by name alone, and fails on an abstract one.
            self.unix_paths.unlink()
            self.close_listeners(self.arbiter.LISTENERS)
        handler()

    def handle_hup(self) -> None:
        """Arbiter.handle_hup, whose wait for old workers SIGTERM, SIGINT and SIGQUIT end."""
        if self.refused("SIGHUP"):
            return
        if any(worker.slot.booted for worker in self.our_workers()):
            self.dismiss_booting()  # a former HUP's, which this one replaces
        self.reloading = True
        self.overlap_until = time.monotonic() + self.settings.overlap
        try:
            self.stock.handle_hup()
        except _LeaveReload:
            if self.arbiter.dirty_arbiter_pid:
                self.arbiter.kill_dirty_arbiter(signal.SIGHUP)  # the last step of handle_hup
        finally:
            self.reloading = False

    def handle_usr2(self) -> None:
        """Arbiter.handle_usr2, refused from SIGTERM on."""
        if not self.refused("SIGUSR2"):
            self.stock.handle_usr2()

    def handle_winch(self) -> None:
        """Arbiter.handle_winch, refused from SIGTERM on."""
        if not self.refused("SIGWINCH"):
            self.stock.handle_winch()

    def refused(self, name: str) -> bool:
        if self.page.phase == Phase.SERVING:
            return False
        self.log.info("%s refused: shutting down", name)
        return True

    # Workers

    def seat(self, worker: Any) -> Slot:
        """A slot for a worker of ours, from its `__init__` (in the arbiter, before the fork)."""
        self.spawning = self.page.take_slot()
        self.seats.append(worker)
        return self.spawning

    def spawn_workers(self) -> None:
        """Arbiter.spawn_workers, with back-off after a failed boot."""
        if time.monotonic() >= self.retry_after:
            self.stock.spawn_workers()

    def spawn_worker(self) -> Any:
        """Arbiter.spawn_worker; in the child it ends in SystemExit, and here in `leave`."""
        self.reread_settings()
        self.unix_paths.remember(self.arbiter.LISTENERS)
        if not self.ours:
            # Arbiter.stop and the stock workers look at no other figure.
            self.arbiter.cfg.set("graceful_timeout", max(1, math.floor(self.settings.finish)))
        try:
            return self.stock.spawn_worker()
        except SystemExit as stop:
            if os.getpid() != self.pid:
                leave(stop)
            raise
        except OSError as error:
            # No process or descriptor is left for it. Those that serve must not pay for that.
            if self.page.phase == Phase.SERVING or not self.ours:
                raise
            self.back_off(f"A worker could not be started: {error}.")
            return None
        finally:
            self.spawning = None

    @property
    def ours(self) -> bool:
        """Whether the workers are of our classes, which know how to drain."""
        return hasattr(self.arbiter.worker_class, "look")

    def manage_workers(self) -> None:
        """Arbiter.manage_workers, called in each pass of the main loop: the tick of the phases."""
        self.tick()
        if self.page.phase >= Phase.DRAINING:
            return
        booting = any(not worker.slot.booted for worker in self.our_workers())
        if time.monotonic() < self.overlap_until and booting:
            return  # HUP: the old ones serve until all the new ones do
        self.overlap_until = 0.0
        self.relieve_one(booting)
        leaving = {worker.pid for worker in self.our_workers() if worker.slot.retire}
        if not leaving and self.relieved is None:
            self.stock.manage_workers()
            return
        # Those that leave are replaced now, not when they have gone, and do not count as too many.
        staying = [pid for pid in self.arbiter.WORKERS if pid not in leaving]
        staying.sort(key=lambda pid: self.arbiter.WORKERS[pid].age)
        missing = self.arbiter.num_workers + (self.relieved is not None) - len(staying)
        if missing > 0 and time.monotonic() >= self.retry_after:
            for _ in range(missing):
                self.arbiter.spawn_worker()
        for pid in staying[: max(-missing, 0)]:
            self.arbiter.kill_worker(pid, signal.SIGTERM)

    def our_workers(self) -> list[Any]:
        """The living workers of our classes (a HUP can change the class)."""
        return [worker for worker in self.arbiter.WORKERS.values() if hasattr(worker, "slot")]

    def relieve_one(self, booting: bool) -> None:
        """Let a worker that wants to recycle itself go, one at a time, when its relief serves."""
        ours = self.our_workers()
        now = time.monotonic()
        if self.relieved not in ours:
            self.relieved = None
        if self.relieved is None and not booting and len(ours) >= self.arbiter.num_workers:
            wishes = [worker for worker in ours if worker.slot.wants_to_retire]
            if wishes and not any(worker.slot.retire for worker in ours):
                self.relieved = min(wishes, key=lambda worker: worker.age)
                self.relief_until = now + self.settings.overlap
                booting = not self.arbiter.cfg.reload  # its relief is spawned in this pass
        if self.relieved is not None and (not booting or now >= self.relief_until):
            # No signal, as in gunicorn's max_requests: the application may take SIGTERM for itself.
            self.order_to_retire(self.relieved)
            self.relieved = None

    def murder_workers(self) -> None:
        """Arbiter.murder_workers; in its graceful time a worker has the deadline as its limit."""
        if self.page.phase >= Phase.DRAINING:
            return
        now = time.monotonic()
        for worker in self.our_workers():
            if now < worker.excused_until:
                worker.tmp.notify()  # its heartbeat, which a busy sync worker cannot give
        self.stock.murder_workers()

    def kill_worker(self, pid: int, number: int) -> None:
        """Arbiter.kill_worker; a SIGTERM from here is an order, unlike one from elsewhere."""
        worker = self.arbiter.WORKERS.get(pid)
        if number == signal.SIGTERM and hasattr(worker, "slot") and not worker.slot.retire:
            self.order_to_retire(worker)
        self.stock.kill_worker(pid, number)

    def order_to_retire(self, worker: Any) -> None:
        worker.slot.retire = 1
        worker.excused_until = time.monotonic() + worker.cfg.graceful_timeout + KILL_MARGIN

    def reap_workers(self) -> None:
        """Arbiter.reap_workers; a failed boot does not end a service that is shutting down."""
        while True:
            try:
                self.stock.reap_workers()
            except HaltServer as failure:
                self.fold_gone()
                if not self.survives(failure):
                    raise
                continue
            break
        self.fold_gone()
        if self.reloading and (self.ours or self.quick or self.page.phase > Phase.SERVING):
            raise _LeaveReload

    def survives(self, failure: HaltServer) -> bool:
        """Whether the service goes on after a worker failed to boot."""
        phase = self.page.phase
        if phase == Phase.SERVING or not self.ours or not self.any_booted:
            return False
        for pid in list(self.arbiter.WORKERS):
            if not _exists(pid):
                del self.arbiter.WORKERS[pid]  # gunicorn 25 raises before it does this
        self.back_off(failure.reason)
        return True

    def back_off(self, reason: str) -> None:
        self.log.warning("%s Next try in %.1f s", reason, self.retry_step)
        self.retry_after = time.monotonic() + self.retry_step
        self.retry_step = min(self.retry_step * 2, RETRY_MOST)

    def fold_gone(self) -> None:
        """Add up and free the slots of workers that have been reaped."""
        alive = {id(worker) for worker in self.arbiter.WORKERS.values()}
        staying = []
        for worker in self.seats:
            slot = worker.slot
            self.any_booted = self.any_booted or bool(slot.booted)
            if id(worker) in alive or (slot is self.spawning and worker.pid == "[booting]"):
                staying.append(worker)
                continue
            worker.tmp.close()  # stock leaves it open after a failed boot
            if self.page.phase > Phase.SERVING:
                slot.cut += slot.in_flight  # it did not come back to clear this
                self.totals.fold(slot)
            self.queue_emptied = self.queue_emptied or bool(slot.drained)
            self.page.free_slot(slot)
        self.seats = staying

    # The phases

    def tick(self) -> None:
        """Do what is due. Called in the main loop only, and as often as anybody likes."""
        if self.page.phase == Phase.SERVING:
            return
        now = time.monotonic_ns()
        if self.began is None:
            self.began = self.term_signal.name
            self.log.info(
                "lame duck: %s received, serving for %.1f s more", self.began, self.schedule.delay
            )
        if self.page.phase == Phase.LAME_DUCK:
            elapsed = (now - self.page.term_at) / _SECOND
            if self.hurry or self.schedule.phase(elapsed) >= Phase.DRAINING:
                self.drain(now, elapsed)
            else:
                alarm_in(self.schedule.delay - elapsed)
        if self.page.phase == Phase.DRAINING:
            self.watch_drain(now)

    def drain(self, now: int, elapsed: float) -> None:
        """The delay is over."""
        self.schedule = self.schedule.shortened(elapsed)
        deadline = self.page.term_at + round(self.schedule.deadline * _SECOND)
        listeners = self.arbiter.LISTENERS
        self.tcp_ports = gate.ports(listeners)
        if not self.listeners_are_ours():
            state = Listeners.LEFT
        elif self.arbiter.cfg.reuse_port:
            # Each worker has its own; the kernel still picks a gated one among them, and its SYN
            # is then dropped.
            state = Listeners.SEALED
        else:
            self.ungated = [listener for listener in listeners if not gate.shut(listener)]
            if self.ungated:
                self.log.debug(
                    "this kernel cannot gate %s: a close may reset newcomers",
                    ", ".join(map(str, self.ungated)),
                )
            state = Listeners.SEALED if self.ungated == listeners else Listeners.GATED
        self.lifecycle.begin_draining(now, deadline, state)
        self.log.info(
            "draining: %s, up to %.1f s for what is in flight",
            "leaving newcomers to others" if state == Listeners.LEFT else "refusing newcomers",
            self.schedule.finish,
        )
        for pid, worker in list(self.arbiter.WORKERS.items()):
            if self.ours and not hasattr(worker, "slot"):
                self.kill_worker(pid, signal.SIGTERM)  # left over from before a HUP
        if state != Listeners.GATED:
            self.seal()

    def listeners_are_ours(self) -> bool:
        """Whether nobody else serves from them: no USR2 upgrade under way, not systemd's."""
        arbiter = self.arbiter
        return bool(arbiter.reexec_pid == arbiter.master_pid == 0 and not arbiter.systemd)

    def seal(self) -> None:
        """Nothing more will come into the accept queues."""
        if self.page.listeners == Listeners.GATED:
            self.page.listeners = Listeners.SEALED
            # As long as one process has an open one that is not gated, clients hang in its queue.
            self.close_listeners(self.ungated)
        elif self.ours:
            self.close_listeners(self.arbiter.LISTENERS)
        if self.page.listeners != Listeners.LEFT:
            self.unix_paths.unlink()

    def close_listeners(self, listeners: list[Any]) -> None:
        self.arbiter.LISTENERS = [one for one in self.arbiter.LISTENERS if one not in listeners]
        for listener in listeners:
            listener.close()

    def watch_drain(self, now: int) -> None:
        since = (now - self.page.drain_at) / _SECOND
        if self.page.listeners == Listeners.GATED:
            if not self.settled(since):
                alarm_in(max(gate.SETTLE_MIN - since, SETTLE_STEP))
                return
            self.seal()
        if not self.ours:
            raise StopIteration  # Arbiter.stop does the rest, in the way that these workers know
        left = (self.page.deadline - now) / _SECOND + KILL_MARGIN
        if left <= 0:
            self.kill_the_rest()
        elif self.arbiter.WORKERS:
            fds = [listener.fileno() for listener in self.arbiter.LISTENERS]
            if any(worker.slot.booted for worker in self.our_workers()) or not gate.readable(fds):
                self.dismiss_booting()
        elif self.queue_emptied or not self.arbiter.LISTENERS or left <= KILL_MARGIN:
            self.finish()
        elif time.monotonic() >= self.retry_after:
            # The last worker died and left an accept queue behind.
            self.retry_after = time.monotonic() + self.retry_step
            self.arbiter.spawn_worker()
        if left > 0:
            alarm_in(left)

    def settled(self, since: float) -> bool:
        """Whether no handshake is under way any more, `since` seconds after the gate."""
        if since < gate.SETTLE_MIN:
            return False
        if since >= gate.SETTLE_MAX:
            return True
        under_way = [gate.handshakes_under_way(port) for port in self.tcp_ports]
        return not any(under_way) and (None not in under_way or since >= gate.SETTLE_BLIND)

    def dismiss_booting(self) -> None:
        """End workers that are still booting; nobody waits for them."""
        for worker in self.our_workers():
            if not worker.slot.booted:
                worker.slot.dismissed = 1
                if not worker.slot.booted:  # else it has seen the line above, or serves
                    self.stock.kill_worker(worker.pid, signal.SIGQUIT)

    def kill_the_rest(self) -> None:
        """The arbiter's deadline: who has not ended is stuck where Python cannot reach it."""
        if not self.arbiter.WORKERS:
            self.finish()
        if not self.killed_at_deadline:
            for worker in self.our_workers():
                self.log.warning(
                    "worker (pid: %s) is still there after the deadline, with %d requests: killed",
                    worker.pid,
                    worker.slot.in_flight,
                )
                if not worker.slot.in_flight:
                    worker.slot.cut += 1
        self.killed_at_deadline = True
        for pid in list(self.arbiter.WORKERS):
            self.stock.kill_worker(pid, signal.SIGKILL)

    def finish(self) -> None:
        """No worker is left: leave the main loop by the ways that Arbiter.run knows."""
        if self.totals.cut:
            raise HaltServer(f"{self.totals.cut} requests were cut", EXIT_CUT)
        raise StopIteration

    # The end

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Arbiter.halt, which ends in SystemExit; the last line in the log is ours."""
        if self.page.phase == Phase.DRAINING and self.ours and not self.quick:
            self.close_listeners(self.arbiter.LISTENERS)
            self.page.phase = Phase.STOPPED
            left = (self.page.deadline - time.monotonic_ns()) / _SECOND + KILL_MARGIN
            alarm_in(max(left, KILL_MARGIN))
        try:
            self.stock.halt(reason=reason, exit_status=exit_status)
        except SystemExit as stop:
            if self.began is not None or self.quick is not None:
                self.fold_gone()
                self.summarise()
            if any(not thread.daemon for thread in _other_threads()):
                leave(stop)  # the interpreter would join them
            raise

    def summarise(self) -> None:
        totals = self.totals
        began = self.page.term_at or self.quick_at
        took = (time.monotonic_ns() - began) / _SECOND
        how = f"quick ({self.quick})" if self.quick else "cut" if totals.cut else "clean"
        newest = "no new connection"
        if totals.accepted:
            newest = f"last new connection +{(totals.accepted_at - began) / _SECOND:.1f} s"
        self.log.info(
            "stopped: %s after %.1f s; served %d after SIGTERM, %s, told to close %d,"
            " closed idle %d, from the queue %d, cut %d",
            how,
            took,
            totals.served,
            newest,
            totals.told_to_close,
            totals.closed_idle,
            totals.from_queue,
            totals.cut,
            extra={
                "graceful_outcome": how,
                "graceful_seconds": round(took, 3),
                **{f"graceful_{f.name}": getattr(totals, f.name) for f in fields(totals)},
            },
        )


def alarm_in(seconds: float) -> None:
    """Have `Supervisor.on_alarm` called; the least is a millisecond, for 0 would mean never."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))


def _exists(pid: int) -> bool:
    """Whether a child is there; one that has been reaped is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _has_terminal() -> bool:
    return any(
        stream is not None and not stream.closed and stream.isatty()
        for stream in (sys.stdin, sys.stderr)
    )


def _other_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


def leave(stop: SystemExit) -> None:
    """End this process now: the user's atexit code runs, non-daemon threads are not joined.

    The interpreter's own way out joins them first, and a thread pool's with them, however long
    they take; nothing else gets past them (bpo-37788).
    """
    status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    try:
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.flush()  # None, closed, or a pipe whose reader has gone
        os._exit(status & 0xFF)
