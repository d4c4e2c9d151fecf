"""Applications that take the socket over: a WebSocket is one request, until the deadline."""

from __future__ import annotations

import pytest
from harness import Client, assert_clean, assert_within, request


def open_websocket(server):
    client = server.connect()
    client.send(request("/websocket", headers=("Connection: Upgrade", "Upgrade: websocket")))
    assert client._until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    return client


def echoes(client: Client, data: bytes) -> bool:
    client.send(data)
    return client._take(len(data)) == data


@pytest.mark.contract(5, 6)
def test_a_websocket_goes_on_until_its_client_closes(serve, keeper):
    server = serve(keeper, delay=0.2)
    client = open_websocket(server)
    assert echoes(client, b"before")
    server.terminate()
    assert echoes(client, b"lame duck")
    server.wait_draining()
    assert echoes(client, b"draining")
    client.close()
    assert_clean(server)


@pytest.mark.contract(7)
def test_at_the_deadline_a_websocket_is_cut_and_named(serve, worker):
    server = serve(worker, delay=0.2, env={"GRACEFUL_KILL_AFTER": "2"})
    client = open_websocket(server)
    at = server.terminate()
    end = client.end()
    assert (end.kind, end.body) == ("eof", b"")
    assert_within(2.0, server.wait_gone(), at, "gone")
    server.wait_log(r"^cut at the deadline \(its WebSocket\): GET /websocket after")
    assert server.status == 5
