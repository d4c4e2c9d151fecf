"""DRAINING: the queue is served, newcomers are refused, what is in flight is finished (contract 3).

The same for each kind of listener is in test_03_listeners.py.
"""

from __future__ import annotations

import signal

import gunicorn
import pytest
from harness import FULL, assert_clean, assert_within, ends, fill, line_up, request, summary

pytestmark = pytest.mark.contract(3)

QUEUED = 5


@pytest.mark.tracker(3397, 2529, 2593, 922, 901)
def test_the_queue_is_served_and_newcomers_are_refused(serve, worker):
    server = serve(worker, delay=0.3, **FULL)
    busy = fill(server)
    server.terminate()
    queued = line_up(server, QUEUED)
    draining = server.wait_draining()
    for _ in range(3):  # while every worker is busy
        newcomer = server.knock()
        assert newcomer.kind == "refused"
        assert_within(0.1, newcomer.at, newcomer.began, "a refusal")
    for client, held in busy:
        held.release()
        end = client.ending()
        assert (end.kind, end.body, end.closes) == ("response", b"gated", True)
    endings = [client.ending() for client in queued]
    assert [(end.kind, end.body, end.closes) for end in endings] == [
        ("response", b"fast", True)
    ] * QUEUED
    assert all(end.at > draining.at for end in endings)
    assert_clean(server)
    assert summary(server)["queue"] == QUEUED


@pytest.mark.control(3)
@pytest.mark.tracker(3397, 2529, 2593, 922, 901)
@pytest.mark.parametrize("stock", ("sync", "gthread", "gevent"))
def test_the_queue_is_served_and_newcomers_are_refused_on_stock(serve, stock):
    if stock == "gthread" and gunicorn.version_info < (24,):
        pytest.skip("the gthread of gunicorn 23 accepts in another way")
    server = serve(stock, **FULL)
    busy = fill(server)
    queued = line_up(server, QUEUED)
    server.killpg(signal.SIGTERM)  # the group, so that the workers have it before the next line
    # Nobody will ever accept it, and yet it is let in (gunicorn's issue 922).
    assert server.knock().kind == "connected"
    if stock == "gevent":  # closes its listener within a second, and the queue with it
        endings = ends(queued)
    for client, held in busy:
        held.release()
        assert client.ending().kind == "response"
        client.close()
    if stock != "gevent":  # they stop once they are free
        endings = ends(queued)
    assert [end.kind for end in endings] == ["reset"] * QUEUED


def test_who_waits_in_the_queue_may_speak_after_the_delay(serve, worker):
    """The kernel completed the connection; that it has sent nothing yet changes nothing."""
    server = serve(worker, delay=0.3, **FULL)
    busy = fill(server)
    server.terminate()
    queued = [server.connect() for _ in range(3)]
    server.wait_draining()
    for _, held in busy:
        held.release()
    endings = [client.ask() for client in queued]
    assert [(end.kind, end.closes) for end in endings] == [("response", True)] * 3
    assert_clean(server)


@pytest.mark.contract(6)
def test_a_two_second_request_is_finished(serve, worker):
    """In flight at SIGTERM and at the end of the delay: answered, then gone."""
    server = serve(worker, delay=0.5)
    client = server.connect()
    client.send(request("/sleep/2"))
    server.terminate()
    server.wait_draining()
    assert server.knock().kind == "refused"
    end = client.ending()
    assert (end.body, end.closes) == (b"slept", True)
    assert_within(server.exit_bound, server.wait_gone(), end.at, "gone after the last answer")
    assert_clean(server)


@pytest.mark.tracker(2409)
def test_the_order_is_served_then_refused(serve, worker):
    """Seen by one client: all answered, then all refused, nothing in between or after."""
    server = serve(worker, delay=0.4)
    server.terminate()
    kinds: list[str] = []
    while kinds.count("refused") < 20:
        kinds.append(server.fetch().kind)
    first = kinds.index("refused")
    assert first and set(kinds[:first]) == {"response"} and set(kinds[first:]) == {"refused"}
