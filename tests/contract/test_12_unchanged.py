"""Before SIGTERM nothing changes: the stock worker's responses, byte for byte (contract 12)."""

from __future__ import annotations

import re

import pytest
from harness import request, stock_of

pytestmark = pytest.mark.contract(12)

CLOSE = ("Connection: close",)
LAST = request(headers=CLOSE)
CHUNKED = ("Transfer-Encoding: chunked",)
BODY = b"0123456789abcde"
CHUNKS = b"5\r\n01234\r\na\r\n56789abcde\r\n0\r\n\r\n"

#: What a client asks on one connection, one after the other; the last one says close.
TALKS = {
    "one": [request(headers=CLOSE)],
    "keep-alive": [request(headers=("Connection: keep-alive",)), request(), LAST],
    "HTTP/1.0": [request(version="1.0")],
    "HTTP/1.0 without length": [request("/no-length", version="1.0")],
    "HTTP/1.0 keep-alive": [
        request(version="1.0", headers=("Connection: keep-alive",)),
        request(version="1.0"),
    ],
    "HEAD": [request(method="HEAD"), request("/no-length", "HEAD", CLOSE)],
    "chunked": [request("/no-length"), request("/no-length", headers=CLOSE)],
    "404": [request("/status/404"), request("/status/404", headers=CLOSE)],
    "204": [request("/status/204"), LAST],
    "304": [request("/status/304"), LAST],
    "500": [request("/broken", headers=CLOSE)],
    "upload": [request("/upload", "POST", body=BODY), LAST],
    "upload in chunks": [request("/upload", "POST", CHUNKED) + CHUNKS, LAST],
    "upload nobody reads": [request("/unread", "POST", body=BODY), LAST],
    "expect": [request("/upload", "POST", ("Expect: 100-continue", *CLOSE), body=BODY)],
    "two at once": [request() + LAST],
    "bad request line": [b"GET\r\n\r\n"],
    "bad header": [b"GET /fast HTTP/1.1\r\nno colon\r\n\r\n"],
}


def conversations(server):
    """All bytes that came back in each talk, and how it ended."""
    found = {}
    for name, talk in TALKS.items():
        client = server.connect()
        for ask in talk:
            client.send(ask)
            answer = client.ending(ask.split()[0].decode())
            if answer.closes or answer.kind != "response":
                break  # sync closes after each
        end = client.end()
        client.close()  # stock waits for it, some with its main thread
        found[name] = end.kind, re.sub(rb"([Dd]ate): [^\r]*", rb"\1: masked", client.raw)
    return found


def test_responses_are_those_of_the_stock_worker(serve, worker):
    ours = conversations(serve(worker))
    stock = conversations(serve(stock_of(worker)))
    assert all(body.startswith(b"HTTP/1.") for _, body in stock.values())
    assert ours == stock


def test_keep_alive_ends_when_the_stock_worker_ends_it(serve, keeper):
    """The keep-alive setting holds as before: an idle connection is closed after it, not sooner."""
    for name in (keeper, stock_of(keeper)):
        client = serve(name, options=("--keep-alive", "1")).keep_alive()
        end = client.end()
        assert end.kind == "eof"
        assert 0.9 < end.took < 2.5  # gthread looks once a second
