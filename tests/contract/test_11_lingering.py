"""Closed connections: clients that do not close delay nobody, and unread bytes destroy no response
(contract 11)."""

from __future__ import annotations

import socket
from importlib.metadata import version

import pytest
from harness import assert_clean, assert_within, request

pytestmark = pytest.mark.contract(11)

CLOSE = ("Connection: close",)
NEVER = 8  # clients that read their response and do not close
OTHERS = 10

EARLY = 400_000  # bytes of apps.early's response
LARGE = 1_000_000  # bytes of a body that nobody reads


# -- clients that never close ----------------------------------------------------------------------


def never_close(server, count=NEVER):
    """They have their response and the server's FIN, and keep their side open."""
    clients = [server.connect() for _ in range(count)]
    for client in clients:
        assert client.ask(headers=CLOSE).closes
        assert client.end().kind == "eof"
    return clients


def test_clients_that_never_close_delay_nobody(serve, worker):
    server = serve(worker, delay=0.3)
    before = never_close(server)
    for _ in range(OTHERS):
        end = server.fetch(headers=CLOSE)
        assert end.kind == "response"
        assert_within(0.5, end.at, end.began, "another client's answer")
    over = server.terminate() + 0.3
    after = never_close(server)
    assert server.fetch().kind == "response"
    # Half of what a single one of them would be waited for. The exit's own bound: test_06_exit.py.
    assert_within(1.0, server.wait_gone(), over, "gone after the delay")
    assert_clean(server)
    assert {client.end().kind for client in before + after} == {"eof"}


@pytest.mark.control(11)
@pytest.mark.parametrize("stock", ("sync", "gthread"))
def test_clients_that_never_close_delay_nobody_on_stock(serve, stock):
    """gunicorn 26 on waits for each of them, up to two seconds, before it serves the next one."""
    if int(version("gunicorn").split(".")[0]) < 26:
        pytest.skip("this gunicorn does not wait for the client: it resets what is left unread")
    server = serve(stock)
    client = server.connect()
    assert client.ask(headers=CLOSE).closes
    assert client.end().kind == "eof"
    assert server.fetch(timeout=1.0).kind == "timeout"


# -- bytes that nobody reads -----------------------------------------------------------------------

UNREAD = {
    "length": request("/early/it", "POST", body=LARGE * b"x"),
    "length, close": request("/early/it", "POST", CLOSE, body=LARGE * b"x"),
    "chunked, close": request("/early/it", "POST", (*CLOSE, "Transfer-Encoding: chunked"))
    + b"%x\r\n%s\r\n0\r\n\r\n" % (LARGE, LARGE * b"x"),
    "pipelined": request("/early/it", headers=CLOSE) + LARGE // 35 * request(),
}


def slow_client(server):
    """Its small buffers leave most of what is sent with the server: whole only if it reads on."""
    client = server.connect()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
    return client


def begin(server, data):
    """Send the first byte behind the head, up to where the application stands."""
    client = slow_client(server)
    client.send(data[: data.index(b"\r\n\r\n") + 5])
    return client, server.gate.entered("it")


def finish(client, held, data):
    """Let the application answer, send all the rest, and only then read."""
    held.release()
    client.send(data[data.index(b"\r\n\r\n") + 5 :])
    return client.ending()


@pytest.mark.parametrize("data", UNREAD.values(), ids=UNREAD)
def test_bytes_that_nobody_reads_destroy_no_response(serve, worker, data):
    server = serve(worker, workers=3, delay=0.2)
    turns = [lambda: None, server.terminate, server.wait_draining]
    if "uvicorn" in worker and data is UNREAD["pipelined"]:
        # Its parser passes over what comes behind "Connection: close", which no client may send
        # (RFC 9112 section 9.6). Before SIGTERM that is left at that.
        del turns[0]
    begun = [begin(server, data) for _ in turns]
    for (client, held), turn in zip(begun, turns, strict=True):
        turn()
        end = finish(client, held, data)
        assert (end.status, len(end.body)) == (413, EARLY), str(end)
        if end.closes:
            assert client.end().kind == "eof"
    assert_clean(server)


@pytest.mark.control(11)
@pytest.mark.parametrize("stock", ("sync", "gthread", "gevent", "uvicorn"))
def test_bytes_that_nobody_reads_destroy_no_response_on_stock(serve, stock):
    data = UNREAD["length, close"]
    client, held = begin(serve(stock), data)
    assert finish(client, held, data).kind == "reset"


def refused_head(server):
    """A request line without an end; of httptools, which takes any, without a beginning."""
    client = slow_client(server)
    client.send((b"G(T /" if "uvicorn" in server.worker else b"GET /") + LARGE * b"x")
    return client.ending(), client.end()


def test_a_head_that_is_refused_is_answered_all_the_same(serve, worker):
    end, after = refused_head(serve(worker))
    assert end.status in (400, 414) and end.closes, str(end)  # it depends on gunicorn's version
    assert after.kind == "eof"


@pytest.mark.control(11)
@pytest.mark.parametrize("stock", ("sync", "gthread", "gevent", "uvicorn"))
def test_a_head_that_is_refused_is_answered_all_the_same_on_stock(serve, stock):
    _, after = refused_head(serve(stock))
    assert after.kind == "reset"
