"""The crew's plan: whom to spawn, retire, terminate and dismiss (contracts 3, 8 and 9).

First each way through the drawing in `crew_plan` by itself, then walks: a service over many passes,
to which anything may happen at any time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracefulworker.arbiter.crew import RETRY_FIRST, RETRY_MOST, BackOff
from gracefulworker.arbiter.crew_plan import (
    Handover,
    Member,
    Orders,
    Roster,
    begin_overlap,
    needless,
    plan,
)

pytestmark = pytest.mark.contract(8)

OVERLAP = 10.0


def of(*members: Member, wanted: int = 2, **handover: Any) -> Roster:
    return Roster(members, wanted, Handover(**handover))


def decide(
    roster: Roster,
    *,
    now: float = 100.0,
    overlap: float = OVERLAP,
    serving: bool = True,
    may_spawn: bool = True,
    failures: int = 0,
    impatient: bool = False,
) -> tuple[Handover, Orders]:
    return plan(
        roster,
        now=now,
        overlap=overlap,
        serving=serving,
        may_spawn=may_spawn,
        failures=failures,
        impatient=impatient,
    )


def ages(members: Iterable[Member]) -> list[int]:
    return [member.age for member in members]


def told(orders: Orders) -> tuple[list[int], int, list[int]]:
    """Whom to retire, how many to spawn, whom to terminate."""
    return ages(orders.retire), orders.spawn, ages(orders.terminate)


NOTHING: tuple[list[int], int, list[int]] = ([], 0, [])


def booting(age: int, **parts: Any) -> Member:
    return Member(age, booted=False, **parts)


def stranger(age: int) -> Member:
    return Member(age, is_ours=False)


# Nothing is under way


def test_a_quiet_service_is_left_to_gunicorn():
    handover, orders = decide(of(Member(1), Member(2)))
    assert orders.as_gunicorn and told(orders) == NOTHING
    assert handover == Handover()


def test_a_death_and_ttin_are_left_to_gunicorn():
    assert decide(of(Member(2)))[1].as_gunicorn
    assert decide(of(wanted=2))[1].as_gunicorn


def test_ttou_ends_the_oldest():
    _, orders = decide(of(Member(1), Member(2), Member(3)))
    assert not orders.as_gunicorn and told(orders) == ([], 0, [1])


def test_ttin_and_ttou_in_quick_succession_leave_the_old_one_until_the_new_one_has_booted():
    assert told(decide(of(Member(1), booting(2), wanted=1))[1]) == NOTHING
    assert told(decide(of(Member(1), Member(2), wanted=1))[1]) == ([], 0, [1])


def test_one_that_leaves_is_replaced_before_it_has_gone():
    """As after an operator's SIGTERM, for which its wish was granted."""
    _, orders = decide(of(Member(1, retiring=True), Member(2)))
    assert told(orders) == ([], 1, [])


def test_one_that_leaves_is_not_too_many():
    _, orders = decide(of(Member(1, retiring=True), Member(2), Member(3)))
    assert not orders.as_gunicorn and told(orders) == NOTHING


# HUP


def test_hup_makes_all_of_them_old():
    handover, dismissed = begin_overlap(of(Member(1), Member(2)), last_age=2, until=110.0)
    assert (handover.last_old_age, handover.overlap_until, dismissed) == (2, 110.0, [])


HUP: dict[str, Any] = {"last_old_age": 2, "overlap_until": 110.0}


def test_hup_lets_the_old_serve_while_a_new_one_boots():
    handover, orders = decide(of(Member(1), Member(2), Member(3), booting(4), **HUP))
    assert told(orders) == NOTHING and not orders.as_gunicorn
    assert handover == Handover(**HUP)


def test_hup_ends_the_old_together_when_the_new_have_booted():
    handover, orders = decide(of(*map(Member, (1, 2, 3, 4)), **HUP))
    assert told(orders) == ([], 0, [1, 2])
    assert handover.overlap_until == 0.0


def test_hup_replaces_a_new_one_that_has_died():
    roster = of(Member(1), Member(2), Member(4), **HUP)
    assert told(decide(roster)[1]) == ([], 1, [])
    assert told(decide(roster, may_spawn=False)[1]) == NOTHING


def test_hup_does_not_wait_longer_than_the_overlap():
    roster = of(Member(1), Member(2), booting(3), booting(4), **HUP)
    assert told(decide(roster, now=109.9)[1]) == NOTHING
    assert told(decide(roster, now=110.0)[1]) == ([], 0, [1, 2])


def test_from_sigterm_on_the_old_stay_until_the_new_are_up():
    roster = of(Member(1), Member(2), Member(3), booting(4), **HUP)
    assert told(decide(roster, now=110.0, serving=False)[1]) == NOTHING
    up = of(*map(Member, (1, 2, 3, 4)), **HUP)
    assert told(decide(up, now=110.0, serving=False)[1]) == ([], 0, [1, 2])


def test_a_second_hup_dismisses_what_the_first_one_boots_once():
    crew = (Member(1), booting(3), booting(4, dismissed=True))
    handover, dismissed = begin_overlap(of(*crew, **HUP), last_age=4, until=120.0)
    assert ages(dismissed) == [3]
    assert handover.last_old_age == 4


def test_a_second_hup_dismisses_nobody_when_nobody_serves():
    assert begin_overlap(of(booting(1), booting(2)), last_age=2, until=110.0)[1] == []


def test_a_second_hup_dismisses_nobody_for_strangers():
    """Whether they have booted is not known."""
    assert begin_overlap(of(stranger(1), booting(2)), last_age=2, until=110.0)[1] == []


# max_requests


def test_a_wish_is_granted_when_the_successor_has_booted():
    asks = Member(1, wants_to_retire=True)
    handover, orders = decide(of(asks, Member(2)))
    assert told(orders) == ([], 1, [])
    assert handover == Handover(outgoing=frozenset({1}), outgoing_until=110.0)
    waiting = of(asks, Member(2), booting(3), outgoing=frozenset({1}), outgoing_until=110.0)
    assert told(decide(waiting)[1]) == NOTHING
    up = replace(waiting, members=(asks, Member(2), Member(3)))
    handover, orders = decide(up)
    assert told(orders) == ([1], 0, [])
    assert handover.outgoing == frozenset()


def test_a_wish_is_granted_without_a_signal():
    """The application may take SIGTERM for itself."""
    up = of(Member(1, wants_to_retire=True), Member(2), wanted=1, outgoing=frozenset({1}))
    _, orders = decide(up)
    assert ages(orders.retire) == [1] and not orders.terminate


def test_one_at_a_time_the_oldest_first():
    asks = [Member(age, wants_to_retire=True) for age in (1, 2, 3)]
    assert decide(of(*asks, wanted=3))[0].outgoing == {1}


@pytest.mark.parametrize("other", (Member(2, retiring=True), booting(2)), ids=("leaves", "boots"))
def test_one_that_asks_serves_on_while_another(other):
    roster = of(Member(1, wants_to_retire=True), other, Member(3), wanted=2)
    handover, orders = decide(roster)
    assert handover.outgoing == frozenset() and not orders.retire


def test_a_successor_that_is_late_is_not_waited_for():
    asks = Member(1, wants_to_retire=True)
    roster = of(asks, booting(2), wanted=1, outgoing=frozenset({1}), outgoing_until=110.0)
    assert told(decide(roster, now=109.9)[1]) == NOTHING
    assert told(decide(roster, now=110.0)[1]) == ([1], 0, [])


def test_from_sigterm_on_a_successor_that_is_late_is_waited_for():
    asks = Member(1, wants_to_retire=True)
    roster = of(asks, booting(2), wanted=1, outgoing=frozenset({1}), outgoing_until=110.0)
    assert told(decide(roster, now=111.0, serving=False)[1]) == NOTHING


def test_without_overlap_a_wish_is_granted_at_once_and_the_successor_boots_afterwards():
    handover, orders = decide(of(Member(1, wants_to_retire=True), wanted=1), overlap=0.0)
    assert told(orders) == ([1], 0, [])
    assert handover.outgoing == frozenset()
    assert told(decide(of(Member(1, retiring=True), wanted=1), overlap=0.0)[1]) == NOTHING
    assert decide(of(wanted=1), overlap=0.0)[1].as_gunicorn


def test_from_sigterm_on_a_successor_boots_first_also_without_overlap():
    asks = Member(1, wants_to_retire=True)
    handover, orders = decide(of(asks, wanted=1), overlap=0.0, serving=False)
    assert told(orders) == ([], 1, []) and handover.outgoing == {1}
    gone_before = of(Member(1, retiring=True), wanted=1)
    assert told(decide(gone_before, overlap=0.0, serving=False)[1]) == ([], 1, [])


def test_without_overlap_nobody_waits_at_listeners_of_which_one_has_left():
    one, other = Member(1, frozenset("a"), retiring=True), Member(2, frozenset("b"))
    roster = replace(of(one, other), listeners=frozenset("ab"))
    assert told(decide(roster, overlap=0.0)[1]) == ([], 1, [])
    alone = replace(of(one, wanted=1), listeners=frozenset("a"))  # as with gunicorn
    assert told(decide(alone, overlap=0.0)[1]) == NOTHING


def test_a_developer_does_not_wait():
    roster = of(Member(1, wants_to_retire=True), wanted=1)
    assert told(decide(roster, impatient=True)[1]) == ([1], 1, [])


# A successor fails

ASKS = Member(1, wants_to_retire=True)
WAITED_FOR = {"outgoing": frozenset({1}), "outgoing_until": 110.0}


def test_a_successor_that_fails_is_tried_again_in_the_time_of_the_overlap():
    roster = of(ASKS, wanted=1, **WAITED_FOR)
    assert told(decide(roster, failures=1, may_spawn=False)[1]) == NOTHING
    handover, orders = decide(roster, failures=1)
    assert told(orders) == ([], 1, []) and not handover.blamed_at


def test_then_the_one_leaves_first_and_the_successor_boots_afterwards():
    late, orders = decide(of(ASKS, wanted=1, **WAITED_FOR), now=110.0, failures=4)
    assert told(orders) == ([1], 0, []) and late.blamed_at == 4
    leaves = Roster((Member(1, retiring=True),), 1, late)
    assert told(decide(leaves, now=111.0, failures=4)[1]) == NOTHING
    assert decide(Roster((), 1, late), now=112.0, failures=4)[1].as_gunicorn


BLAMED = {"blamed_at": 4}


def test_if_that_one_boots_the_order_stays_so():
    learnt, orders = decide(of(ASKS, wanted=1, **BLAMED), now=200.0)
    assert learnt.leave_first and told(orders) == ([1], 0, [])
    leaves = Roster((Member(1, retiring=True), Member(2)), 2, learnt)
    assert told(decide(leaves, now=201.0)[1]) == NOTHING
    assert not begin_overlap(leaves, 2, 210.0)[0].leave_first  # it may be another application


def test_if_that_one_fails_too_the_order_is_as_before():
    learnt, _ = decide(of(Member(2), **BLAMED), failures=5)
    assert not learnt.blamed_at and not learnt.leave_first
    handover, orders = decide(Roster((ASKS, Member(2)), 2, learnt))
    assert told(orders) == ([], 1, []) and handover.outgoing == {1}


def test_nothing_is_learnt_while_that_one_boots():
    assert decide(of(booting(2), wanted=1, **BLAMED), failures=4)[0].blamed_at == 4


def test_from_sigterm_on_nobody_leaves_before_a_successor_has_booted():
    roster = of(ASKS, wanted=1, leave_first=True, **WAITED_FOR)
    handover, orders = decide(roster, now=111.0, failures=4, serving=False)
    assert told(orders) == ([], 1, []) and handover.outgoing == {1}


def test_hup_whose_new_ones_fail_lets_the_old_ones_leave_first():
    roster = of(Member(1), Member(2), **HUP)
    assert told(decide(roster, failures=3)[1]) == ([], 2, [])
    handover, orders = decide(roster, now=110.0, failures=3)
    assert told(orders) == ([], 0, [1, 2]) and handover.blamed_at == 3
    one_gone = Roster((Member(2, retiring=True),), 2, handover)
    assert decide(one_gone, now=111.0, failures=3)[1].spawn == 1


def test_a_developer_s_successor_that_fails_is_tried_again_when_the_old_one_has_gone():
    leaves = of(Member(1, retiring=True), wanted=1)
    handover, orders = decide(leaves, impatient=True, failures=1)
    assert told(orders) == NOTHING and handover.blamed_at == 1


# A successor hangs


def hangs(age: int) -> Member:
    return booting(age, hangs=True)


def test_one_that_hangs_keeps_no_other_from_being_recycled():
    crew = (ASKS, Member(2), hangs(3))
    handover, orders = decide(of(*crew, wanted=3))
    assert told(orders) == ([], 1, []) and handover.outgoing == {1}
    up = Roster((*crew, Member(4)), 3, handover)
    assert told(decide(up)[1]) == ([1], 0, [])


def test_when_a_second_one_hangs_recycling_waits():
    crew = (ASKS, Member(2), hangs(3), hangs(4))
    roster = of(*crew, wanted=3, **WAITED_FOR)
    assert told(decide(roster, now=120.0)[1]) == NOTHING
    gone = of(*crew[:3], Member(5), wanted=3, **WAITED_FOR)
    assert told(decide(gone, now=121.0)[1]) == ([1], 0, [])


def test_the_only_one_is_not_relieved_by_one_that_hangs_before_its_time_is_over():
    roster = of(ASKS, hangs(2), wanted=1, **WAITED_FOR)
    assert told(decide(roster, now=109.0)[1]) == NOTHING
    assert told(decide(roster, now=110.0)[1]) == ([1], 0, [])


def test_from_sigterm_on_one_that_hangs_counts_as_little_as_any_that_boots():
    roster = of(ASKS, Member(2), hangs(3), Member(4), wanted=3, **WAITED_FOR)
    assert told(decide(roster, now=111.0, serving=False)[1]) == NOTHING


def test_the_old_do_not_wait_for_new_ones_that_hang():
    crew = (ASKS, Member(2), hangs(3), hangs(4))
    roster = of(*crew, outgoing=frozenset({1}), outgoing_until=105.0, **HUP)
    assert told(decide(roster, now=110.0)[1]) == ([1], 0, [2])


def test_one_that_is_outgoing_when_hup_comes_leaves_with_the_old():
    crew = (Member(1, wants_to_retire=True), Member(2), Member(3), Member(4))
    handover, orders = decide(of(*crew, outgoing=frozenset({1}), outgoing_until=105.0, **HUP))
    assert told(orders) == ([1], 0, [2])
    assert handover.outgoing == frozenset()


def test_one_that_is_outgoing_and_was_told_by_another_is_not_told_again():
    crew = (Member(1, retiring=True, wants_to_retire=True), Member(2), Member(3))
    handover, orders = decide(of(*crew, outgoing=frozenset({1})))
    assert told(orders) == NOTHING and handover.outgoing == frozenset()


def test_one_that_was_outgoing_and_has_died_holds_up_nobody():
    asks = Member(2, wants_to_retire=True)
    handover, _ = decide(of(asks, Member(3), outgoing=frozenset({1}), outgoing_until=math.inf))
    assert handover.outgoing == {2}


# Listener sets


def on(age: int, listeners: str, **parts: object) -> Member:
    return Member(age, frozenset(listeners), **parts)  # type: ignore[arg-type]


def test_ttou_with_listener_sets_lets_one_follow_two():
    handover, orders = decide(of(on(1, "a"), on(2, "b"), on(3, "c")))
    assert handover.outgoing == {1, 2} and told(orders) == ([], 1, [])
    boots = (on(1, "a"), on(2, "b"), on(3, "c"), on(4, "ab", booted=False))
    parts: dict[str, Any] = {"outgoing": frozenset({1, 2}), "outgoing_until": 110.0}
    assert told(decide(of(*boots, **parts))[1]) == NOTHING
    up = (on(1, "a"), on(2, "b"), on(3, "c"), on(4, "ab"))
    assert told(decide(of(*up, **parts))[1]) == ([1, 2], 0, [])


def test_a_set_whose_worker_has_died_is_not_forgotten_at_ttou():
    """Two are as many as are wanted, and neither accepts from it."""
    crew = replace(of(on(1, "a"), on(2, "b")), listeners=frozenset("abc"))
    handover, orders = decide(crew)
    assert handover.outgoing == {1} and told(orders) == ([], 1, [])
    missing = replace(crew, wanted=3)  # who is spawned now gets that set
    assert decide(missing)[0].outgoing == frozenset()


def test_one_that_asks_serves_on_while_there_are_too_many():
    """Else nobody would follow it, and its listener set would be forgotten."""
    crew = of(on(1, "c"), on(2, "b"), on(3, "ac", wants_to_retire=True))
    handover, orders = decide(crew)
    assert handover.outgoing == frozenset() and told(orders) == ([], 0, [1])


def test_ttou_ends_one_whose_listeners_others_accept_from():
    assert told(decide(of(on(1, "a"), on(2, "b"), on(3, "ab")))[1]) == ([], 0, [1])


def test_hup_to_another_address_replaces_each_worker_once():
    roster = of(on(1, "a"), on(2, "a"), on(3, "b"), on(4, "b"), **HUP)
    handover, orders = decide(roster)
    assert told(orders) == ([], 0, [1, 2]) and handover.outgoing == frozenset()


# Strangers


def test_hup_from_a_stock_class_to_ours_and_back():
    ours_boot = of(stranger(1), stranger(2), booting(3), booting(4), **HUP)
    assert told(decide(ours_boot)[1]) == NOTHING
    ours_up = of(stranger(1), stranger(2), Member(3), Member(4), **HUP)
    assert told(decide(ours_up)[1]) == ([], 0, [1, 2])
    back = of(Member(3), Member(4), stranger(5), stranger(6), last_old_age=4, overlap_until=110.0)
    assert told(decide(back)[1]) == ([], 0, [3, 4])


def test_a_stranger_is_told_in_each_pass_as_in_gunicorn():
    assert told(decide(of(stranger(1), stranger(2), wanted=1))[1]) == ([], 0, [1])


def test_a_stranger_cannot_be_told_without_a_signal():
    handover, orders = decide(of(stranger(1), Member(2), wanted=1, outgoing=frozenset({1})))
    assert not orders.retire and handover.outgoing == frozenset()


def test_strangers_are_not_followed_for_a_listener_set():
    """They could not be told to leave, so it would go on for ever."""
    crew = of(*(Member(age, frozenset("a"), is_ours=False) for age in (1, 2)))
    assert decide(replace(crew, listeners=frozenset("ab")))[1].as_gunicorn


# Draining


@pytest.mark.contract(3)
def test_one_that_boots_is_needless_when_nobody_waits_for_it():
    assert ages(needless(of(booting(1), booting(2, dismissed=True)), [])) == [1]


@pytest.mark.contract(3)
def test_one_that_boots_is_needed_where_somebody_waits_and_nobody_serves():
    boots = on(2, "b", booted=False)
    assert needless(of(on(1, "a"), boots), "b") == []
    assert ages(needless(of(on(1, "b"), boots), "b")) == [2]
    assert needless(of(on(1, "b", retiring=True), boots), "b") == []
    assert ages(needless(of(on(1, "a"), boots), "a")) == [2]


# Back-off


def test_back_off_doubles_up_to_a_bound():
    clock = 100.0
    back_off = BackOff(lambda: clock)
    assert back_off.over()
    back_off.fail()
    assert back_off.left() == pytest.approx(RETRY_FIRST)
    clock += RETRY_FIRST - 0.01
    assert not back_off.over()
    waits = []
    for _ in range(10):
        clock += RETRY_MOST
        assert back_off.over()
        back_off.fail()
        waits.append(back_off.left())
    assert waits[:2] == pytest.approx([2 * RETRY_FIRST, 4 * RETRY_FIRST])
    assert waits[-1] == pytest.approx(RETRY_MOST)
    back_off.reset()
    assert back_off.over() and not back_off.failures
    back_off.fail()
    assert back_off.left() == pytest.approx(RETRY_FIRST)


def test_those_that_fail_together_are_one_try():
    back_off = BackOff(lambda: 100.0)
    for _ in range(4):
        back_off.fail()
    assert back_off.left() == pytest.approx(RETRY_FIRST) and back_off.failures == 4


def test_nobody_is_spawned_before_back_off_is_over():
    _, orders = decide(of(Member(1, retiring=True), Member(2)), may_spawn=False)
    assert told(orders) == NOTHING


# Walks


class Service:
    """A crew over many passes, each a second long, with what the plan promises held in each.

    :param boot: passes that a worker takes to boot.
    :param leave: passes that a worker takes to finish when it has been told.
    :param has_sets: whether each worker has a listener set of its own (reuse_port).
    :param is_exclusive: whether one fails to boot while there are more than are wanted.
    """

    def __init__(
        self,
        workers: int,
        boot: int,
        leave: int,
        overlap: float,
        has_sets: bool,
        is_exclusive: bool = False,
    ) -> None:
        self.configured = self.wanted = self.most = workers
        self.boot, self.leave, self.overlap = boot, leave, overlap
        self.is_exclusive = is_exclusive
        self.hangs_after = overlap or 10.0
        self.sets: list[int] | None = [] if has_sets else None
        self.now = 1000.0
        self.back_off = BackOff(lambda: self.now)
        self.serving = True
        self.spawns_ours = True
        self.boots_fail = self.boots_hang = self.somebody_died = False
        self.built: dict[int, float] = {}
        self.handover = Handover()
        self.members: dict[int, Member] = {}
        self.due: dict[int, int] = {}  # passes until a worker has booted, or has gone
        self.told: set[int] = set()
        self.last_age = 0
        self.run()
        self.settle()

    def roster(self) -> Roster:
        hangs_since = self.now - self.hangs_after
        members = tuple(
            replace(m, hangs=not m.booted and self.built[m.age] < hangs_since)
            for m in self.members.values()
        )
        return Roster(members, self.wanted, self.handover, frozenset(self.sets or [0]))

    def up(self) -> set[int]:
        """Those that take newcomers."""
        return {m.age for m in self.members.values() if m.booted and m.age not in self.told}

    # What happens

    def hup(self, ours: bool) -> None:
        if not self.serving:
            return
        until = self.now + self.overlap
        self.back_off.reset()
        self.handover, dismissed = begin_overlap(self.roster(), self.last_age, until)
        for member in dismissed:
            assert not member.dismissed and not member.booted
            self.members[member.age] = replace(member, dismissed=True)
            self.due[member.age] = 1
        self.spawns_ours = ours
        self.wanted = self.configured
        for _ in range(self.wanted):
            self.spawn()
        self.run()

    def change(self, number: int) -> None:
        self.wanted = max(self.wanted + number, 1)
        self.most = max(self.wanted, self.most)

    def wish(self, number: int) -> None:
        able = [m for m in self.members.values() if m.is_ours and m.booted and not m.retiring]
        if able:
            member = able[number % len(able)]
            self.members[member.age] = replace(member, wants_to_retire=True)

    def die(self, number: int) -> None:
        if self.members:
            self.remove(sorted(self.members)[number % len(self.members)])
            self.somebody_died = True

    def second(self) -> None:
        """A pass of the main loop, a second after the last."""
        self.now += 1.0
        for age in [age for age, due in self.due.items() if due <= 1]:
            if age in self.told or self.members[age].dismissed:
                self.remove(age)
            elif self.boot_fails():
                self.remove(age)
                self.somebody_died = True
                self.back_off.fail()
            else:
                self.members[age] = replace(self.members[age], booted=True)
                del self.due[age]
        for age in self.due:
            self.due[age] -= 1
        self.run()

    def boot_fails(self) -> bool:
        has_no_room = self.is_exclusive and len(self.members) > self.wanted
        return self.boots_fail or self.boots_hang or has_no_room

    def remove(self, age: int) -> None:
        del self.members[age]
        self.due.pop(age, None)
        self.told.discard(age)

    # What is done about it

    def spawn(self) -> None:
        listeners = frozenset(self.deal())
        self.last_age += 1
        ours = self.spawns_ours
        self.members[self.last_age] = Member(self.last_age, listeners, ours, booted=not ours)
        self.built[self.last_age] = self.now
        if ours:
            self.due[self.last_age] = 30 if self.boots_hang else self.boot  # as --timeout says

    def deal(self) -> list[int]:
        """As in `ListenerSets`: those that no heir has, else a new one, else any."""
        if self.sets is None or not self.spawns_ours:
            return self.sets or [0]
        heirs = self.roster().heirs
        alone = [one for one in self.sets if not any(one in heir.listeners for heir in heirs)]
        if alone:
            return alone[: math.ceil(len(alone) / max(self.wanted - len(heirs), 1))]
        if len(self.sets) < self.wanted:
            self.sets.append(len(self.sets))
        return self.sets[-1:]

    def tell(self, members: Iterable[Member]) -> None:
        for member in members:
            if member.is_ours:
                assert member.age not in self.told, "told twice"
                self.members[member.age] = replace(self.members[member.age], retiring=True)
            if member.age not in self.told:
                self.told.add(member.age)
                self.due[member.age] = self.leave

    def run(self) -> None:
        roster, before, attended = self.roster(), self.up(), self.attended()
        if roster.heirs_are_up:
            self.back_off.reset()
        may_spawn = self.back_off.over()
        self.handover, orders = plan(
            roster,
            now=self.now,
            overlap=self.overlap,
            serving=self.serving,
            may_spawn=may_spawn,
            failures=self.back_off.failures,
            impatient=False,
        )
        assert may_spawn or not orders.spawn
        self.tell(orders.retire)
        spawn = orders.spawn
        if orders.as_gunicorn:
            assert told(orders) == NOTHING
            spawn = self.wanted - len(self.members) if may_spawn else 0
        for _ in range(spawn):
            self.spawn()
            assert len(self.roster().heirs) <= self.wanted, "spawned too many"
        self.tell(orders.terminate)
        if self.overlap > 100:  # so nothing is late
            assert len(self.up()) >= min(self.wanted, len(before)), "too few serve"
        # Else some may have to wait until the next has booted.
        if not self.somebody_died and (self.overlap or self.wanted > 1):
            assert self.attended() >= attended, "a listener set without a worker"

    def attended(self) -> set[object]:
        """The listeners that somebody accepts from, or will when it has booted."""
        return {at for m in self.roster().accepting for at in m.listeners}

    def settle(self) -> None:
        """Nothing happens any more, so the plan comes to its end."""
        self.boots_fail = self.boots_hang = False
        for _ in range(200):
            self.second()
            crew = self.roster()
            if len(crew.members) == len(crew.heirs) == self.wanted and crew.heirs_are_up:
                if not self.told and not any(m.wants_to_retire for m in crew.members):
                    break
        else:
            pytest.fail(f"still under way: {crew}")
        before = self.last_age
        self.second()
        assert (self.last_age, self.told, self.handover.outgoing) == (before, set(), frozenset())
        if self.sets is not None and self.spawns_ours:
            assert self.attended() == set(self.sets)


NUMBER = st.integers(0, 9)
#: What happens to a service, and whether a pass of the main loop comes before the next.
MILD = ("hup", "ttin", "ttou", "wish")
ROUGH = (*MILD, "hup to stock", "die", "term", "fail", "hang", "mend")


def events(*names: str) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    return st.lists(st.tuples(st.sampled_from(names), NUMBER, st.integers(0, 4)), max_size=25)


def services(overlaps: tuple[float, ...] = (1000.0,)) -> st.SearchStrategy[Service]:
    return st.builds(
        Service,
        workers=st.integers(1, 4),
        boot=st.integers(1, 4),
        leave=st.integers(1, 6),
        overlap=st.sampled_from(overlaps),
        has_sets=st.booleans(),
    )


def walk(service: Service, path: list[tuple[str, int, int]]) -> Iterator[str]:
    """Let things happen; after each pass of the main loop, what has happened before it."""
    for name, number, passes in path:
        match name:
            case "hup":
                service.hup(ours=True)
            case "hup to stock":
                service.hup(ours=False)
            case "ttin":
                service.change(1)
            case "ttou":
                service.change(-1)
            case "wish":
                service.wish(number)
            case "die":
                service.die(number)
            case "term":
                service.serving = False
            case "fail":
                service.boots_fail = True
            case "hang":
                service.boots_hang = True
            case "mend":
                service.boots_fail = service.boots_hang = False
        for _ in range(passes):
            service.second()
            yield name


@settings(deadline=None)
@given(services(), events(*MILD))
def test_whatever_is_asked_for_the_crew_serves_and_settles(service, path):
    for _ in walk(service, path):
        pass
    service.settle()


@settings(deadline=None)
@given(services((0.0, 2.0, 1000.0)), events(*ROUGH))
def test_whatever_happens_nobody_is_told_twice_and_the_crew_settles(service, path):
    for _ in walk(service, path):
        pass
    service.settle()


def exclusive() -> st.SearchStrategy[Service]:
    return st.builds(
        Service,
        workers=st.integers(1, 4),
        boot=st.integers(1, 4),
        leave=st.integers(1, 6),
        overlap=st.sampled_from((0.0, 5.0, 10.0)),  # else all hang
        has_sets=st.booleans(),
        is_exclusive=st.just(True),
    )


@settings(deadline=None)
@given(exclusive(), events(*MILD, "die"))
def test_where_none_boots_beside_another_each_is_recycled(service, path):
    for _ in walk(service, path):
        pass
    service.settle()


@settings(deadline=None)
@given(exclusive(), st.lists(NUMBER, min_size=2, max_size=4))
def test_that_none_boots_beside_another_is_learnt_once(service, wishes):
    for number in wishes:
        service.wish(number)
        service.settle()
    failed = service.last_age - service.wanted - len(wishes)
    assert failed == 0 if not service.overlap and not service.sets else failed <= 6
    assert service.overlap == 0.0 or service.handover.leave_first


@settings(deadline=None)
@given(services((2.0, 10.0)), events("wish"))
def test_where_all_successors_hang_recycling_costs_one_worker_at_the_most(service, path):
    service.boots_hang = True
    for _ in walk(service, path):
        assert len(service.up()) >= service.wanted - 1
    service.settle()


@settings(deadline=None)
@given(services(), events("wish"))
def test_of_those_that_ask_one_leaves_at_a_time(service, path):
    for _ in walk(service, path):
        crew = service.roster()
        assert len(crew.members) <= service.wanted + 1
        assert len(crew.members) - len(crew.heirs) <= 1
    service.settle()


@settings(deadline=None)
@given(services(), events("ttin", "ttou", "wish"))
def test_without_hup_there_is_never_more_than_one_too_many(service, path):
    """With listener sets all may have to be followed, by one that takes all their sets."""
    for _ in walk(service, path):
        bound = service.most + (1 if service.sets is None else service.most)
        assert len(service.roster().accepting) <= bound
    service.settle()


@settings(deadline=None)
@given(services(), st.integers(1, 6), st.integers(0, 5))
def test_hups_in_quick_succession_do_not_pile_up(service, hups, passes):
    for _ in range(hups):
        service.hup(ours=True)
        crew = service.roster()
        assert len([m for m in crew.booting if not m.dismissed]) <= service.wanted
        assert len(crew.heirs) == service.wanted
        for _ in range(passes):
            service.second()
    service.settle()
