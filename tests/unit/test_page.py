"""The page and the bells that carry the phase to the workers."""

from __future__ import annotations

import os
import select

import pytest

from gracefulworker.phases import ListenerState, Phase
from gracefulworker.shared.page import SLOTS, Bell, Broadcast, Cell, Page, Slot


def close(life: Broadcast) -> None:
    for fd in (life.lame_duck.fd, life.draining.fd, life.nudge.fd, life.nudge.write_fd):
        os.close(fd)


def is_heard(bell: Bell) -> bool:
    return bool(select.select([bell.fd], [], [], 0)[0])


def test_the_phase_moves_one_way_and_rings():
    life = Broadcast()
    assert life.page.is_serving() and life.page.phase is Phase.SERVING
    life.page.phase = Phase.LAME_DUCK
    life.lame_duck.ring()
    assert is_heard(life.lame_duck) and not is_heard(life.draining)
    life.page.listeners = ListenerState.GATED
    life.page.phase = Phase.DRAINING
    life.draining.ring()
    assert life.page.listeners is ListenerState.GATED
    assert is_heard(life.draining)
    with pytest.raises(AssertionError, match="one way"):
        life.page.phase = Phase.SERVING
    life.lame_duck.ring()  # once more: nothing
    close(life)


def test_a_child_reads_the_page_and_hears_the_end_of_its_parent_s_end():
    life = Broadcast()
    slot = life.page.take_slot()
    pid = os.fork()
    if not pid:
        select.select([life.lame_duck.fd], [], [])
        slot.served = 3 if life.page.phase is Phase.LAME_DUCK else 4
        os._exit(0)
    life.page.phase = Phase.LAME_DUCK
    life.lame_duck.ring()
    os.waitpid(pid, 0)
    assert slot.served == 3
    life.draining.ring()
    close(life)


def test_slots_are_used_again_and_cleared():
    page = Page()
    first, second = page.take_slot(), page.take_slot()
    first.retire, second.cut = 1, 2
    first.count("served", 2)
    gauge = first.gauge()
    gauge(7)
    assert (first.retire, first.served, first.in_flight, second.cut) == (1, 2, 7, 2)
    assert first.has_orders() and not second.has_orders()
    page.free_slot(first)
    again = page.take_slot()
    assert (again.retire, again.served, again.in_flight, second.cut) == (0, 0, 0, 2)


def test_no_two_cells_are_the_same():
    page = Page()
    slot = page.take_slot()
    names = [name for name, value in vars(Slot).items() if isinstance(value, Cell)]
    assert len(names) > 10
    for number, name in enumerate(names, 1):
        setattr(slot, name, number)
    assert [getattr(slot, name) for name in names] == list(range(1, len(names) + 1))


def test_more_workers_than_slots_is_an_error_that_says_so():
    page = Page()
    for _ in range(SLOTS):
        page.take_slot()
    with pytest.raises(RuntimeError, match="lower `workers`"):
        page.take_slot()


def test_a_copy_of_a_slot_is_nobody_else_s():
    """For a process that the application forks, maybe while another thread counts."""
    slot = Page().take_slot()
    slot.booted = 1
    with slot._lock:
        copy = slot.copy()
        copy.count("served", 2)
    copy.gauge()(3)
    assert (copy.booted, copy.served, copy.in_flight) == (1, 2, 3)
    assert (slot.booted, slot.served, slot.in_flight) == (1, 0, 0)
