"""The arbiter's methods that are replaced, and how they lead its own main loop to the end.

gunicorn's arbiter answers SIGTERM with `stop()`: it closes the listeners first, then polls until
the workers are gone, respawns and times out nobody. All that is needed for a better end is already
in its normal loop, so SIGTERM only moves the phase, and the loop goes on: in LAME_DUCK as before
(respawn, timeout, max_requests), in DRAINING until no worker is left. Nothing of it is copied and
no class is patched: `Supervisor` replaces methods on the one arbiter instance, each of which that
loop looks up by name::

    Arbiter.run                         here, on the instance
    -----------                         ---------------------
    start()
    while True:
        wait_for_signals()              wait, until what is due            (24 on; 23: sleep)
        for each signal: handle_NAME()  handle_term   no stop(): tick
                                        handle_int, handle_quit   a bounded stop(False)
                                        handle_hup    overlap; usr2, winch: not from SIGTERM on
            handle_chld: reap_workers() reap_workers  a failed boot ends no service that is served
        murder_workers()                murder_workers   nobody in the graceful time
        manage_workers()                manage_workers   TICK: the phases, then the crew
            spawn_workers()             spawn_workers    with back-off
                spawn_worker()          spawn_worker     listener sets
            kill_worker()               kill_worker      an order to retire, noted on the page
    except StopIteration, HaltServer:
        halt(): stop(), on_exit, exit   halt          deadline, last words
            stop()                      stop          whatever hooks and failed boots do
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, SimpleNamespace
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from gracefulworker import seam
from gracefulworker.arbiter import gunicorn23
from gracefulworker.arbiter.configuration import Configuration
from gracefulworker.arbiter.crew import Crew
from gracefulworker.arbiter.listener_sets import ListenerSets
from gracefulworker.arbiter.listeners import ArbiterListeners
from gracefulworker.arbiter.pid1 import shell_as_pid1
from gracefulworker.arbiter.shutdown import Shutdown
from gracefulworker.arbiter.signals import Signals
from gracefulworker.arbiter.user_code import Overtime
from gracefulworker.phases import EXIT_CUT, QUICK_LIMIT, Halted, Phase, Reload, Signal
from gracefulworker.settings import Settings
from gracefulworker.shared import current
from gracefulworker.shared.page import Broadcast, Slot

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
    "stop",
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
    if isinstance(owner, Signals):
        owner = owner.arbiter
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
    """What stands beside one arbiter, and the methods that are replaced on it."""

    @classmethod
    def of(cls, arbiter: seam.Arbiter) -> Supervisor:
        """The supervisor of `arbiter`, made at the first call.

        :raises SettingsError: which gunicorn prints as one line, with exit status 1.
        """
        supervisor: Supervisor | None = vars(arbiter).get("_gracefulworker")
        if supervisor is None:
            supervisor = vars(arbiter)["_gracefulworker"] = cls(arbiter)
        return supervisor

    def __init__(self, arbiter: seam.Arbiter) -> None:
        self.arbiter = arbiter
        self.pid = os.getpid()
        self.log = arbiter.log
        self.broadcast = Broadcast()
        page = self.broadcast.page
        # For workers of another class; ours know of their own phase, too.
        current.answer_with(lambda: page.phase)
        replaced = [name for name in REPLACED if hasattr(arbiter, name)]
        self.stock = SimpleNamespace(**{name: getattr(arbiter, name) for name in replaced})
        self.crew = Crew(arbiter, self.stock, page)
        self.configuration = Configuration(arbiter, self.crew)
        self.listeners = ArbiterListeners(arbiter)
        self.sets = ListenerSets(arbiter)
        self.shutdown = Shutdown(
            arbiter, self.broadcast, self.crew, self.listeners, self.configuration
        )
        self.signals = Signals(arbiter, self.shutdown, self.broadcast.nudge)
        self.crew.state()  # so that the first worker knows how many are expected
        self.configuration.open()
        for name in replaced:
            setattr(arbiter, name, getattr(self, name))
        self.signals.install()
        #: a HUP has brought the first worker of ours, and its reload() waits for the old ones,
        #: from 25.0 on in a loop that calls nothing but reap_workers
        self._is_new_in_reload = False
        if not hasattr(arbiter, "wait_for_signals"):
            gunicorn23.adapt(arbiter, self.stock, self.signals.wait)
        elif arbiter.WORKERS:
            self._is_new_in_reload = True
        sentence = shell_as_pid1(self.pid)
        if sentence:
            self.log.warning("%s", sentence)
        page.arbiter = self.pid  # `gracefulworker drain` may come

    # For workers, in their `__init__`

    @property
    def settings(self) -> Settings:
        return self.configuration.settings

    def seat(self, worker: Any) -> Slot:
        """A worker's slot."""
        return self.crew.seat(worker)

    # The main loop's wait

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Arbiter.wait_for_signals (24.0 on), without its lost wake-ups."""
        self._is_new_in_reload = False
        self.signals.wait(timeout if self.arbiter.SIG_QUEUE.empty() else 0.0)
        if self.arbiter.SIG_QUEUE.empty():
            # Python 3.10's SimpleQueue.get takes a time that is over by now for none, and blocks
            # until there is a signal: nobody would time workers out, or hear of a drain request.
            return []
        return self.stock.wait_for_signals(timeout=0)  # type: ignore[no-any-return]

    def wakeup(self) -> None:
        """Arbiter.wakeup, since 25 also from the control server's thread."""
        self.stock.wakeup()
        self.broadcast.nudge.give()

    # Its handlers, looked up by name

    def handle_term(self) -> None:
        """Arbiter.handle_term ends the loop; here the phase has moved, and the loop goes on."""
        if self.shutdown.progress.phase == Phase.SERVING:
            # Queued before our signal handler was installed.
            self.shutdown.feed(Signal("SIGTERM"))
        self.shutdown.call_own_handler("handle_term", self.stock.handle_term)
        self.shutdown.tick()

    def handle_int(self) -> None:
        """Arbiter.handle_int stops quickly; with graceful_sigint the first one is a SIGTERM."""
        if self.settings.sigint and not self.shutdown.progress.quick:
            self.handle_term()
            return
        if not self.settings.sigint and not _has_terminal():
            self.log.info(
                "SIGINT stops at once; where the platform sends it to end a service,"
                " set graceful_sigint = True"
            )
        self._stop_quickly(self.stock.handle_int)

    def handle_quit(self) -> None:
        """Arbiter.handle_quit, with a bound on the wait."""
        self._stop_quickly(self.stock.handle_quit)

    def _stop_quickly(self, handler: Any) -> None:
        # Arbiter.stop waits as long as graceful_timeout says, also for a quick stop.
        self.arbiter.cfg.set("graceful_timeout", QUICK_LIMIT)
        self.listeners.leave_at_once()
        self.shutdown.feed(Halted(QUICK_LIMIT))
        handler()

    def handle_hup(self) -> None:
        """Arbiter.handle_hup, which runs user code: config file, on_reload, perhaps the import.

        Its wait for old workers SIGTERM, SIGINT and SIGQUIT end.
        """
        if self._refused("SIGHUP"):
            return
        self.crew.begin_overlap(self.settings.overlap)
        self.shutdown.feed(Reload(True))
        try:
            self.shutdown.user_code.watch("the reload that SIGHUP asked for", self.stock.handle_hup)
        except Overtime as overtime:
            self.log.warning("%s", overtime)
        except _LeaveReload:
            if getattr(self.arbiter, "dirty_arbiter_pid", 0):  # 25.0 on
                self.arbiter.kill_dirty_arbiter(signal.SIGHUP)  # the last step of handle_hup
        finally:
            self.shutdown.feed(Reload(False))

    def handle_usr2(self) -> None:
        """Arbiter.handle_usr2, refused from SIGTERM on."""
        if not self._refused("SIGUSR2"):
            self.stock.handle_usr2()

    def handle_winch(self) -> None:
        """Arbiter.handle_winch, refused from SIGTERM on."""
        if not self._refused("SIGWINCH"):
            self.stock.handle_winch()

    def _refused(self, name: str) -> bool:
        if not self.shutdown.progress.refuses_changes:
            return False
        self.log.info("%s refused: shutting down", name)
        return True

    # Workers come and go

    def manage_workers(self) -> None:
        """Arbiter.manage_workers, called in each pass of the main loop: the tick of the phases."""
        if self.shutdown.progress.phase > Phase.SERVING:
            self.arbiter.reap_workers()  # a user's code may have SIGCHLD
        self._tick()

    def _tick(self) -> None:
        self.shutdown.tick()
        self.crew.state()
        self.configuration.try_probes_again()
        if self.shutdown.progress.phase < Phase.DRAINING:
            self.crew.manage(self.settings.overlap)

    def murder_workers(self) -> None:
        """Arbiter.murder_workers; in its graceful time a worker has the deadline as its limit."""
        if self.shutdown.progress.phase < Phase.DRAINING:
            self.crew.excuse()
            self.stock.murder_workers()

    def spawn_workers(self) -> None:
        """Arbiter.spawn_workers, with back-off after a failed boot."""
        self.crew.spawn_missing()

    def spawn_worker(self) -> Any:
        """Arbiter.spawn_worker; the child ends in SystemExit, by whatever it leaves gunicorn's.

        :raises BaseException: a hook's, or the fork's, that the service does not outlive.
        """
        if not self.crew.back_off.over():
            return None  # manage_workers will come again
        self.configuration.follow()
        kind = self.configuration.kind
        kind.before_spawn(self.arbiter.cfg, self.settings)
        try:
            heirs = self.crew.heirs()
            with self.sets.dealt(heirs, kind.drains, self._missing_beside(heirs)):
                self.listeners.remember()
                return self.stock.spawn_worker()
        except BaseException as error:
            if os.getpid() != self.pid:
                if isinstance(error, SystemExit):
                    raise
                raise self._end_of_child(error) from None
            # No process or descriptor is left for it, or pre_fork has failed. Those that serve must
            # not pay for that.
            if not self.crew.outlives_fork(error):
                raise
            self.crew.spawning = None
            self.crew.fold_gone()  # its slot and its descriptor, as often as this is tried
            return None
        finally:
            self.crew.spawning = None

    def _end_of_child(self, error: BaseException) -> SystemExit:
        """Arbiter.spawn_worker ends a worker by SystemExit, if it has failed by an Exception.

        By anything else (KeyboardInterrupt, gunicorn's own HaltServer, from the application or a
        hook) it would go on in Arbiter.run, as a second arbiter.
        """
        self.log.error("Exception in worker process", exc_info=error)
        slot = self.crew.spawning
        booted = slot.booted if slot is not None else self.broadcast.page.complete
        return SystemExit(255 if booted else Arbiter.WORKER_BOOT_ERROR)

    def _missing_beside(self, heirs: list[Any]) -> int:
        """How many workers there are to be forked; in DRAINING one does for all that are gone."""
        if self.shutdown.progress.phase >= Phase.DRAINING:
            return 1
        missing: int = self.arbiter.num_workers - len(heirs)
        return max(missing, 1)

    def kill_worker(self, pid: int, number: int) -> None:
        """Arbiter.kill_worker; a SIGTERM from here is an order, unlike one from elsewhere."""
        if number == signal.SIGTERM:
            self.crew.order_to_retire(self.arbiter.WORKERS.get(pid))
        if number == signal.SIGKILL and self.crew.stops:
            self.crew.note_killed(pid)
        self.stock.kill_worker(pid, number)

    def reap_workers(self) -> None:
        """Arbiter.reap_workers; a failed boot does not end a service that others serve."""
        while True:
            try:
                self.stock.reap_workers()
            except HaltServer as failure:
                self.crew.forget_vanished()  # until 25 gunicorn raises before it does
                if not self.crew.outlives_boot(self.crew.fold_gone(), failure.reason):
                    raise
                continue
            break
        if self.shutdown.progress.phase > Phase.SERVING or self.crew.stops:
            self.crew.forget_vanished()
        self.crew.note_unbooted(self.crew.fold_gone())
        if self.shutdown.progress.leaves_reload(self.shutdown.plan):
            raise _LeaveReload
        if self._is_new_in_reload:
            self._tick()  # else nobody tells the old workers to leave

    # The end

    def stop(self, graceful: bool = True) -> None:
        """Arbiter.stop, which waits for the workers; one that failed to boot has gone, too."""
        self.crew.stops = True
        self.shutdown.guard_hooks()
        self.stock.stop(graceful)
        self.shutdown.begin_exit()

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Arbiter.halt, which ends in SystemExit; the last line in the log is ours."""
        self.shutdown.begin_halt()
        try:
            self.stock.halt(reason=reason, exit_status=exit_status)
        except SystemExit as stop:
            if os.getpid() != self.pid:
                raise  # on_exit has forked
            self.shutdown.report()
            if not stop.code and self.crew.killed and not self.shutdown.progress.quick:
                stop.code = EXIT_CUT
            raise


def _has_terminal() -> bool:
    return any(
        stream is not None and not stream.closed and stream.isatty()
        for stream in (sys.stdin, sys.stderr)
    )
