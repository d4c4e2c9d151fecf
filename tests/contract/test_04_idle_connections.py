"""Idle persistent connections are closed at the end of the delay, and cleanly (contract 4)."""

from __future__ import annotations

import signal

import pytest
from harness import assert_clean, assert_within, cross_the_end, ends, request, summary

pytestmark = pytest.mark.contract(4)

IDLE = 20
LONG = ("--keep-alive", "75")


@pytest.mark.tracker(3227, 2297)
def test_idle_connections_are_closed_at_the_end_of_the_delay(serve, keeper):
    server = serve(keeper, delay=0.6, options=LONG)
    clients = [server.keep_alive() for _ in range(IDLE)]
    over = server.terminate() + 0.6
    endings = ends(clients)
    assert [end.kind for end in endings] == ["eof"] * IDLE
    assert min(end.at for end in endings) >= over - 0.01, "closed before the delay was over"
    assert_within(0.1, max(end.at for end in endings), over, "the last end of file")
    assert_within(server.exit_bound, server.wait_gone(), over, "gone after the delay")
    assert_clean(server)
    assert summary(server)["idle"] == IDLE


@pytest.mark.control(4)
@pytest.mark.tracker(3227, 2297)
@pytest.mark.parametrize("stock", ("gthread", "gevent"))
def test_idle_connections_are_closed_at_the_end_of_the_delay_on_stock(serve, stock):
    """Stock gevent uses all of graceful_timeout, stock gthread all of it or 2 s."""
    server = serve(stock, options=(*LONG, "--graceful-timeout", "1"))
    clients = [server.keep_alive() for _ in range(IDLE)]
    term = server.signal(signal.SIGTERM)
    endings = ends(clients)
    assert max(end.at for end in endings) - term > 0.9
    assert server.wait_gone() - term > 0.9


def test_graceful_idle_keeps_idle_connections_for_a_request_on_its_way(serve, keeper):
    server = serve(keeper, delay=0.3, options=LONG, env={"GRACEFUL_IDLE": "0.6"})
    speaker, *silent = (server.keep_alive() for _ in range(4))
    server.terminate()
    draining = server.wait_draining()
    end = speaker.ask()
    assert end.status == 200 and end.closes
    endings = ends(silent)
    assert [end.kind for end in endings] == ["eof"] * 3
    assert min(end.at for end in endings) - draining.at > 0.5
    assert_clean(server)


@pytest.mark.tracker(1236, 2317)
def test_a_request_that_crosses_the_fin_gets_a_clean_end(serve, keeper):
    """Sent when the FIN arrives: no byte of a response, no reset, and nothing done for nobody."""
    server = serve(keeper, delay=0.4, options=LONG)
    clients = [server.keep_alive() for _ in range(IDLE)]
    server.terminate()
    for client in clients:
        assert client.end().kind == "eof"
        client.send(request())
    server.wait_gone()
    endings = [client.end() for client in clients]
    assert [(end.kind, end.body) for end in endings] == [("eof", b"")] * IDLE
    assert_clean(server)
    assert summary(server)["served"] == 0


@pytest.mark.control(4)
@pytest.mark.tracker(1236, 2317)
@pytest.mark.parametrize("stock", ("gthread", "gevent", "uvicorn"))
def test_a_request_that_crosses_the_fin_gets_a_clean_end_on_stock(serve, stock):
    server = serve(stock, options=(*LONG, "--graceful-timeout", "1"), threads=1)
    assert cross_the_end(server, signal.SIGTERM, server.wait_gone).kind == "reset"


def test_a_busy_neighbour_does_not_keep_idle_ones_open(serve, keeper):
    server = serve(keeper, delay=0.4, options=LONG)
    idle = [server.keep_alive() for _ in range(3)]
    client, held = server.hold("it")
    over = server.terminate() + 0.4
    endings = ends(idle)
    assert [end.kind for end in endings] == ["eof"] * 3
    assert_within(0.1, max(end.at for end in endings), over, "the last end of file")
    held.release()
    assert client.ending().closes
    assert_clean(server)
