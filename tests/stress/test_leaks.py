"""Nothing piles up: 200 HUP cycles and 20,000 connections, with descriptors and memory flat.

Minutes long, so only run when named (``pytest tests/stress``). Descriptors are counted and memory
is read in /proc, when nothing is under way: the first look is taken after a tenth of the work, for
imports, caches and the allocator's arenas grow at first.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from harness import CEILING, Storm, assert_clean, wait_until

pytestmark = [
    pytest.mark.contract(8),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

CYCLES = 200
CONNECTIONS = 20_000
WARM_UP = 10  # the first look comes after one part of so many

#: kB that a process may have grown by meanwhile. 20,000 leaks of 100 bytes are 2,000.
GROWTH = 1_000


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory(pid: int) -> int:
    """Anonymous memory in kB: what the process has allocated or changed.

    Shared or not: which pages an arbiter shares with its workers changes with each of them.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (line,) = (line for line in rollup.splitlines() if line.startswith("Anonymous:"))
    return int(line.split()[1])


def wait_until_flat(pid: int, expected: int) -> None:
    """Poll until no more descriptors than these are left: closed connections linger a moment."""
    flat = f"no more descriptors than the {expected} before"
    wait_until(lambda: descriptors(pid) <= expected, flat, CEILING)


def growth(before: tuple[int, int], after: tuple[int, int]) -> str:
    return f"descriptors {before[0]} -> {after[0]}, memory {before[1]} -> {after[1]} kB"


def hup(server, rounds: int, done: int) -> None:
    """Each time the successor answers before the next HUP is sent."""
    for number in range(done + 1, done + rounds + 1):
        server.signal(signal.SIGHUP)
        server.wait_log("^Worker exiting", count=number)
    assert server.fetch().status == 200


def test_the_arbiter_stays_flat_over_hup_cycles(serve, worker, table, many):
    cycles = many(CYCLES, 20)
    with table("leaks: HUPs", worker) as tally:
        server = serve(worker, delay=0)
        hup(server, cycles // WARM_UP, 0)
        before = descriptors(server.pid), memory(server.pid)
        hup(server, cycles, cycles // WARM_UP)
        wait_until_flat(server.pid, before[0])
        after = descriptors(server.pid), memory(server.pid)
        tally.rounds = cycles
        tally.remark(f"arbiter: {growth(before, after)}")
        assert after[1] - before[1] < GROWTH
        server.terminate()
        assert_clean(server)


@pytest.mark.contract(11)
def test_the_worker_stays_flat_over_connections(serve, worker, table, many):
    """Half of the clients leave the end to the server, so that each close lingers."""
    part = many(CONNECTIONS, 2_000) // WARM_UP
    with table("leaks: connections", worker) as tally:
        server = serve(worker, delay=0)
        pid = server.worker_pids[0]
        idle = descriptors(pid)
        with Storm(server.addresses[0], clients=4) as storm:
            storm.wait_served(part)
        wait_until_flat(pid, idle)
        before = descriptors(pid), memory(pid)
        with Storm(server.addresses[0], clients=4) as storm:
            for _ in range(WARM_UP):  # each part within the ceiling of one event
                storm.wait_served(part)
        tally.rounds = 1
        tally.count(end for mine in storm.endings for end in mine)
        assert not tally.losses, storm.census()
        wait_until_flat(pid, before[0])
        after = descriptors(pid), memory(pid)
        tally.remark(f"worker: {growth(before, after)}")
        assert after[1] - before[1] < GROWTH
        server.terminate()
        assert_clean(server)
