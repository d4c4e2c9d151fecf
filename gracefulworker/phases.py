"""The phases of a service's end, and the one function that leads through them.

Kubernetes removes a pod along two paths that run side by side: the kubelet sends SIGTERM at once,
while kube-proxies, ingresses and load balancers learn of it seconds later. A server that stops at
SIGTERM refuses clients that were sent to it in good faith; one that just exits cuts the
connections that it already holds. So the end has phases, one way only::

    SERVING --SIGTERM--> LAME_DUCK --delay over--> DRAINING --nothing in flight--> STOPPED

- ``LAME_DUCK`` (the SRE book's and CoreDNS's word): the listener is open and everything is served
  as before, but each response says ``Connection: close``.
- ``DRAINING`` (Envoy's and nginx's word): newcomers are refused, the accept queue is emptied and
  served, idle keep-alive connections are closed, a request that has begun is finished.
- ``STOPPED``: the process exits; 0, or `EXIT_CUT` when a request was cut at the deadline.

A single worker that stops while the service goes on (max_requests, HUP, TTOU) skips LAME_DUCK:
its own phase is the larger of the shared one and its own.

How a shutdown goes is `step`: from how far it has come (`Progress`), what happened (an event) and
the time, to how far it has come then and what is to be done. Signal handlers, the arbiter's main
loop and its timer only feed it; `gracefulworker.arbiter.shutdown` does what it says. What must not
wait for the main loop is a `Do`, and safe in a signal handler; what is said, or runs a user's code,
is a `Then`, and the main loop's::

    SERVING     Signal, DrainRequest            -> LAME_DUCK, published at once
    LAME_DUCK   Look, and the delay is not over -> look again when it may be
                Look, and it is                 -> gate the listeners: Gated tells how far that went
                Gated                           -> DRAINING
    DRAINING    Look, handshakes under way      -> look again in a moment
                Look, none                      -> the listeners are sealed: nobody more will come
                Look, sealed, workers left      -> replace those that are missed, dismiss needless
                Look, sealed, nobody left       -> finish
                Look, after the deadline        -> kill the rest
                Halted                          -> STOPPED
    STOPPED     Look, after the last deadline   -> exit

This module is pure: no clock, no I/O, no gunicorn. Times are ns of one monotonic clock, which may
stand still and jump ahead (a suspended machine), and durations are seconds. The numbers of the
phases are compared with ``<`` everywhere; keep their order.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

#: ns, the unit of all times that processes share.
SECOND = 1_000_000_000

#: Exit status of an arbiter that had to cut a request, so that scripts can tell it from 0.
EXIT_CUT = 5

#: Seconds between the workers' deadline, where they cut what is left and name it themselves, and
#: the arbiter's, where it sends SIGKILL to a worker that did not.
KILL_MARGIN = 0.5

#: Seconds in which a second SIGTERM is noise: process managers repeat it, and one that is sent to
#: a whole process group arrives more than once.
REPEAT_WINDOW = 1.0

#: Seconds after the gate in which a handshake may still complete, at least and at most; and at
#: most where the kernel does not tell whether one is under way: most round trips are shorter.
SETTLE_MIN = 0.05
SETTLE_MAX = 1.0
SETTLE_BLIND = 0.25

#: Seconds between two looks at the handshakes under way, and at who still comes (`Plan.quiet`).
SETTLE_STEP = 0.02
QUIET_STEP = 0.05

#: Seconds between two looks at who has gone, should nobody be told (SIGCHLD is a user's, too).
GONE_STEP = 0.1

#: Seconds that a quick stop (SIGINT, SIGQUIT) waits for workers, as gunicorn's second SIGINT does,
#: and then the same for the arbiter's own exit.
QUICK_LIMIT = 2

#: Seconds until user code that has swallowed its end is ended again.
END_AGAIN = 0.1

#: The cause of a shutdown that `gracefulworker drain` began, where else a signal's name stands.
DRAIN_REQUEST = "drain request"


class Phase(enum.IntEnum):
    """Where a service stands on its way out; it only ever grows."""

    SERVING = 0
    LAME_DUCK = 1
    DRAINING = 2
    STOPPED = 3


class ListenerState(enum.IntEnum):
    """What a draining worker does with the listening sockets."""

    OPEN = 0  #: the arbiter has not come to them yet: go on accepting
    GATED = 1  #: newcomers are refused, handshakes may still complete: go on accepting
    SEALED = 2  #: nothing more will come: accept until the queue is empty, then close
    LEFT = 3  #: they outlive us (USR2, systemd): their queue is served by others, just close


@dataclass(frozen=True)
class Plan:
    """What was promised.

    :param delay: seconds of LAME_DUCK.
    :param finish: seconds of DRAINING at the most, for what is in flight.
    :param quiet: seconds without anybody new that end LAME_DUCK early; 0 for never.
    :param sigint: whether SIGINT begins the same shutdown as SIGTERM.
    :param drains: whether the workers know how to drain; those of another class are left to
        gunicorn's own stop once the delay is over.
    """

    delay: float
    finish: float
    quiet: float = 0.0
    sigint: bool = False
    drains: bool = True


@dataclass(frozen=True)
class Progress:
    """How far a shutdown has come. Times are ns, and 0 as long as it has not happened."""

    phase: Phase = Phase.SERVING
    listeners: ListenerState = ListenerState.OPEN
    lame_duck_at: int = 0
    term_at: int = 0  #: the first SIGTERM
    cause: str = ""  #: what ended SERVING: a signal's name, or `DRAIN_REQUEST`
    asked: bool = False  #: by `gracefulworker drain`; a SIGTERM is to come
    hurry: bool = False  #: a later SIGTERM has ended the delay
    stirred_at: int = 0  #: when somebody new came last
    delay_over_at: int = 0
    drain_at: int = 0
    deadline: int = 0  #: workers cut what is left
    exit_by: int = 0  #: the arbiter, too, has ended by then; set when its main loop is left
    quick: str = ""  #: SIGINT or SIGQUIT: stop at once
    quick_at: int = 0
    said: Phase = Phase.SERVING  #: the main loop has announced it
    reloading: bool = False  #: the main loop is in HUP's reload

    @property
    def refuses_changes(self) -> bool:
        """Whether it is too late for HUP, USR2 and WINCH."""
        return self.phase > Phase.SERVING

    @property
    def kill_at(self) -> int:
        """The arbiter's own deadline: until then workers have spoken, and user code may run."""
        return self.exit_by or self.deadline + round(KILL_MARGIN * SECOND)

    def leaves_reload(self, plan: Plan) -> bool:
        """Whether the main loop must not wait in HUP's reload for the old workers to leave."""
        return self.reloading and (plan.drains or bool(self.quick) or self.refuses_changes)

    def user_code_until(self, plan: Plan) -> int:
        """Until when user code may hold the main loop, once the delay is over.

        What follows it takes a moment, too; and workers of another class leave only when the main
        loop tells them to.
        """
        if self.exit_by:
            return self.exit_by - round(END_AGAIN * SECOND)
        return self.deadline if plan.drains else self.drain_at

    def had_whole_delay(self, plan: Plan) -> bool:
        """Whether the delay was as long as planned."""
        return self.drain_at - self.lame_duck_at >= round(plan.delay * SECOND)


# Events


@dataclass(frozen=True)
class Signal:
    """SIGTERM, SIGINT or SIGQUIT has come."""

    name: str


@dataclass(frozen=True)
class DrainRequest:
    """`gracefulworker drain`: LAME_DUCK begins now, and lasts until SIGTERM at least."""


@dataclass(frozen=True)
class Look:
    """Time has passed: what is due?

    :param main_loop: whether it is the main loop that looks; else a user's code holds it.
    :param stirred: whether somebody new has come since the last look.
    :param handshakes: whether any is under way; None where the kernel does not tell.
    :param workers: whether any is left.
    :param missed: whether somebody waits at a listener that no worker accepts from any more.
    :param user_code_until: ns at which the user's code that runs is to end, in DRAINING.
    """

    main_loop: bool = True
    stirred: bool = False
    handshakes: bool | None = False
    workers: bool = True
    missed: bool = False
    user_code_until: int = 0


@dataclass(frozen=True)
class Gated:
    """`Do.GATE` has been done, as far as the kernel can."""

    listeners: ListenerState


@dataclass(frozen=True)
class Reload:
    """HUP's reload begins, or is over."""

    begins: bool


@dataclass(frozen=True)
class Halted:
    """The main loop is left for good; for a quick stop once more when its workers have gone.

    :param wait: seconds that gunicorn's own stop waits for workers.
    """

    wait: float = 0.0


Event = Signal | DrainRequest | Look | Gated | Reload | Halted


# What is to be done


class Do(enum.Enum):
    """At once, in whatever context: safe in a signal handler."""

    PUBLISH = enum.auto()  #: tell the workers phase, listeners and times
    WAKE = enum.auto()  #: have the main loop look
    GATE = enum.auto()  #: refuse newcomers; `Gated` follows
    CLOSE_UNGATED = enum.auto()
    CLOSE_ALL = enum.auto()
    UNLINK = enum.auto()  #: the paths of Unix listeners
    END_USER_CODE = enum.auto()
    EXIT = enum.auto()  #: whatever still runs in this process


class Then(enum.Enum):
    """In the main loop."""

    ANNOUNCE_LAME_DUCK = enum.auto()
    ANNOUNCE_DRAINING = enum.auto()
    DISMISS_STRANGERS = enum.auto()  #: workers of another class, who do not see the phase
    HAND_OVER = enum.auto()  #: gunicorn's own stop does the rest
    REPLACE_MISSED = enum.auto()  #: a worker has died and left an accept queue behind
    DISMISS_NEEDLESS = enum.auto()  #: workers that still boot and are waited for by nobody
    KILL = enum.auto()  #: workers that have not ended by themselves
    FINISH = enum.auto()
    LOOK = enum.auto()  #: again, after what went before


@dataclass(frozen=True)
class Step:
    """What `step` says.

    :param due: ns at which to look again, if nothing happens before; 0 when nothing is due.
    """

    progress: Progress
    do: tuple[Do, ...] = ()
    then: tuple[Then, ...] = ()
    due: int = 0


def step(at: Progress, event: Event, now: int, plan: Plan) -> Step:
    """Return how a shutdown goes on from `at`, when `event` happens `now`.

    :param now: ns.
    """
    match event:
        case Signal(name):
            return _signal(at, name, now, plan)
        case DrainRequest():
            if at.phase > Phase.SERVING or at.quick or at.exit_by:
                return Step(at)
            return _begin_lame_duck(replace(at, asked=True, cause=DRAIN_REQUEST), now)
        case Look():
            return _look(at, event, now, plan)
        case Gated(listeners):
            return _begin_draining(at, listeners, now, plan)
        case Reload(begins):
            return Step(replace(at, reloading=begins))
        case Halted(wait):
            return _halt(at, wait, now, plan)


def _signal(at: Progress, name: str, now: int, plan: Plan) -> Step:
    is_repeated = bool(at.term_at) and now - at.term_at < REPEAT_WINDOW * SECOND
    # With `sigint` a SIGINT is a SIGTERM, but a later one still stops quickly.
    is_term = name == "SIGTERM" or (
        name == "SIGINT" and plan.sigint and (not at.term_at or is_repeated)
    )
    if not is_term:
        if not at.quick:
            at = replace(at, quick=name, quick_at=now)
            if at.exit_by:
                at = replace(at, exit_by=min(at.exit_by, now + 2 * QUICK_LIMIT * SECOND))
        return Step(at, (Do.WAKE, Do.END_USER_CODE))
    if not at.term_at:
        # A SIGTERM right after the drain request is the cause, if nobody has been told another.
        cause = name if at.said == Phase.SERVING else at.cause
        at = replace(at, term_at=now, asked=False, cause=cause)
    elif not is_repeated:
        at = replace(at, hurry=True)
    taken = _begin_lame_duck(at, now) if at.phase == Phase.SERVING else Step(at, (Do.WAKE,))
    return replace(taken, do=(*taken.do, Do.END_USER_CODE)) if at.quick else taken


def _begin_lame_duck(at: Progress, now: int) -> Step:
    at = replace(at, phase=Phase.LAME_DUCK, lame_duck_at=now, stirred_at=now)
    return Step(at, (Do.PUBLISH, Do.WAKE))


def _look(at: Progress, seen: Look, now: int, plan: Plan) -> Step:
    if at.exit_by:
        return _watch_exit(at, seen, now)
    if at.phase == Phase.SERVING:
        return Step(at)
    if seen.main_loop and at.said == Phase.SERVING:
        at = replace(at, said=Phase.LAME_DUCK)
        return Step(at, then=(Then.ANNOUNCE_LAME_DUCK, Then.LOOK))
    if at.phase == Phase.LAME_DUCK:
        waiting = _wait_for_delay(at, seen, now, plan)
        if at.quick and not seen.main_loop:
            again = now + round(END_AGAIN * SECOND)
            return replace(waiting, do=(*waiting.do, Do.END_USER_CODE), due=again)
        return waiting
    if at.listeners == ListenerState.GATED:
        sealing = _seal(at, seen, now)
    else:
        sealing = Step(at)
    watching = _watch_drain if seen.main_loop else _watch_user_code
    watched = watching(sealing.progress, seen, now, plan)
    return replace(watched, do=(*sealing.do, *watched.do), due=sealing.due or watched.due)


def _wait_for_delay(at: Progress, seen: Look, now: int, plan: Plan) -> Step:
    if seen.stirred:
        at = replace(at, stirred_at=now)
    until = at.lame_duck_at + round(plan.delay * SECOND)
    step_ns = until - now
    if plan.quiet:
        until = min(until, at.stirred_at + round(plan.quiet * SECOND))
        step_ns = min(until - now, round(QUIET_STEP * SECOND))
    if now < until and not (at.hurry or at.delay_over_at):
        return Step(at, due=now + step_ns)
    do: tuple[Do, ...] = ()
    if not at.delay_over_at:
        at = replace(at, delay_over_at=now)
        do = (Do.PUBLISH,)
    # After a drain request LAME_DUCK goes on until SIGTERM.
    return Step(at, do if at.asked else (*do, Do.GATE))


def _begin_draining(at: Progress, listeners: ListenerState, now: int, plan: Plan) -> Step:
    # A late look (the machine was suspended, say) takes its time from what is in flight, since the
    # deadline has been promised; but after a drain request SIGTERM may come at any time.
    delay = min(round(plan.delay * SECOND), now - at.lame_duck_at)
    since = max(at.lame_duck_at + delay, at.term_at)
    at = replace(
        at,
        phase=Phase.DRAINING,
        listeners=listeners,
        drain_at=now,
        deadline=since + round(plan.finish * SECOND),
    )
    do = [Do.PUBLISH]
    if listeners != ListenerState.GATED:
        if plan.drains:
            do.append(Do.CLOSE_ALL)
        if listeners != ListenerState.LEFT:
            do.append(Do.UNLINK)
    return Step(at, (*do, Do.WAKE), (Then.LOOK,), due=now)


def _seal(at: Progress, seen: Look, now: int) -> Step:
    since = (now - at.drain_at) / SECOND
    most = SETTLE_BLIND if seen.handshakes is None else SETTLE_MAX
    if since < SETTLE_MIN or (seen.handshakes is not False and since < most):
        wait = max(SETTLE_MIN - since, SETTLE_STEP)
        return Step(at, due=now + round(wait * SECOND))
    at = replace(at, listeners=ListenerState.SEALED)
    # As long as one process has an open one that is not gated, clients hang in its queue.
    return Step(at, (Do.PUBLISH, Do.CLOSE_UNGATED, Do.UNLINK))


def _watch_drain(at: Progress, seen: Look, now: int, plan: Plan) -> Step:
    then: list[Then] = []
    if at.said < Phase.DRAINING:
        at = replace(at, said=Phase.DRAINING)
        then += [Then.ANNOUNCE_DRAINING, Then.DISMISS_STRANGERS]
    if at.listeners == ListenerState.GATED:
        return Step(at, then=tuple(then))
    if not plan.drains:
        return Step(at, then=(*then, Then.HAND_OVER))
    if now >= at.kill_at:
        return Step(at, then=(*then, Then.KILL if seen.workers else Then.FINISH))
    if now < at.deadline and seen.missed:
        then.append(Then.REPLACE_MISSED)
    elif seen.workers:
        then.append(Then.DISMISS_NEEDLESS)
    else:
        then.append(Then.FINISH)
    return Step(at, then=tuple(then), due=min(at.kill_at, now + round(GONE_STEP * SECOND)))


def _watch_user_code(at: Progress, seen: Look, now: int, plan: Plan) -> Step:
    if at.listeners == ListenerState.GATED:
        return Step(at)
    if now < seen.user_code_until and not at.quick:
        return Step(at, due=seen.user_code_until)
    return Step(at, (Do.END_USER_CODE,), due=now + round(END_AGAIN * SECOND))


def _halt(at: Progress, wait: float, now: int, plan: Plan) -> Step:
    margin = round(KILL_MARGIN * SECOND)
    if at.quick:
        return _halted(at, max(at.exit_by, now) + QUICK_LIMIT * SECOND)
    if at.phase != Phase.DRAINING or not plan.drains:
        return _halted(at, max(at.deadline, now + round(wait * SECOND)) + margin)
    halted = _halted(replace(at, phase=Phase.STOPPED), max(at.kill_at, now + margin))
    return replace(halted, do=(Do.CLOSE_ALL, Do.PUBLISH))


def _halted(at: Progress, exit_by: int) -> Step:
    return Step(replace(at, exit_by=exit_by), due=exit_by)


def _watch_exit(at: Progress, seen: Look, now: int) -> Step:
    if now >= at.exit_by:
        return Step(at, (Do.EXIT,))
    until = seen.user_code_until
    if until and now >= until:
        return Step(at, (Do.END_USER_CODE,), due=min(now + round(END_AGAIN * SECOND), at.exit_by))
    return Step(at, due=min(until or at.exit_by, at.exit_by))
