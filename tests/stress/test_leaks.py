"""Nothing piles up over HUPs, recycled workers, connections and requests that clients abort.

Minutes long, so only run when named (``pytest tests/stress``). What a process has is read in /proc
when nothing is under way: the first look is taken after a tenth of the work, for imports, caches
and the allocator's arenas grow at first.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import CEILING, Client, Storm, assert_clean, request, wait_until

pytestmark = [
    pytest.mark.contract(8),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

CYCLES = 300
RECYCLES = 20_000
CONNECTIONS = 20_000
ABORTED = 50_000
WARM_UP = 10  # the first look comes after one part of so many

#: kB that a worker may have grown by meanwhile (20,000 leaks of 100 bytes are 2,000), and an
#: arbiter: of HUPs there are fewer, and what one keeps would be more, a configuration 100 kB and a
#: worker 2 kB. What comes and goes makes a heap for some 400 HUPs, stock's as well; and CPython
#: keeps up to 4,096 names that gunicorn has composed to look up its handlers.
GROWTH, GROWTH_OF_ARBITER = 1_000, 3_000

#: Clients that abort at the same time; each waits for an answer after so many aborted requests,
#: lest the accept queue overflow.
ABORTING, BETWEEN = 4, 25

#: SO_LINGER on and 0 s: close sends RST.
AT_ONCE = struct.pack("ii", 1, 0)


class Footprint(NamedTuple):
    """What a process has."""

    descriptors: int
    #: Anonymous memory in kB: what the process has allocated or changed. Shared or not: which pages
    #: an arbiter shares with its workers changes with each of them.
    memory: int
    #: Without its threads' stacks, and the guard below each: an application may have more threads.
    mappings: int
    zombies: int  #: children that have ended and wait for it to be told so

    @classmethod
    def of(cls, pid: int) -> Footprint:
        proc = Path(f"/proc/{pid}")
        rollup = (proc / "smaps_rollup").read_text().splitlines()
        (memory,) = (line.split()[1] for line in rollup if line.startswith("Anonymous:"))
        return cls(
            len(list((proc / "fd").iterdir())),
            int(memory),
            len((proc / "maps").read_text().splitlines())
            - 2 * len(list((proc / "task").iterdir())),
            sum(state(int(child)) == "Z" for child in children(proc)),
        )


def children(proc: Path) -> list[str]:
    return [
        pid for one in (proc / "task").iterdir() for pid in (one / "children").read_text().split()
    ]


def state(pid: int) -> str:
    """A letter of proc(5), or nothing: it has been told so meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def wait_until_flat(pid: int, before: Footprint) -> None:
    """Poll for it, for closed connections linger a moment and dead workers wait for a tick."""

    def flat() -> bool:
        found = Footprint.of(pid)
        return found.descriptors <= before.descriptors and found.zombies == 0

    wait_until(flat, f"no more descriptors than in {before}, no zombies", CEILING)


def assert_flat(tally, pid: int, before: Footprint, growth: int = GROWTH) -> None:
    wait_until_flat(pid, before)
    after = Footprint.of(pid)
    tally.remark(f"{before} -> {after}".replace("Footprint", ""))
    assert after.memory - before.memory < growth
    assert after.mappings <= before.mappings + WARM_UP, "the allocator may have an arena more"


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
        before = Footprint.of(server.pid)
        hup(server, cycles, cycles // WARM_UP)
        tally.rounds = cycles
        assert_flat(tally, server.pid, before, GROWTH_OF_ARBITER)
        server.terminate()
        assert_clean(server)


def recycle(server, rounds: int) -> None:
    """Each request retires the worker that has it, which goes when another one is there."""
    arbiter = Path(f"/proc/{server.pid}")
    known: set[str] = set()
    while rounds > 0:
        assert server.fetch().status == 200
        there = set(children(arbiter))
        rounds -= len(known - there)
        known = there


def test_the_arbiter_stays_flat_over_recycles(serve, table, many):
    """The arbiter's part is the same with each engine."""
    recycles = many(RECYCLES, 100)
    with table("leaks: recycles", "gracefulworker.sync") as tally:
        server = serve("gracefulworker.sync", delay=0, options=("--max-requests", "1"))
        recycle(server, recycles // WARM_UP)
        before = Footprint.of(server.pid)
        recycle(server, recycles)
        tally.rounds = recycles
        assert_flat(tally, server.pid, before, GROWTH_OF_ARBITER)
        server.terminate()
        assert_clean(server)


@pytest.mark.contract(11)
def test_the_worker_stays_flat_over_connections(serve, worker, table, many):
    """Half of the clients leave the end to the server, so that each close lingers."""
    part = many(CONNECTIONS, 2_000) // WARM_UP
    with table("leaks: connections", worker) as tally:
        server = serve(worker, delay=0)
        pid = server.worker_pids[0]
        idle = Footprint.of(pid)
        with Storm(server.addresses[0], clients=4) as storm:
            storm.wait_served(part)
        wait_until_flat(pid, idle)
        before = Footprint.of(pid)
        with Storm(server.addresses[0], clients=4) as storm:
            for _ in range(WARM_UP):  # each part within the ceiling of one event
                storm.wait_served(part)
        tally.rounds = 1
        tally.count(end for mine in storm.endings for end in mine)
        assert not tally.losses, storm.census()
        assert_flat(tally, pid, before)
        server.terminate()
        assert_clean(server)


@pytest.mark.contract(11)
def test_the_worker_stays_flat_over_aborted_requests(serve, worker, table, many):
    """Reset before, in the middle of and after the request, while the answer is on its way."""
    part = many(ABORTED, 2_000) // WARM_UP
    with table("leaks: aborted requests", worker) as tally:
        server = serve(worker, delay=0)
        pid = server.worker_pids[0]
        idle = Footprint.of(pid)
        abort(server, part)
        wait_until_flat(pid, idle)
        before = Footprint.of(pid)
        for _ in range(WARM_UP):
            abort(server, part)
        tally.rounds = part * WARM_UP
        assert_flat(tally, pid, before)
        server.terminate()
        assert_clean(server)


def abort(server, number: int) -> None:
    """So many requests, each cut by a reset after another part of it."""
    whole = request("/fast")
    unserved: list[object] = []

    def loop() -> None:
        for turn in range(number // ABORTING):
            with contextlib.closing(Client(server.addresses[0])) as client:
                client.send(whole[: len(whole) * (turn % 4) // 3])
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            if turn % BETWEEN == 0 and (answer := server.fetch()).status != 200:
                unserved.append(answer)

    threads = [threading.Thread(target=loop) for _ in range(ABORTING)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unserved
