"""How a shutdown goes, walked in thousands of ways without a process: `gracefulworker.phases`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracefulworker.phases import (
    DRAIN_REQUEST,
    END_AGAIN,
    GONE_STEP,
    KILL_MARGIN,
    REPEAT_WINDOW,
    SECOND,
    SETTLE_BLIND,
    SETTLE_MAX,
    SETTLE_MIN,
    Do,
    DrainRequest,
    Event,
    Gated,
    Halted,
    ListenerState,
    Look,
    Phase,
    Plan,
    Progress,
    Reload,
    Signal,
    Then,
    step,
)

TERM, INT, QUIT = Signal("SIGTERM"), Signal("SIGINT"), Signal("SIGQUIT")

#: What is never done twice in a shutdown.
ONCE = (
    Do.GATE,
    Do.CLOSE_UNGATED,
    Do.UNLINK,
    Then.ANNOUNCE_LAME_DUCK,
    Then.ANNOUNCE_DRAINING,
    Then.DISMISS_STRANGERS,
    Then.HAND_OVER,
    Then.FINISH,
)


def ns(seconds: float) -> int:
    return round(seconds * SECOND)


@dataclass
class Walk:
    """A shutdown that is fed by hand: the world around `step`, and what is always true of it."""

    plan: Plan
    gated: ListenerState = ListenerState.GATED
    now: int = ns(1000)
    at: Progress = field(default_factory=Progress)
    done: list[Do | Then] = field(default_factory=list)
    due: int = 0

    # The world
    workers: bool = True
    stirred: bool = False
    handshakes: bool | None = False
    missed: bool = False

    def feed(self, event: Event) -> list[Do | Then]:
        """Take an event; what was done at once, and is to be done in the main loop."""
        before = self.at
        taken = step(self.at, event, self.now, self.plan)
        self.at, self.due = taken.progress, taken.due
        done: list[Do | Then] = [*taken.do, *taken.then]
        self.judge(before, done)
        self.done += done
        if Do.GATE in taken.do:
            done += self.feed(Gated(self.gated))
        return done

    def look(self, main_loop: bool = True, user_code_until: int = 0) -> list[Do | Then]:
        return self.feed(
            Look(
                main_loop=main_loop,
                stirred=self.stirred,
                handshakes=self.handshakes,
                workers=self.workers,
                missed=self.missed,
                user_code_until=user_code_until,
            )
        )

    def tick(self) -> list[Do | Then]:
        """A pass of the main loop."""
        done = self.look()
        while Then.LOOK in done:
            done.remove(Then.LOOK)
            done += self.look()
        return done

    def after(self, seconds: float) -> Walk:
        self.now += ns(seconds)
        return self

    def judge(self, before: Progress, done: list[Do | Then]) -> None:
        """What holds in every step."""
        at, plan = self.at, self.plan
        assert at.phase >= before.phase, "the phase went back"
        assert at.said >= before.said and at.said <= max(at.phase, Phase.SERVING)
        assert at.listeners >= before.listeners or before.listeners == ListenerState.OPEN
        for name in ("lame_duck_at", "term_at", "delay_over_at", "drain_at", "quick_at", "quick"):
            assert getattr(before, name) in (getattr(at, name), 0, ""), f"{name} moved"
        assert before.deadline in (at.deadline, 0)
        if at.deadline:
            assert at.deadline <= at.term_at + ns(plan.delay) + ns(plan.finish), (
                "later than promised"
            )
        if (at.phase, at.listeners) != (before.phase, before.listeners):
            assert Do.PUBLISH in done, "the workers were not told"
        for one in ONCE:
            assert done.count(one) + self.done.count(one) <= 1, f"{one} twice"
        if Do.EXIT in done:
            assert at.phase is Phase.STOPPED and self.now >= at.exit_by

    def end(self) -> bool:
        """Whether the main loop is left."""
        return any(one in self.done for one in (Then.FINISH, Then.HAND_OVER))


def walk(
    delay: float = 5,
    finish: float = 24,
    gated: ListenerState = ListenerState.GATED,
    **more: Any,
) -> Walk:
    return Walk(Plan(delay, finish, **more), gated)


def draining(**more: Any) -> Walk:
    """A walk whose delay has just been over, sealed."""
    one = walk(**more)
    one.feed(TERM)
    one.tick()
    one.after(one.plan.delay).tick()
    one.after(SETTLE_MIN).tick()
    assert (one.at.phase, one.at.listeners) == (Phase.DRAINING, ListenerState.SEALED)
    return one


# The way, step by step


def test_nothing_is_done_before_sigterm():
    one = walk()
    assert one.tick() == [] and one.after(1e6).tick() == []
    assert one.at == Progress() and not one.at.refuses_changes


def test_the_whole_way():
    one = walk()
    assert one.feed(TERM) == [Do.PUBLISH, Do.WAKE]
    assert one.at.phase is Phase.LAME_DUCK and one.at.cause == "SIGTERM" and one.at.refuses_changes
    assert one.tick() == [Then.ANNOUNCE_LAME_DUCK]
    assert one.due == one.now + ns(5)
    assert one.after(4.999).tick() == []
    assert one.after(0.001).tick() == [
        *(Do.PUBLISH, Do.GATE, Do.PUBLISH, Do.WAKE),
        *(Then.ANNOUNCE_DRAINING, Then.DISMISS_STRANGERS),
    ]
    assert one.at.deadline == one.at.lame_duck_at + ns(29)
    assert one.at.listeners is ListenerState.GATED and one.at.said is Phase.DRAINING
    assert one.due == one.at.drain_at + ns(SETTLE_MIN)
    assert one.after(SETTLE_MIN).tick() == [
        *(Do.PUBLISH, Do.CLOSE_UNGATED, Do.UNLINK),
        Then.DISMISS_NEEDLESS,
    ]
    assert one.at.listeners is ListenerState.SEALED
    assert one.due == one.now + ns(GONE_STEP)
    assert one.at.kill_at == one.at.deadline + ns(KILL_MARGIN)
    one.workers = False
    assert one.after(1).tick() == [Then.FINISH]
    assert one.feed(Halted()) == [Do.CLOSE_ALL, Do.PUBLISH]
    assert one.at.phase is Phase.STOPPED and one.at.had_whole_delay(one.plan)
    assert one.at.exit_by == one.at.kill_at


def test_the_delay_ends_to_the_nanosecond():
    one = walk(delay=5)
    one.feed(TERM)
    one.tick()
    one.now = one.at.lame_duck_at + ns(5) - 1
    one.tick()
    assert one.at.phase is Phase.LAME_DUCK and one.due == one.now + 1
    one.now += 1
    one.tick()
    assert one.at.phase is Phase.DRAINING


def test_a_second_sigterm_is_noise_for_a_second_and_then_ends_the_delay():
    one = walk()
    one.feed(TERM)
    one.now = one.at.term_at + ns(REPEAT_WINDOW) - 1
    one.feed(TERM)
    one.tick()
    assert one.at.phase is Phase.LAME_DUCK and not one.at.hurry
    one.now += 1
    assert Do.WAKE in one.feed(TERM)
    one.tick()
    assert one.at.phase is Phase.DRAINING
    assert one.at.deadline == one.at.drain_at + ns(24)  # the rest keeps its time, from now on
    assert not one.at.had_whole_delay(one.plan)


def test_no_delay():
    one = walk(delay=0)
    one.feed(TERM)
    one.tick()
    assert one.at.phase is Phase.DRAINING and one.at.had_whole_delay(one.plan)


@pytest.mark.parametrize("signal", (INT, QUIT))
def test_a_quick_stop_is_noted_in_every_phase_and_once(signal):
    for one in (walk(), draining()):
        assert one.feed(signal) == [Do.WAKE, Do.END_USER_CODE]
        first = one.at
        assert first.quick == signal.name and first.quick_at == one.now
        one.after(1).feed(QUIT)
        assert one.at == first
        assert Do.END_USER_CODE in one.feed(TERM), "user code would hold up the quick stop"
        assert one.feed(Halted()) == [] and one.at.phase < Phase.STOPPED


def test_sigint_as_sigterm():
    one = walk(sigint=True)
    one.feed(INT)
    assert one.at.phase is Phase.LAME_DUCK and one.at.cause == "SIGINT" and not one.at.quick
    one.after(0.5).feed(INT)
    assert not one.at.quick  # a process manager repeats it
    one.after(0.5).feed(INT)
    assert one.at.quick == "SIGINT"


def test_a_drain_request_waits_for_sigterm():
    one = walk(delay=5, finish=24)
    one.feed(DrainRequest())
    assert one.at.asked and one.at.cause == DRAIN_REQUEST
    one.tick()
    one.after(5).tick()
    assert one.at.delay_over_at == one.now and one.at.phase is Phase.LAME_DUCK
    assert one.after(60).tick() == [] and one.due == 0
    one.feed(TERM)
    one.tick()
    assert one.at.phase is Phase.DRAINING and one.at.drain_at == one.now
    assert one.at.deadline == one.now + ns(24) and one.at.cause == DRAIN_REQUEST


def test_sigterm_in_the_delay_of_a_drain_request_does_not_lengthen_it():
    one = walk(delay=5, finish=24)
    one.feed(DrainRequest())
    one.tick()
    one.after(2).feed(TERM)
    one.tick()
    one.after(2.999).tick()
    assert one.at.phase is Phase.LAME_DUCK
    one.after(0.001).tick()
    assert one.at.phase is Phase.DRAINING and one.at.deadline == one.now + ns(24)


def test_sigterm_before_anybody_was_told_of_the_drain_request_is_the_cause():
    one = walk()
    one.feed(DrainRequest())
    one.feed(TERM)
    one.tick()
    assert one.at.cause == "SIGTERM" and not one.at.asked


def test_a_drain_request_comes_too_late_from_sigterm_on():
    one = walk()
    one.feed(TERM)
    before = one.at
    assert one.feed(DrainRequest()) == [] and one.at == before


def test_quiet_ends_the_delay_and_a_newcomer_begins_it_anew():
    one = walk(delay=60, quiet=1)
    one.feed(TERM)
    one.tick()
    one.after(0.9).stirred = True
    one.tick()
    one.stirred = False
    one.after(0.99).tick()
    assert one.at.phase is Phase.LAME_DUCK and one.due - one.now <= ns(0.05)
    one.after(0.01).tick()
    assert one.at.phase is Phase.DRAINING and not one.at.had_whole_delay(one.plan)


def test_quiet_is_never_later_than_the_delay():
    one = walk(delay=5, quiet=4)
    one.feed(TERM)
    one.tick()
    one.stirred = True
    one.after(5).tick()
    assert one.at.phase is Phase.DRAINING


@pytest.mark.parametrize(
    ("handshakes", "least"), ((False, SETTLE_MIN), (None, SETTLE_BLIND), (True, SETTLE_MAX))
)
def test_the_seal_waits_for_handshakes(handshakes, least):
    one = walk(delay=0)
    one.handshakes = handshakes
    one.feed(TERM)
    one.tick()
    began = one.now
    while one.at.listeners == ListenerState.GATED:
        assert one.now - began <= ns(least), "sealed too late"
        assert one.now < one.due or one.now == began
        one.now = max(one.due, one.now + 1)
        one.tick()
    assert one.now - began >= ns(least)


@pytest.mark.parametrize("gated", (ListenerState.SEALED, ListenerState.LEFT))
def test_listeners_that_cannot_be_gated_or_outlive_us_are_closed_at_once(gated):
    one = walk(delay=0, gated=gated)
    one.feed(TERM)
    one.tick()
    assert Do.CLOSE_ALL in one.done
    assert (Do.UNLINK in one.done) == (gated is ListenerState.SEALED)


def test_other_workers_are_handed_over_to_gunicorn_when_nobody_comes_any_more():
    one = walk(delay=0, drains=False)
    one.feed(TERM)
    one.tick()
    assert not one.end()
    assert one.after(SETTLE_MIN).tick()[-1] is Then.HAND_OVER
    assert one.feed(Halted()) == [] and one.at.phase is Phase.DRAINING
    two = walk(delay=0, drains=False, gated=ListenerState.LEFT)
    two.feed(TERM)
    two.tick()
    assert two.end() and Do.CLOSE_ALL not in two.done  # gunicorn's stop closes them


def test_a_lost_queue_gets_a_worker_as_long_as_there_is_time():
    one = draining()
    one.workers, one.missed = False, True
    assert one.tick() == [Then.REPLACE_MISSED]
    one.now = one.at.deadline - 1
    assert one.tick() == [Then.REPLACE_MISSED]
    one.now += 1
    assert one.tick() == [Then.FINISH]


def test_who_is_still_there_after_the_deadline_is_killed():
    one = draining()
    one.now = one.at.kill_at - 1
    assert one.tick() == [Then.DISMISS_NEEDLESS]
    one.now += 1
    assert one.tick() == [Then.KILL] and one.tick() == [Then.KILL]
    one.workers = False
    assert one.tick() == [Then.FINISH]


def test_user_code_that_holds_the_main_loop_holds_up_nothing():
    one = walk(delay=5)
    one.feed(TERM)
    one.look()
    until = ns(10**6)
    assert one.after(4.9).look(main_loop=False, user_code_until=until) == []
    one.after(0.1).look(main_loop=False, user_code_until=until)
    assert one.at.phase is Phase.DRAINING and one.at.said is Phase.LAME_DUCK
    one.after(SETTLE_MIN).look(main_loop=False, user_code_until=until)
    assert one.at.listeners is ListenerState.SEALED
    one.now = one.at.user_code_until(one.plan)
    assert one.now == one.at.deadline
    done = one.look(main_loop=False, user_code_until=one.now)
    assert done == [Do.END_USER_CODE] and one.due == one.now + ns(END_AGAIN)
    assert one.at.said is Phase.LAME_DUCK, "that is the main loop's to say"


def test_user_code_is_ended_by_a_quick_stop_and_by_the_need_of_other_workers():
    one = draining()
    one.feed(QUIT)
    assert one.look(main_loop=False, user_code_until=one.now + 1) == [Do.END_USER_CODE]
    two = draining(drains=False)
    assert two.at.user_code_until(two.plan) == two.at.drain_at


def test_the_last_deadline():
    one = draining()
    one.workers = False
    one.now = one.at.kill_at + ns(3)  # late: what follows has a moment all the same
    one.tick()
    one.feed(Halted())
    assert one.at.exit_by == one.at.kill_at == one.now + ns(KILL_MARGIN)
    assert one.at.user_code_until(one.plan) < one.at.exit_by
    assert one.look(main_loop=False) == [] and one.due == one.at.exit_by
    one.now = one.at.user_code_until(one.plan)
    assert one.look(main_loop=False, user_code_until=one.now) == [Do.END_USER_CODE]
    assert one.now < one.due <= one.at.exit_by
    one.now = one.at.exit_by - 1
    assert one.look(main_loop=False) == []
    one.now += 1
    assert one.look(main_loop=False) == [Do.EXIT]


def test_reload_is_left_by_those_who_need_the_main_loop():
    one = walk()
    one.feed(Reload(True))
    assert one.at.leaves_reload(one.plan), "our old workers leave by themselves"
    other = replace(one.plan, drains=False)
    assert not one.at.leaves_reload(other)
    for event in (TERM, QUIT):
        assert step(one.at, event, one.now, other).progress.leaves_reload(other)
    one.feed(Reload(False))
    assert not one.at.leaves_reload(one.plan)


def test_a_quick_stop_ends_user_code_in_every_phase_and_again():
    one = walk(delay=60)
    one.feed(TERM)
    one.look()
    one.feed(INT)
    for _ in range(3):
        assert one.after(END_AGAIN).look(main_loop=False, user_code_until=one.now + ns(99)) == [
            Do.END_USER_CODE
        ]
        assert one.due == one.now + ns(END_AGAIN)


def test_a_drain_request_begins_nothing_in_a_quick_stop():
    """Its signal also ends user code."""
    one = walk()
    one.feed(QUIT)
    assert one.feed(DrainRequest()) == [] and one.at.phase is Phase.SERVING


def test_the_arbiter_does_not_end_before_gunicorns_own_stop():
    one = draining(finish=0.0, drains=False)
    one.feed(Halted(1.0))
    assert one.at.exit_by >= one.now + ns(1 + KILL_MARGIN)
    two = draining(finish=30, drains=False)
    two.feed(Halted(30.0))
    two.feed(INT)  # gunicorn's stop goes on for 2 s then, beginning a moment later
    assert two.at.exit_by >= two.now + ns(2.5)


# All ways


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    seconds = st.sampled_from((0.0, 0.01, 0.3, 1.0, 5.0, 60.0)) | st.floats(0, 3600)
    return Plan(
        draw(seconds),
        draw(seconds),
        draw(st.just(0.0) | seconds),
        draw(st.booleans()),
        draw(st.booleans()),
    )


#: Seconds that pass, a clock that stands, and a machine that was suspended.
passing = st.just(0.0) | st.floats(0, 2) | st.sampled_from((1e-9, 30.0, 1e5))

happenings = st.lists(
    st.tuples(
        passing,
        st.sampled_from(
            (
                *(TERM, TERM, INT, QUIT, DrainRequest(), Reload(True), Reload(False)),
                *("tick", "tick", "user code", "stir", "calm", "missed", "found"),
                *("gone", "back", "slow", "blind"),
            )
        ),
    ),
    max_size=40,
)


def happen(one: Walk, what: Event | str) -> None:
    match what:
        case "tick":
            one.tick()
        case "user code":
            until = one.at.user_code_until(one.plan)
            one.look(main_loop=False, user_code_until=until)
        case "stir" | "calm":
            one.stirred = what == "stir"
        case "missed" | "found":
            one.missed = what == "missed"
        case "gone" | "back":
            one.workers = what == "back"
        case "slow" | "blind":
            one.handshakes = True if what == "slow" else None
        case str():
            raise AssertionError(what)
        case _:
            one.feed(what)


@settings(max_examples=1500, deadline=None)
@given(plans(), st.sampled_from(list(ListenerState)[1:]), happenings)
def test_every_walk_keeps_its_word_and_ends(plan, gated, steps):
    one = Walk(plan, gated)
    for seconds, what in steps:
        one.after(seconds)
        if one.end():
            break
        happen(one, what)
        at = one.at
        if what in ("tick", "user code") and at.phase is Phase.LAME_DUCK and not at.asked:
            said_first = what == "user code" or at.said > Phase.SERVING
            assert not said_first or one.now < at.lame_duck_at + ns(plan.delay), (
                "DRAINING is later than the delay"
            )
    # Whatever came before: a SIGTERM, and nothing else than what is due and workers that hang.
    one.feed(TERM)
    one.workers, one.missed, one.stirred = True, False, False
    passes = 0
    while not one.end() and passes < 1000:
        passes += 1
        if Then.KILL in one.tick():
            one.workers = False
        one.now = max(one.due, one.now + ns(10))
        if one.end():
            break
    assert one.end(), one.at
    if one.at.quick or not plan.drains:
        return
    assert Then.FINISH in one.done
    one.feed(Halted())
    assert one.at.phase is Phase.STOPPED
    one.now = one.at.exit_by
    assert one.look(main_loop=False) == [Do.EXIT]


@settings(max_examples=300, deadline=None)
@given(plans(), st.lists(passing, min_size=1, max_size=10))
def test_who_looks_only_when_something_is_due_is_not_late(plan, extra):
    """The main loop sleeps until `due`: nothing that was promised waits for another reason."""
    one = Walk(replace(plan, drains=True, quiet=0.0))
    one.feed(TERM)
    one.tick()
    while one.at.phase is Phase.LAME_DUCK:
        assert one.due
        one.now = one.due
        one.tick()
    assert one.at.drain_at == one.at.lame_duck_at + ns(plan.delay)
    while one.at.listeners is ListenerState.GATED:
        one.now = one.due
        one.tick()
    assert one.now - one.at.drain_at <= ns(SETTLE_MIN) + 1
    one.now = max(one.now, one.at.kill_at - ns(1))  # what is done until then is done each time
    one.tick()
    while Then.KILL not in one.done:
        assert one.now < one.due <= max(one.at.kill_at, one.now + 1)
        one.now = one.due
        one.tick()
    assert one.now == max(one.at.kill_at, one.at.drain_at + ns(SETTLE_MIN))
