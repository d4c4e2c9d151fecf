"""Does what `gracefulworker.phases.step` says, for one arbiter.

`feed` takes an event, from a signal handler, the main loop or the thread that stands in for it
(`gracefulworker.arbiter.watch`), and does at once what must not wait; `tick` is the main loop's,
and says and calls the rest. Nothing is decided here.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gunicorn import systemd
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from gracefulworker import phases, seam
from gracefulworker.arbiter import metrics, report
from gracefulworker.arbiter.configuration import Configuration
from gracefulworker.arbiter.crew import Crew
from gracefulworker.arbiter.listeners import ArbiterListeners
from gracefulworker.arbiter.quiet import Traffic
from gracefulworker.arbiter.user_code import Overtime, UserCode
from gracefulworker.arbiter.watch import Watch
from gracefulworker.phases import EXIT_CUT, SECOND, Do, ListenerState, Phase, Then
from gracefulworker.shared.leaving import Leaving
from gracefulworker.shared.page import Broadcast
from gracefulworker.shared.unpatched import original


class Shutdown:
    """Leads one arbiter through the phases."""

    def __init__(
        self,
        arbiter: seam.Arbiter,
        broadcast: Broadcast,
        crew: Crew,
        listeners: ArbiterListeners,
        configuration: Configuration,
    ) -> None:
        self.arbiter = arbiter
        self.log = arbiter.log
        self.crew = crew
        self.listeners = listeners
        self.configuration = configuration
        self.user_code = UserCode(
            arbiter.log, lambda: self.progress.user_code_until(self.plan), self.stand_in
        )
        self.leaving = Leaving(arbiter.log)
        self.progress = phases.Progress()
        self.due = 0  #: ns at which to look again, 0 for whenever
        self._watch: Watch | None = None  # from halt on
        self._guarded: Any = None  # the configuration whose hooks are
        self._broadcast = broadcast
        self._traffic = Traffic(crew)
        self._events: deque[phases.Event] = deque()
        self._then: deque[Then] = deque()
        self._taking = original("_thread", "allocate_lock")()

    @property
    def plan(self) -> phases.Plan:
        """What was promised; a HUP may promise something else."""
        return self.configuration.plan()

    # At once

    def feed(self, event: phases.Event) -> None:
        """Take an event. In a signal handler and in any thread: nobody waits, nothing is lost.

        Who comes while another event is taken leaves his behind, and the other takes it.
        """
        self._events.append(event)
        while self._events and self._taking.acquire(blocking=False):
            try:
                if self._events:
                    self._take(self._events.popleft())
            finally:
                self._taking.release()

    def _take(self, event: phases.Event) -> None:
        taken = phases.step(self.progress, event, time.monotonic_ns(), self.plan)
        self.progress, self.due = taken.progress, taken.due
        self._then.extend(taken.then)
        for do in taken.do:
            self._do(do)

    def _do(self, do: Do) -> None:
        match do:
            case Do.PUBLISH:
                self._publish()
            case Do.WAKE:
                self._broadcast.nudge.give()
            case Do.GATE:
                self._take(phases.Gated(self.listeners.shut()))
            case Do.CLOSE_UNGATED:
                self.listeners.close_ungated()
            case Do.CLOSE_ALL:
                self.listeners.close_all()
            case Do.UNLINK:
                self.listeners.unlink()
            case Do.END_USER_CODE:
                self.user_code.end()
            case Do.EXIT:
                self._exit()

    def _publish(self) -> None:
        at, page = self.progress, self._broadcast.page
        page.term_at = at.lame_duck_at
        page.delay_ends = at.lame_duck_at + round(self.plan.delay * SECOND)
        page.delay_over_at = at.delay_over_at
        page.drain_at = at.drain_at
        page.deadline = at.deadline
        page.listeners = at.listeners
        page.phase = at.phase  # last, since the others are looked at when it has moved
        self._broadcast.lame_duck.ring()
        if at.phase >= Phase.DRAINING:
            self._broadcast.draining.ring()

    def _exit(self) -> None:
        try:
            self.leaving.name_holders()
        finally:
            os._exit(EXIT_CUT)

    # Looking

    def _look(self, main_loop: bool) -> phases.Look:
        at = self.progress
        stirred = at.phase == Phase.LAME_DUCK and self.plan.quiet > 0 and self._traffic.stirred()
        is_draining = at.phase == Phase.DRAINING
        is_gated = is_draining and at.listeners == ListenerState.GATED
        return phases.Look(
            main_loop=main_loop,
            stirred=stirred,
            handshakes=is_gated and self.listeners.handshakes(),
            workers=bool(self.arbiter.WORKERS),
            missed=is_draining and main_loop and self.crew.is_missed(),
            user_code_until=self.user_code.until(),
        )

    def stand_in(self) -> int:
        """Look in the main loop's place; ns at which to do so again, 0 for whenever."""
        self.leaving.look(self.progress.exit_by)
        self.feed(self._look(main_loop=False))
        return self.due

    # In the main loop

    def tick(self) -> None:
        """Do what is due, as often as anybody likes.

        :raises StopIteration, HaltServer: to leave Arbiter.run by the ways that it knows.
        """
        self.feed(self._look(main_loop=True))
        while self._then:
            self._do_then(self._then.popleft())

    def _do_then(self, then: Then) -> None:
        match then:
            case Then.ANNOUNCE_LAME_DUCK:
                self._announce_lame_duck()
            case Then.ANNOUNCE_DRAINING:
                self._announce_draining()
            case Then.DISMISS_STRANGERS:
                self.crew.dismiss_strangers()
            case Then.HAND_OVER:
                # Arbiter.stop does the rest, in the way that these workers know. It would also
                # unlink paths, which is done.
                self.listeners.close_all()
                raise StopIteration
            case Then.REPLACE_MISSED:
                self.arbiter.spawn_worker()
            case Then.DISMISS_NEEDLESS:
                self.crew.dismiss_needless()
            case Then.KILL:
                self.crew.kill_the_rest()
            case Then.FINISH:
                if cut := self.crew.totals.cut:
                    raise HaltServer(f"{cut} requests were cut", EXIT_CUT)
                raise StopIteration
            case Then.LOOK:
                self.arbiter.reap_workers()  # user code may have taken its time
                self.feed(self._look(main_loop=True))

    def _announce_lame_duck(self) -> None:
        at, plan = self.progress, self.plan
        line = f"lame duck: {at.cause} received, serving for {plan.delay:.1f} s more"
        if plan.quiet:
            line += f", or until nobody has come for {plan.quiet:.1f} s"
        if at.asked:
            line += ", and on until SIGTERM"
        self.log.info("%s", line)
        systemd.sd_notify("STOPPING=1", self.log)
        self.guard_hooks()
        hook = self.configuration.settings.on_lame_duck
        if hook is not None:
            self.user_code.call("graceful_on_lame_duck", hook, self.arbiter)

    # The user's code

    def guard_hooks(self) -> None:
        """From now on gunicorn's own hooks, too, neither end the end nor hold it up."""
        cfg = self.arbiter.cfg
        if cfg is self._guarded:
            return
        self._guarded = cfg
        pre_fork, child_exit, on_exit = cfg.pre_fork, cfg.child_exit, cfg.on_exit

        def guarded_pre_fork(server: Any, worker: Any) -> None:
            try:
                self.user_code.watch("pre_fork", pre_fork, server, worker)
            except Overtime as overtime:
                raise RuntimeError(str(overtime)) from None  # the worker could not be started

        def guarded_child_exit(server: Any, worker: Any) -> None:
            self.user_code.call("child_exit", child_exit, server, worker)

        def guarded_on_exit(server: Any) -> None:
            self.user_code.call("on_exit", on_exit, server)

        # gunicorn counts their parameters.
        for name, guarded in (
            ("pre_fork", guarded_pre_fork),
            ("child_exit", guarded_child_exit),
            ("on_exit", guarded_on_exit),
        ):
            if cfg.settings[name].get() is not cfg.settings[name].default:
                cfg.set(name, guarded)

    def call_own_handler(self, name: str, handler: Callable[[], object]) -> None:
        """Call an Arbiter subclass's handler that ours stands in for, if it is not gunicorn's.

        It ends in gunicorn's own, which leaves the main loop by StopIteration: what follows is
        ours. One that does without has been told, and the phase has moved.
        """
        if getattr(handler, "__func__", None) is getattr(Arbiter, name):
            return

        def call() -> None:
            with contextlib.suppress(StopIteration):
                handler()

        self.user_code.call(name, call)

    def _announce_draining(self) -> None:
        if self.listeners.names_of_ungated:
            self.log.debug(
                "this kernel cannot gate %s: a close may reset newcomers",
                self.listeners.names_of_ungated,
            )
        left = self.progress.listeners == ListenerState.LEFT
        self.log.info(
            "draining: %s, up to %.1f s for what is in flight",
            "leaving newcomers to others" if left else "refusing newcomers",
            self.plan.finish,
        )

    # The end

    def begin_halt(self) -> None:
        """The main loop has been left: gunicorn's halt is next, and has a deadline."""
        self.feed(phases.Halted(self.arbiter.cfg.graceful_timeout))
        self._watch = Watch(self.stand_in)
        with contextlib.suppress(RuntimeError):  # there can be no more threads
            self._watch.start()

    def begin_exit(self) -> None:
        """gunicorn's stop is over; if that was halt's, what follows is the exit."""
        if self._watch is not None and not self.leaving.has_begun():
            threads = self.configuration.settings.threads
            self.leaving.begin(self.progress.exit_by, threads, self._watch.stop)

    def report(self) -> None:
        """The last words, to whomever wants them, if anything was to be ended in order."""
        at = self.progress
        if at.said == Phase.SERVING and not at.quick:
            return
        self.crew.fold_all()
        settings = self.configuration.settings
        words = report.compose(
            self.crew.totals,
            at.quick or at.cause,
            at.lame_duck_at or at.quick_at,
            quick=bool(at.quick),
            known=self.plan.drains,
            killed=len(self.crew.killed),
        )
        service = self.arbiter.cfg.proc_name
        if settings.report:
            report.write(self.log, words, settings.report, service)
        metrics.to_statsd(self.log, words)
        metrics.to_prometheus(self.log, words, service)
        if not at.quick:
            if settings.on_drained is not None:
                self.user_code.call("graceful_on_drained", settings.on_drained, self.arbiter, words)
            if at.had_whole_delay(self.plan):
                report.warn_of_late_newcomers(self.log, words, settings.delay)
        report.say(self.log, words)
