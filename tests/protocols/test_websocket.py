"""Applications that take the socket over: a WebSocket is told at the end of the delay, and ends."""

from __future__ import annotations

import json
import signal

import pytest
from harness import Client, assert_clean, assert_within, request, summary

pytestmark = pytest.mark.wsgi

UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")
#: RFC 6455 section 4.1, with its key.
WEBSOCKET = (*UPGRADE, "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")

#: RFC 6455 section 5.5.1: a close frame with the status 1001.
GOING_AWAY = b"\x88\x02\x03\xe9"

#: The application reads the socket itself, or a thread does and closes it (simple-websocket).
ROUTES = pytest.mark.parametrize("path", ("/websocket", "/websocket-thread"))


def open_websocket(server, path="/websocket", headers=WEBSOCKET, client=None):
    client = client or server.connect()
    client.send(request(path, headers=headers))
    assert client._until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    return client


def echoes(client: Client, data: bytes) -> bool:
    client.send(data)
    return client._take(len(data)) == data


def is_told(client: Client) -> bool:
    return client._take(len(GOING_AWAY)) == GOING_AWAY


def ends_well(client: Client) -> bool:
    told, end = is_told(client), client.end()
    return told and (end.kind, end.body) == ("eof", b"")


# -- told at the end of the delay ------------------------------------------------------------------


@pytest.mark.contract(5, 6)
@ROUTES
def test_it_goes_on_to_the_end_of_the_delay_and_is_told_then(serve, worker, path, tmp_path):
    report = tmp_path / "report.json"
    server = serve(worker, delay=0.3, env={"GRACEFUL_REPORT": str(report)})
    client = open_websocket(server, path)
    assert echoes(client, b"before")
    server.terminate()
    assert echoes(client, b"lame duck")
    draining = server.wait_draining()
    assert ends_well(client)
    assert_within(server.exit_bound, server.wait_gone(), draining.at, "gone")
    assert_clean(server)
    assert summary(server)["websockets"] == json.loads(report.read_text())["websockets_told"] == 1


@pytest.mark.control(6)
@pytest.mark.parametrize("stock", ("sync", "gthread", "gevent"))
def test_it_holds_stock_up_to_the_deadline(serve, stock):
    server = serve(stock, options=("--graceful-timeout", "1"))
    client = open_websocket(server)
    at = server.signal(signal.SIGTERM)
    assert echoes(client, b"draining")
    assert server.wait_gone() - at > 0.9


@pytest.mark.contract(6)
@ROUTES
def test_many_are_told_at_once(serve, keeper, path):
    server = serve(keeper, delay=0.2, threads=20)
    clients = [open_websocket(server, path) for _ in range(20)]
    server.terminate()
    assert [is_told(client) for client in clients] == [True] * 20  # each of them
    assert {client.end().kind for client in clients} == {"eof"}
    assert_clean(server)
    assert summary(server)["websockets"] == 20


@pytest.mark.contract(5)
@ROUTES
def test_what_crosses_its_end_meets_no_reset(serve, keeper, path):
    """The worker is busy meanwhile: when it is not, it is gone 0.1 s after the close frame."""
    server = serve(keeper, delay=0.2)
    other, held = server.hold("other")
    client = open_websocket(server, path)
    server.terminate()
    assert is_told(client)
    client.send(b"crossing")
    end = client.end()
    assert (end.kind, end.body) == ("eof", b"")
    held.release()
    assert other.ending().body == b"gated"
    other.close()
    assert_clean(server)


@pytest.mark.contract(6)
def test_those_that_wait_for_a_thread_are_told_in_their_turn(serve):
    server = serve("gracefulworker.gthread", delay=0.2, threads=2)
    clients = [server.connect() for _ in range(6)]
    for client in clients:
        client.send(request("/websocket", headers=WEBSOCKET))
    draining = server.terminate() + 0.2
    for client in clients:
        assert client._until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert is_told(client)
    assert_within(1.0, server.wait_gone(), draining, "gone")
    assert_clean(server)
    assert summary(server)["websockets"] == 6


@pytest.mark.contract(5)
def test_what_came_before_is_read_first(serve, worker):
    server = serve(worker, delay=0.2)
    client = open_websocket(server, "/websocket/it")
    held = server.gate.entered("it")
    client.send(b"sent before")
    server.terminate()
    server.wait_draining()
    held.release()
    assert client._take(11) == b"sent before"
    assert ends_well(client)
    assert_clean(server)


@pytest.mark.contract(8)
def test_a_worker_that_retires_tells_them_too(serve, keeper):
    server = serve(keeper, delay=0, options=("--graceful-timeout", "10"))
    client = open_websocket(server)
    at = server.signal(signal.SIGHUP)
    assert ends_well(client)
    line = server.wait_log("^Worker exiting")
    assert_within(3.0, line.at, at, "exiting")  # its successor boots first
    server.terminate()
    assert_clean(server)
    assert summary(server)["websockets"] is None  # the service's end begins with SIGTERM


# -- what is none, and what does not end -----------------------------------------------------------


@pytest.mark.contract(5)
def test_an_upload_with_a_websocket_s_head_is_finished(serve, worker):
    """A proxy may be set up to send these fields always."""
    server = serve(worker, delay=0.2)
    client = server.connect()
    client.send(request("/upload", "POST", (*WEBSOCKET, "Content-Length: 10")) + b"12345")
    server.terminate()
    server.wait_draining()
    client.send(b"67890")
    assert client.ending().body == b"1234567890"
    client.close()
    assert_clean(server)
    assert summary(server)["websockets"] is None


@pytest.mark.contract(5)
def test_an_ordinary_answer_to_a_websocket_s_request_is_whole(serve, worker):
    server = serve(worker, delay=0.2)
    client = server.connect()
    client.send(request("/stream/it/3", headers=WEBSOCKET))
    held = server.gate.entered("it")
    server.terminate()
    server.wait_draining()
    held.release()
    server.gate.entered("it").release()
    assert client.ending().body == b"piece 0;piece 1;piece 2;"
    assert client.end().kind == "eof"
    assert_clean(server)


@pytest.mark.contract(7)
def test_one_that_does_not_end_is_cut_and_named(serve, worker):
    server = serve(worker, delay=0.2, env={"GRACEFUL_KILL_AFTER": "2"})
    open_websocket(server, "/websocket/it")
    server.gate.entered("it")
    at = server.terminate()
    assert_within(2.0, server.wait_gone(), at, "gone")
    server.wait_log(
        r"^cut at the deadline \(its WebSocket, which was told to end\): GET /websocket/it after"
    )
    assert server.status == 5
    assert summary(server)["websockets"] == summary(server)["cut"] == 1


@pytest.mark.contract(7)
def test_without_a_key_it_is_none_and_not_told(serve, worker):
    server = serve(worker, delay=0.2, env={"GRACEFUL_KILL_AFTER": "2"})
    client = open_websocket(server, headers=UPGRADE)
    at = server.terminate()
    end = client.end()
    assert (end.kind, end.body) == ("eof", b"")
    assert_within(2.0, server.wait_gone(), at, "gone")
    server.wait_log(r"^cut at the deadline \(its WebSocket\): GET /websocket after")
    assert server.status == 5


# -- closed by the client --------------------------------------------------------------------------


@pytest.mark.contract(6)
def test_a_websocket_may_end_by_its_client_while_draining(serve, worker):
    server = serve(worker, delay=0.2)
    client = open_websocket(server, "/websocket/it")
    held = server.gate.entered("it")
    server.terminate()
    server.wait_draining()
    client.close()
    held.release()
    assert_clean(server)


@pytest.mark.contract(6)
def test_the_application_s_thread_may_close_the_socket_at_any_moment(serve, worker):
    """As simple-websocket's does, while the worker closes it, too."""
    server = serve(worker, delay=0)
    for _ in range(150):
        client = open_websocket(server, "/websocket-thread")
        client.close()
    server.terminate()
    assert_clean(server)
