"""From SIGTERM on each response says that it is the last of its connection (contract 2).

Whether it does is decided when the headers go out.
"""

from __future__ import annotations

import signal

import pytest
from harness import assert_clean

pytestmark = pytest.mark.contract(2)

LONG = ("--keep-alive", "75")


@pytest.mark.tracker(2313)
@pytest.mark.parametrize("route", ("/gated/{}", "/late-chunk/{}"))
def test_a_request_in_flight_at_sigterm_says_close(serve, worker, route):
    server = serve(worker, delay=0.3)
    client, held = server.hold("it", route)
    server.terminate()
    held.release()
    end = client.ending()
    assert (end.status, end.closes) == (200, True)
    assert client.end().kind == "eof"
    assert_clean(server)


@pytest.mark.control(2)
@pytest.mark.tracker(2313)
@pytest.mark.parametrize("route", ("/gated/{}", "/late-chunk/{}"))
@pytest.mark.parametrize("stock", ("gthread", "gevent", "uvicorn"))
def test_a_request_in_flight_at_sigterm_says_close_on_stock(serve, stock, route):
    """Stock decides before the application runs."""
    server = serve(stock)
    client, held = server.hold("it", route)
    server.signal(signal.SIGTERM)
    server.wait_log("^Handling signal: term")
    held.release()
    end = client.ending()
    assert (end.status, end.closes) == (200, False)


def test_the_application_has_no_other_word_on_its_connection(serve, worker):
    server = serve(worker, delay=0.3)
    client, held = server.hold("it", "/upgrades/{}")
    server.terminate()
    held.release()
    end = client.ending()
    assert (end.body, end.closes) == (b"said", True)
    assert_clean(server)


@pytest.mark.control(2)
def test_the_application_has_no_other_word_on_its_connection_on_stock(serve):
    server = serve("gthread")
    client, held = server.hold("it", "/upgrades/{}")
    server.signal(signal.SIGTERM)
    server.wait_log("^Handling signal: term")
    held.release()
    end = client.ending()
    assert (end.body, end.header("connection")) == (b"said", "upgrade")


def test_headers_that_went_out_before_sigterm_bind_us(serve, keeper):
    """That response promised keep-alive; the next one on its connection says close."""
    server = serve(keeper, delay=0.6)
    client, held = server.hold("it", "/stream/{}")
    first = client._until(b"\r\n\r\n")
    server.terminate()
    held.release()
    client.buffer = first + b"\r\n\r\n" + client.buffer
    end = client.ending()
    assert (end.body, end.closes) == (b"piece 0;piece 1;", False)
    end = client.ask()
    assert (end.kind, end.closes) == ("response", True)
    assert client.end().kind == "eof"
    assert_clean(server)


@pytest.mark.tracker(1236, 2317)
def test_an_idle_connection_is_told_with_its_next_response(serve, keeper):
    server = serve(keeper, delay=5.0, options=LONG)
    clients = [server.keep_alive() for _ in range(3)]
    server.terminate()
    for client in clients:
        end = client.ask()
        assert (end.kind, end.closes) == ("response", True)
        assert client.end().kind == "eof"
    # None of this waited for the end of the delay.
    assert not server.grep("^draining:")
