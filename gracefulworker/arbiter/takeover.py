"""What happens in the arbiter: SIGTERM is intercepted, and its own main loop leads to the end.

gunicorn's arbiter answers SIGTERM with `stop()`: it closes the listeners first, then polls until
the workers are gone, respawns and times out nobody. All that is needed for a better end is already
in its normal loop, so SIGTERM only moves the phase, and the loop goes on: in LAME_DUCK as before
(respawn, timeout, max_requests), in DRAINING until no worker is left. Nothing of it is copied and
no class is patched: `Supervisor` replaces methods on the one arbiter instance, each of which that
loop looks up by name (gunicorn 20.1 to 27). Each replacement says what it leans on.

Anything that workers must see goes through `gracefulworker.shared.page`. Signal handlers note, flip
and hand on: they never log or block.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import math
import os
import select
import signal
import sys
import threading
import time
from dataclasses import fields
from types import FrameType, SimpleNamespace
from typing import Any

from gunicorn import systemd
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from gracefulworker import settings
from gracefulworker.arbiter import gunicorn23, report
from gracefulworker.arbiter.crew import Crew
from gracefulworker.arbiter.leaving import is_command, is_held_by_threads, leave
from gracefulworker.arbiter.listener_sets import ListenerSets
from gracefulworker.arbiter.listeners import Gatekeeper
from gracefulworker.arbiter.pid1 import shell_as_pid1
from gracefulworker.arbiter.probe_listener import ProbeListener
from gracefulworker.arbiter.quiet import STEP, Quiet
from gracefulworker.arbiter.user_code import UserCode
from gracefulworker.phases import (
    EXIT_CUT,
    KILL_MARGIN,
    REPEAT_WINDOW,
    SECOND,
    SETTLE_MIN,
    Phase,
    Schedule,
)
from gracefulworker.shared import current as presence
from gracefulworker.shared.page import ASK, Broadcast, ListenerState, Slot

#: Seconds between two looks at the handshakes under way.
SETTLE_STEP = 0.02

#: Seconds that a quick stop (SIGINT, SIGQUIT) waits for workers, as gunicorn's second SIGINT does.
QUICK_LIMIT = 2


#: What ended SERVING at `page.ASK`, where else a signal's name stands.
DRAIN = "drain request"

#: What is said when the arbiter's exit code has not ended by the deadline.
LAST_LINE = b"gracefulworker: exit code is still running at the deadline: exiting\n"

#: Seconds until a function of the user's that has swallowed its end is ended again.
END_AGAIN = 0.1

#: The arbiter's methods that `Supervisor` replaces, where there are any.
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
        self.broadcast = Broadcast()
        self.page = self.broadcast.page
        # For workers of another class; ours know of their own phase, too.
        presence.answer_with(lambda: self.page.phase)
        self.began: str | None = None  # what ended SERVING, once it has been logged
        self.said_draining = False
        self.term_signal = signal.SIGTERM
        self.term_at = 0  # ns of the first SIGTERM
        self.asked = False  # LAME_DUCK was begun by `gracefulworker drain`, SIGTERM is to come
        self.user_code = UserCode(self.log, lambda: alarm_in(0.0))
        self.quiet: Quiet | None = None
        self.quick: str | None = None  # SIGINT or SIGQUIT: stop at once
        self.quick_at = 0
        self.exit_by = 0  # ns, once no worker is left
        self.hurry = False  # a later SIGTERM: end the delay
        self.reloading = False
        self.probes_wait = False  # after USR2: the former arbiter has graceful_probe_bind
        try:
            self.read_settings()
        except settings.SettingsError as error:
            if not arbiter.WORKERS:
                raise
            # A HUP has brought our workers into a service that runs.
            self.log.error("%s; using the defaults", error)
            self.settings = settings.read(self.cfg, {}, {})
            self.schedule = Schedule(self.settings.delay, self.settings.finish)
        replaced = [name for name in REPLACED if hasattr(arbiter, name)]
        self.stock = SimpleNamespace(**{name: getattr(arbiter, name) for name in replaced})
        self.crew = Crew(arbiter, self.stock, self.page)
        self.gatekeeper = Gatekeeper(arbiter, self.page)
        self.crew.state()  # so that the first worker knows how many are expected
        self.sets = ListenerSets(arbiter)
        self.probes = ProbeListener(self.crew, self.log)
        try:
            self.open_probes()
        except settings.SettingsError as error:
            if not arbiter.WORKERS:
                raise
            self.log.error("%s", error)
        if not self.crew.are_ours():
            self.warn_of_idle_settings()
        for name in replaced:
            setattr(arbiter, name, getattr(self, name))
        self.wake_fd, self.wake_push_fd = os.pipe()
        for fd in (self.wake_fd, self.wake_push_fd):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self.wake_push_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self.on_signal)
        signal.signal(signal.SIGALRM, self.on_alarm)
        signal.signal(ASK, self.on_request)
        if not hasattr(arbiter, "wait_for_signals"):
            gunicorn23.adapt(arbiter, self.wait)
        atexit.register(self.deafen)
        self.signals_before_fork: set[Any] | None = None
        os.register_at_fork(
            before=self.hold_signals,
            after_in_parent=self.release_signals,
            after_in_child=self.release_signals,
        )
        sentence = shell_as_pid1(self.pid)
        if sentence:
            self.log.warning("%s", sentence)
        self.page.arbiter = self.pid  # `gracefulworker drain` may come

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
        # The service runs: a slip in a reloaded file must not end it.
        try:
            self.read_settings()
        except settings.SettingsError as error:
            self.cfg = self.arbiter.cfg
            self.log.error("%s; keeping the former settings", error)
            return
        try:
            self.open_probes()
        except settings.SettingsError as error:
            self.log.error("%s; probes are answered where they were", error)

    def open_probes(self) -> None:
        """Answer probes at `graceful_probe_bind`.

        :raises SettingsError: it cannot be listened on.
        """
        try:
            self.probes.follow(self.settings)
            self.probes_wait = False
        except OSError as error:
            if self.arbiter.master_pid and error.errno == errno.EADDRINUSE:
                self.probes_wait = True
                return
            raise settings.SettingsError(
                f"graceful_probe_bind = {self.settings.probe_bind} cannot be listened on"
                f" ({error.strerror}): give an address of this machine and a port that is free"
            ) from None

    def warn_of_idle_settings(self) -> None:
        """Say which settings only our own worker classes can follow."""
        names = ["warmup", "quiet", "first_byte", "idle", "overlap"]
        if self.settings.probe_bind is None:
            names[:0] = ["readiness_path", "liveness_path"]
        plain = {field.name: field.default for field in fields(self.settings)}
        unheard = [name for name in names if getattr(self.settings, name) != plain[name]]
        if unheard:
            self.log.warning(
                "%s: needs a worker class of gracefulworker; probes of this one are answered at"
                " graceful_probe_bind",
                ", ".join(settings.PREFIX + name for name in unheard),
            )

    # Signal handlers: note, flip, hand on.

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic_ns()
        if os.getpid() != self.pid:
            # A forked worker that has not installed its own handlers yet.
            if number != signal.SIGTERM:
                os._exit(0)
            if self.crew.spawning is not None:
                self.crew.spawning.term_at = now
            return
        if number == signal.SIGTERM or (number == signal.SIGINT and self.sigint_is_term(now)):
            self.note_term(now, number)
        else:
            self.quick = signal.Signals(number).name
            self.quick_at = now
        self.arbiter.signal(number, frame)
        if self.quick:
            self.user_code.end()

    def hold_signals(self) -> None:
        """Before a fork: a signal that the new process gets in its first moment is not lost.

        CPython forgets what a forked process has been sent before it runs any Python code
        (PyOS_AfterFork_Child); a quick stop then waits for a worker that has not heard of it.
        """
        if os.getpid() == self.pid and threading.current_thread() is threading.main_thread():
            stopping = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
            self.signals_before_fork = signal.pthread_sigmask(signal.SIG_BLOCK, stopping)

    def release_signals(self) -> None:
        if os.getpid() == self.pid and threading.current_thread() is not threading.main_thread():
            return  # another thread's fork; what is held may be the main thread's
        held, self.signals_before_fork = self.signals_before_fork, None
        if held is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def sigint_is_term(self, now: int) -> bool:
        if not self.settings.sigint:
            return False
        return not self.term_at or self.is_repeat(now)

    def is_repeat(self, now: int) -> bool:
        return now - self.term_at < REPEAT_WINDOW * SECOND

    def note_term(self, now: int, number: int) -> None:
        if not self.term_at:
            self.term_at = now
            self.term_signal = signal.Signals(number)
            self.asked = False
        elif not self.is_repeat(now):
            self.hurry = True
        self.begin_lame_duck(now)

    def begin_lame_duck(self, now: int) -> None:
        if self.page.phase == Phase.SERVING:
            self.page.delay_ends = now + round(self.schedule.delay * SECOND)
            self.broadcast.begin_lame_duck(now)
        if self.page.phase == Phase.LAME_DUCK:
            # gunicorn uses no timer and no SIGALRM; a fork clears this one.
            alarm_in(0.0)

    def on_request(self, number: int, frame: FrameType | None) -> None:
        """`gracefulworker drain`: LAME_DUCK begins now, and lasts until SIGTERM at least."""
        if os.getpid() == self.pid and self.page.phase == Phase.SERVING:
            self.asked = True
            self.begin_lame_duck(time.monotonic_ns())

    def on_alarm(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.pid:
            return
        if self.user_code.running:
            self.stand_in()
            return
        if self.page.phase == Phase.STOPPED:
            left = self.left_before_kill()
            if left > 0:
                alarm_in(left)  # one for the user's code has taken the place of this one
                return
            try:
                if select.select([], [2], [], 0)[1]:
                    os.write(2, LAST_LINE)
            finally:
                os._exit(EXIT_CUT)  # also when stderr is closed
        self.arbiter.wakeup()

    def stand_in(self) -> None:
        """A function of the user's has the main loop: do what is due, and end it at the deadline.

        :raises Overtime: into that function.
        """
        with self.user_code.set_aside():
            self.advance()
        if self.page.phase < Phase.DRAINING or self.page.listeners == ListenerState.GATED:
            return
        left = self.user_code.left()
        alarm_in(left if left > 0 else END_AGAIN)
        if left <= 0 or self.quick:
            self.user_code.end()

    def left_of_main_loop(self) -> float:
        """Seconds until the main loop is needed again, in DRAINING."""
        if not self.crew.are_ours():
            return 0.0  # workers of another class leave only when it tells them to
        return self.left_before_kill() - KILL_MARGIN

    def left_before_kill(self) -> float:
        """Seconds until the arbiter's own deadline, which user code at the end may yet exceed."""
        until: int = self.exit_by or self.page.deadline + round(KILL_MARGIN * SECOND)
        return (until - time.monotonic_ns()) / SECOND

    # The main loop's wait

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Arbiter.wait_for_signals (24.0 on), without its lost wake-ups."""
        self.wait(timeout if self.arbiter.SIG_QUEUE.empty() else 0.0)
        return self.stock.wait_for_signals(timeout=0)  # type: ignore[no-any-return]

    def wait(self, timeout: float) -> None:
        """Wait for a signal, or for `wakeup`.

        A signal that comes between Python's last check and the block in SimpleQueue.get is heard
        when that times out, a second later. A descriptor that signals write to is not missed.
        """
        poll = select.poll()
        poll.register(self.wake_fd, select.POLLIN)
        poll.poll(timeout * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)

    def wakeup(self) -> None:
        """Arbiter.wakeup, since 25 also from the control server's thread."""
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
        self.gatekeeper.leave_at_once()
        handler()

    def handle_hup(self) -> None:
        """Arbiter.handle_hup, whose wait for old workers SIGTERM, SIGINT and SIGQUIT end."""
        if self.refused("SIGHUP"):
            return
        self.crew.begin_overlap(self.settings.overlap)
        self.reloading = True
        try:
            self.stock.handle_hup()
        except _LeaveReload:
            if getattr(self.arbiter, "dirty_arbiter_pid", 0):  # 25.0 on
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

    # The arbiter's methods that its main loop calls

    def seat(self, worker: Any) -> Slot:
        """A worker's slot; its `__init__` asks for it."""
        return self.crew.seat(worker)

    def spawn_workers(self) -> None:
        """Arbiter.spawn_workers, with back-off after a failed boot."""
        self.crew.spawn_missing()

    def spawn_worker(self) -> Any:
        """Arbiter.spawn_worker; in the child it ends in SystemExit, and here in `leave`."""
        self.reread_settings()
        ours = self.crew.are_ours()
        if not ours:
            # Arbiter.stop and the stock workers look at no other figure.
            self.arbiter.cfg.set("graceful_timeout", max(1, math.floor(self.settings.finish)))
        try:
            heirs = self.crew.heirs()
            with self.sets.dealt(heirs, ours, self.missing_beside(heirs)):
                self.gatekeeper.remember()
                return self.stock.spawn_worker()
        except SystemExit as stop:
            if os.getpid() != self.pid:
                leave(stop)
            raise
        except OSError as error:
            # No process or descriptor is left for it. Those that serve must not pay for that.
            if self.page.phase == Phase.SERVING or not ours:
                raise
            self.crew.could_not_start(f"A worker could not be started: {error}.")
            return None
        finally:
            self.crew.spawning = None

    def missing_beside(self, heirs: list[Any]) -> int:
        """How many workers there are to be forked; in DRAINING one does for all that are gone."""
        if self.page.phase >= Phase.DRAINING:
            return 1
        missing: int = self.arbiter.num_workers - len(heirs)
        return max(missing, 1)

    def manage_workers(self) -> None:
        """Arbiter.manage_workers, called in each pass of the main loop: the tick of the phases."""
        self.tick()
        self.crew.state()
        if self.probes_wait:
            with contextlib.suppress(settings.SettingsError):
                self.open_probes()
        if self.page.phase < Phase.DRAINING:
            self.crew.manage(self.settings.overlap)

    def murder_workers(self) -> None:
        """Arbiter.murder_workers; in its graceful time a worker has the deadline as its limit."""
        if self.page.phase < Phase.DRAINING:
            self.crew.excuse()
            self.stock.murder_workers()

    def kill_worker(self, pid: int, number: int) -> None:
        """Arbiter.kill_worker; a SIGTERM from here is an order, unlike one from elsewhere."""
        if number == signal.SIGTERM:
            self.crew.order_to_retire(self.arbiter.WORKERS.get(pid))
        self.stock.kill_worker(pid, number)

    def reap_workers(self) -> None:
        """Arbiter.reap_workers; a failed boot does not end a service that is shutting down."""
        while True:
            try:
                self.stock.reap_workers()
            except HaltServer as failure:
                self.crew.fold_gone()
                if not self.crew.outlives_failed_boot(failure.reason):
                    raise
                continue
            break
        self.crew.fold_gone()
        if self.reloading and (
            self.crew.are_ours() or self.quick or self.page.phase > Phase.SERVING
        ):
            raise _LeaveReload

    # The phases

    def tick(self) -> None:
        """Do what is due. Called in the main loop only, and as often as anybody likes."""
        if self.page.phase == Phase.SERVING:
            return
        if self.began is None:
            self.began = DRAIN if self.asked else self.term_signal.name
            self.say_lame_duck()
            systemd.sd_notify("STOPPING=1", self.log)
            hook = self.settings.on_lame_duck
            left = self.left_of_main_loop
            self.user_code.call("graceful_on_lame_duck", hook, left, self.arbiter)
        self.advance()
        if self.page.phase == Phase.DRAINING:
            self.watch_drain()

    def say_lame_duck(self) -> None:
        line = f"lame duck: {self.began} received, serving for {self.schedule.delay:.1f} s more"
        if self.settings.quiet and self.crew.are_ours():
            line += f", or until nobody has come for {self.settings.quiet:.1f} s"
        if self.asked:
            line += ", and on until SIGTERM"
        self.log.info("%s", line)

    def advance(self) -> None:
        """Move the phase and the listeners on, if that is due.

        Also called in a signal handler, so nothing is logged here.
        """
        now = time.monotonic_ns()
        if self.page.phase == Phase.LAME_DUCK:
            left = self.left_of_delay(now)
            if left > 0:
                alarm_in(left)
                return
            if not self.page.delay_over_at:
                self.page.delay_over_at = now
            if not self.asked:
                self.drain(now)
        if self.page.phase == Phase.DRAINING and self.page.listeners == ListenerState.GATED:
            since = (now - self.page.drain_at) / SECOND
            if self.gatekeeper.settled(since):
                self.gatekeeper.seal(self.crew.are_ours())
            else:
                alarm_in(max(SETTLE_MIN - since, SETTLE_STEP))

    def left_of_delay(self, now: int) -> float:
        """Seconds until the delay may be over; it is when none is left."""
        elapsed: float = (now - self.page.term_at) / SECOND
        if self.hurry or self.page.delay_over_at or self.schedule.phase(elapsed) > Phase.LAME_DUCK:
            return 0.0
        left = self.schedule.delay - elapsed
        if not self.settings.quiet or not self.crew.are_ours():
            return left
        if self.quiet is None:
            self.quiet = Quiet(self.crew, self.page.term_at)
        left = min(left, self.settings.quiet - self.quiet.lasted(now))
        return min(left, STEP)

    def drain(self, now: int) -> None:
        """The delay is over."""
        self.schedule = self.schedule.shortened((now - self.page.term_at) / SECOND)
        # After `gracefulworker drain` SIGTERM may come at any time.
        since = max(self.page.term_at + round(self.schedule.delay * SECOND), self.term_at)
        deadline = since + round(self.schedule.finish * SECOND)
        state = self.gatekeeper.shut()
        self.broadcast.begin_draining(now, deadline, state)
        if state != ListenerState.GATED:
            self.gatekeeper.seal(self.crew.are_ours())

    def say_draining(self) -> None:
        if self.gatekeeper.names_of_ungated:
            self.log.debug(
                "this kernel cannot gate %s: a close may reset newcomers",
                self.gatekeeper.names_of_ungated,
            )
        left = self.page.listeners == ListenerState.LEFT
        self.log.info(
            "draining: %s, up to %.1f s for what is in flight",
            "leaving newcomers to others" if left else "refusing newcomers",
            self.schedule.finish,
        )

    def watch_drain(self) -> None:
        if not self.said_draining:
            self.said_draining = True
            self.say_draining()
            self.crew.dismiss_strangers()
        if self.page.listeners == ListenerState.GATED:
            return
        if not self.crew.are_ours():
            # Arbiter.stop does the rest, in the way that these workers know. It would also unlink
            # paths, which is done.
            self.gatekeeper.close_all()
            raise StopIteration
        left = self.left_before_kill()
        if left <= 0:
            if not self.arbiter.WORKERS:
                self.finish()
            self.crew.kill_the_rest()
            return
        if left > KILL_MARGIN and self.crew.is_missed():
            # A worker died and left an accept queue behind.
            if self.crew.back_off.over():
                self.crew.back_off.begin()
                self.arbiter.spawn_worker()
        elif self.arbiter.WORKERS:
            self.crew.dismiss_needless()
        else:
            self.finish()
        alarm_in(left)

    def finish(self) -> None:
        """No worker is left: leave the main loop by the ways that Arbiter.run knows."""
        if cut := self.crew.totals.cut:
            raise HaltServer(f"{cut} requests were cut", EXIT_CUT)
        raise StopIteration

    # The end

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Arbiter.halt, which ends in SystemExit; the last line in the log is ours."""
        if self.page.phase == Phase.DRAINING and self.crew.are_ours() and not self.quick:
            self.gatekeeper.close_all()
            left = max(self.left_before_kill(), KILL_MARGIN)
            self.exit_by = time.monotonic_ns() + round(left * SECOND)
            self.page.phase = Phase.STOPPED
            alarm_in(left)
        try:
            self.stock.halt(reason=reason, exit_status=exit_status)
        except SystemExit as stop:
            if self.began is not None or self.quick is not None:
                self.report()
            if is_command(self.arbiter.app) or is_held_by_threads():
                leave(stop)
            raise

    def deafen(self) -> None:
        """On the interpreter's way out: signals that come now change nothing any more.

        It puts their defaults back, and those of these kill or stop the process: the exit status
        would be a signal's, after an end that was clean. What is ignored stays so. (SIGINT and
        SIGQUIT may.) The last deadline stands, for exit code of the user's that is still to come.
        """
        names = ["HUP", "TERM", "TTIN", "TTOU", "USR1", "USR2"]
        if self.page.phase != Phase.STOPPED:
            signal.setitimer(signal.ITIMER_REAL, 0)
            names.append("ALRM")
        for name in names:
            signal.signal(signal.Signals[f"SIG{name}"], signal.SIG_IGN)

    def report(self) -> None:
        """The last words, to whomever wants them."""
        self.crew.fold_all()
        signal_name = self.quick or self.began or DRAIN
        began = self.page.term_at or self.quick_at
        words = report.compose(self.crew.totals, signal_name, began, self.quick is not None)
        if self.settings.report:
            report.write(self.log, words, self.settings.report)
        report.measure(self.log, words)
        if not self.quick:
            hook, left = self.settings.on_drained, self.left_before_kill
            self.user_code.call("graceful_on_drained", hook, left, self.arbiter, words)
            if self.schedule.delay == self.settings.delay:
                report.warn_of_late_newcomers(self.log, words, self.settings.delay)
        report.say(self.log, words)


def alarm_in(seconds: float) -> None:
    """Have `Supervisor.on_alarm` called; the least is a millisecond, for 0 would mean never."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))


def _has_terminal() -> bool:
    return any(
        stream is not None and not stream.closed and stream.isatty()
        for stream in (sys.stdin, sys.stderr)
    )
