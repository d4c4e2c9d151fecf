"""Twelve clients that never pause, ten shutdowns: nobody loses anything (contract 3)."""

from __future__ import annotations

import signal

import pytest
from harness import Storm, assert_clean

pytestmark = pytest.mark.contract(3)

CLIENTS = 12
ROUNDS = 10


@pytest.mark.contract(1)
def test_nothing_is_lost_in_ten_shutdowns(serve, worker):
    for _ in range(ROUNDS):
        server = serve(worker, workers=2, delay=0.5)
        with Storm(server.addresses[0], CLIENTS) as storm:
            storm.wait_served(5 * CLIENTS)
            term = server.terminate()
            storm.wait_over()
        served = [end for mine in storm.endings for end in mine if end.kind == "response"]
        assert not storm.losses, storm.census()
        assert not storm.out_of_order
        assert all(mine[-1].kind == "refused" for mine in storm.endings)
        assert max(end.at for end in served) - term > 0.4
        assert_clean(server)


@pytest.mark.control(3)
@pytest.mark.tracker(2409)
@pytest.mark.parametrize("stock", ("sync", "uvicorn"))
def test_nothing_is_lost_in_ten_shutdowns_on_stock(serve, stock):
    kinds = set()
    for _ in range(ROUNDS):
        server = serve(stock, workers=2)
        with Storm(server.addresses[0], CLIENTS) as storm:
            storm.wait_served(5 * CLIENTS)
            server.signal(signal.SIGTERM)
            storm.wait_over()
        kinds |= {end.kind for end in storm.losses}
        if "reset" in kinds:
            break
    assert "reset" in kinds
