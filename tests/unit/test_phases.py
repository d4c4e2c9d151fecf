"""The schedule by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gracefulworker.phases import Phase, Schedule

seconds = st.floats(min_value=0, max_value=3600)
schedules = st.builds(Schedule, delay=seconds, finish=seconds)


@given(schedules, st.lists(seconds))
def test_time_only_leads_on(schedule, times):
    phases = [schedule.phase(elapsed) for elapsed in sorted(times)]
    assert phases == sorted(phases)
    assert Phase.SERVING not in phases


@given(schedules)
def test_each_phase_ends_when_the_plan_says(schedule):
    assert schedule.phase(None) is Phase.SERVING
    assert schedule.phase(schedule.delay) >= Phase.DRAINING
    assert schedule.phase(schedule.deadline) is Phase.STOPPED
    if schedule.delay > 0:
        assert schedule.phase(0) is Phase.LAME_DUCK


@given(schedules, st.floats(min_value=-10, max_value=7200))
def test_a_second_sigterm_shortens_the_delay_and_never_the_rest(schedule, elapsed):
    shorter = schedule.shortened(elapsed)
    assert 0 <= shorter.delay <= schedule.delay
    assert shorter.finish == schedule.finish
    assert shorter.phase(max(elapsed, 0)) >= Phase.DRAINING
