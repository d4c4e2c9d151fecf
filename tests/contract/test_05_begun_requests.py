"""Requests of every shape that begin or are under way when the phases change (contract 5).

Half requests, uploads, silence: test_05_half_requests.py. A sync worker closes after each response,
so of several requests on one connection it answers the first.
"""

from __future__ import annotations

import socket
import time

import pytest
from harness import CEILING, FULL, assert_clean, assert_within, ends, fill, now, request, summary

pytestmark = pytest.mark.contract(5)

LONG = ("--keep-alive", "75")

#: 300 kB, more than a server reads at once: what is behind it stays in the kernel.
PIPELINED = 8000 * request()


def assert_last(client, body):
    """A whole response with `Connection: close`, a clean end of file, and not a byte between."""
    end = client.ending()
    assert (end.kind, end.body, end.closes) == ("response", body, True), str(end)
    after = client.end()
    assert (after.kind, after.body) == ("eof", b""), str(after)


# -- Expect: 100-continue --------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ("serving", "lame duck"))
def test_expect_100_continue(serve, worker, asked):
    """The body that was asked for comes in a later phase."""
    server = serve(worker, delay=0.2)
    client = server.connect()
    if asked == "lame duck":
        server.terminate()
    client.send(request("/upload", "POST", ("Expect: 100-continue", "Content-Length: 10")))
    assert client._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
    if asked == "serving":
        server.terminate()
    client.send(b"01234")
    server.wait_draining()
    client.send(b"56789")
    assert_last(client, b"0123456789")
    assert_clean(server)


# -- pipelined requests ----------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ("lame duck", "draining"))
@pytest.mark.parametrize("more", (2 * request(), PIPELINED), ids=("few", "many"))
def test_what_is_pipelined_behind_the_last_response_destroys_nothing(serve, worker, phase, more):
    """The first response says close; the requests behind it were sent in the same segment."""
    server = serve(worker, delay=5 if phase == "lame duck" else 0.2)
    client = server.connect()
    client.send(request("/gated/first") + more)
    held = server.gate.entered("first")
    server.terminate()
    if phase == "draining":
        server.wait_draining()
    held.release()
    assert_last(client, b"gated")


@pytest.mark.parametrize("phase", ("lame duck", "draining"))
@pytest.mark.parametrize("more", (b"", PIPELINED), ids=("last", "not the last"))
def test_a_pipelined_request_is_answered_when_keep_alive_was_promised(serve, keeper, phase, more):
    """The headers of the first response went out before SIGTERM: the second one says close."""
    server = serve(keeper, delay=5 if phase == "lame duck" else 0.2, options=LONG)
    client = server.connect()
    client.send(request("/stream/first") + request() + more)
    head = client._until(b"\r\n\r\n") + b"\r\n\r\n"
    held = server.gate.entered("first")
    server.terminate()
    if phase == "draining":
        server.wait_draining()
    held.release()
    client.buffer = head + client.buffer
    end = client.ending()
    assert (end.kind, end.body, end.closes) == ("response", b"piece 0;piece 1;", False)
    assert_last(client, b"fast")


@pytest.mark.parametrize("keeping", ("gthread", "gevent"))
def test_a_pipelined_request_that_was_read_before_sigterm_is_answered(serve, keeping):
    """Before SIGTERM it may be left lying as it is on stock (gthread before gunicorn 27)."""
    answered = []
    for name in (keeping, f"gracefulworker.{keeping}"):
        server = serve(name, delay=5, options=LONG)
        client = server.connect()
        client.send(2 * request())
        assert client.ending().body == b"fast"
        second = client.ending(timeout=0.5)
        answered.append(second.kind)
    assert answered[0] == answered[1]
    if second.kind == "timeout":
        client.socket.settimeout(CEILING)
        began = server.terminate()
        end = client.ending()
        assert (end.body, end.closes) == (b"fast", True)
        assert_within(0.5, end.at, began, "an answer")
        assert_clean(server)


# -- uploads in chunks -----------------------------------------------------------------------------

CHUNKED = b"A;name=value\r\n0123456789\r\n5\r\nabcde\r\n0\r\nX-Sum: 15\r\n\r\n"
CUTS = {
    "size": 1,
    "extension": 5,
    "data": CHUNKED.index(b"567"),
    "end of chunk": CHUNKED.index(b"\n5\r"),
    "last chunk": CHUNKED.index(b"0\r\nX") + 2,
    "trailer": CHUNKED.index(b"Sum"),
}


def test_a_chunked_upload_may_be_cut_anywhere(serve, worker):
    """One part before SIGTERM, the rest after the delay."""
    server = serve(worker, workers=len(CUTS) if "sync" in worker else 1, threads=8, delay=0.2)
    clients = [server.connect() for _ in CUTS]
    for client, cut in zip(clients, CUTS.values(), strict=True):
        client.send(request("/upload", "POST", ("Transfer-Encoding: chunked",)) + CHUNKED[:cut])
    server.terminate()
    server.wait_draining()
    for client, cut in zip(clients, CUTS.values(), strict=True):
        client.send(CHUNKED[cut:])
    for client in clients:
        assert_last(client, b"0123456789abcde")
    assert_clean(server)


# -- the last millisecond --------------------------------------------------------------------------


@pytest.mark.contract(4)
@pytest.mark.parametrize("cut", (None, 5), ids=("whole", "in two"))
def test_a_request_in_the_last_millisecond_of_an_idle_connection(serve, keeper, cut):
    """Sent one by one across the end of the delay, up to the moment at which the others are closed:
    answered, or a clean end of file without a byte; never a reset."""
    delay = 0.3
    server = serve(keeper, delay=delay, threads=8, options=LONG)
    witness, *clients = (server.keep_alive() for _ in range(50))
    over = server.terminate() + delay
    time.sleep(max(0, over - 0.01 - now()))  # the moment is what is tested
    for client in clients:
        client.send(request()[:cut])
        ends([witness], 0.0003)
    assert witness.end().kind == "eof"
    if cut:
        for client in clients:
            client.send(request()[cut:])
    for client in clients:
        end = client.ending()
        if end.kind == "response":
            assert (end.body, end.closes) == (b"fast", True)
        else:
            assert (end.kind, client.raw.count(b"HTTP/1.1")) == ("eof", 1), str(end)
        assert client.end().kind == "eof"
    assert_clean(server)


# -- HTTP/1.0 and half-closed clients --------------------------------------------------------------

GONE = "uvicorn takes a client that half-closes for one that has gone, before SIGTERM, too"
OLD = {"plain": (), "keep-alive": ("Connection: keep-alive",)}


@pytest.mark.parametrize("headers", OLD.values(), ids=OLD)
def test_http_1_0(serve, worker, headers):
    """In flight at SIGTERM, at the end of the delay, and new in between."""
    server = serve(worker, workers=3, delay=0.3)
    early, late = server.connect(), server.connect()
    early.send(request("/gated/early", version="1.0", headers=headers))
    late.send(request("/gated/late", version="1.0", headers=headers))
    early_held, late_held = server.gate.entered("early"), server.gate.entered("late")
    server.terminate()
    between = server.connect()
    between.send(request("/no-length", version="1.0", headers=headers))
    assert_last(between, b"onetwo")
    early_held.release()
    assert_last(early, b"gated")
    server.wait_draining()
    late_held.release()
    assert_last(late, b"gated")
    assert_clean(server)


@pytest.mark.contract(4)
def test_an_idle_http_1_0_connection_is_closed_cleanly(serve, keeper):
    if "uvicorn" in keeper:
        pytest.skip("uvicorn keeps none alive")
    server = serve(keeper, delay=0.2, options=LONG)
    client = server.connect()
    end = client.ask(version="1.0", headers=OLD["keep-alive"])
    assert (end.body, end.header("connection")) == (b"fast", "keep-alive")
    server.terminate()
    after = client.end()
    assert (after.kind, after.body) == ("eof", b"")
    assert_clean(server)


def half_closed(server, path="/fast"):
    client = server.connect()
    client.send(request(path))
    client.socket.shutdown(socket.SHUT_WR)
    return client


def test_a_client_that_half_closes_after_its_request(serve, worker):
    """In flight at SIGTERM, at the end of the delay, and new in between."""
    if "uvicorn" in worker:
        pytest.skip(GONE)
    server = serve(worker, workers=3, delay=0.3)
    early, late = half_closed(server, "/gated/early"), half_closed(server, "/stream/late")
    early_held, late_held = server.gate.entered("early"), server.gate.entered("late")
    server.terminate()
    assert_last(half_closed(server), b"fast")
    early_held.release()
    assert_last(early, b"gated")
    server.wait_draining()
    late_held.release()
    end = late.ending()
    assert (end.kind, end.body) == ("response", b"piece 0;piece 1;")
    assert late.end().kind == "eof"
    assert_clean(server)


def test_half_closed_clients_in_the_queue(serve, worker):
    if "uvicorn" in worker:
        pytest.skip(GONE)
    server = serve(worker, delay=0.2, **FULL)
    busy = fill(server)
    server.terminate()
    queued = [half_closed(server) for _ in range(3)]
    server.wait_draining()
    for _, held in busy:
        held.release()
    for client in queued:
        assert_last(client, b"fast")
    assert_clean(server)


def test_a_process_that_the_application_has_forked_leaves_our_connections_alone(serve):
    """gevent forks with all of its greenlets, those that end connections among them."""
    server = serve("gracefulworker.gevent", delay=0.3, options=("--keep-alive", "75"))
    idle, active = server.keep_alive(), server.keep_alive()
    assert server.fetch("/leaves-child").body == b"left"
    active.send(request("/gated/it"))
    held = server.gate.entered("it")
    server.terminate()
    assert idle.end().kind == "eof"
    held.release()
    end = active.ending()
    assert (end.status, end.closes) == (200, True)
    assert_clean(server)
    assert summary(server)["idle"] == 1
