"""HUP each second for a minute, under load (contract 8)."""

from __future__ import annotations

import signal
import threading

import pytest
from harness import Storm, assert_clean

pytestmark = pytest.mark.contract(8)

CLIENTS = 6


def hup_each_second(server, tally, rounds):
    """What ends a pause early is a storm that is over: then everybody has been turned away."""
    pause = threading.Event()
    with Storm(server.addresses[0], CLIENTS) as storm:
        for _ in range(rounds):
            server.signal(signal.SIGHUP)
            tally.rounds += 1
            pause.wait(1.0)
    tally.count(end for mine in storm.endings for end in mine)
    return storm


def test_hup_each_second(serve, worker, table, many):
    with table("HUP each second", worker) as tally:
        server = serve(worker, workers=2, delay=0)
        storm = hup_each_second(server, tally, many(60, 5))
        slowest = max(end.took for mine in storm.endings for end in mine)
        tally.remark(f"slowest answer {1000 * slowest:.0f} ms")
        assert not tally.losses, storm.census()
        server.terminate()
        assert_clean(server)


@pytest.mark.control(8)
def test_hup_each_second_on_stock(serve, stock, table, many):
    with table("HUP each second", stock) as tally:
        server = serve(stock, workers=2)
        storm = hup_each_second(server, tally, many(20, 5))
        slowest = max(end.took for mine in storm.endings for end in mine)
        tally.remark(f"slowest answer {1000 * slowest:.0f} ms")
