"""The harness itself: each ending is told apart from the others, or no other test means much."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import closing

import pytest
from harness import Address, Client, ends, fetch, knock, now

RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfast"


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture
def toy():
    """A server of one connection, which it treats as the test says."""
    threads, listeners = [], []

    def start(treat):
        listener = socket.create_server(("127.0.0.1", 0))

        def run():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                treat(connection)

        threads.append(threading.Thread(target=run, daemon=True))
        listeners.append(listener)
        threads[-1].start()
        return Address(socket.AF_INET, listener.getsockname())

    yield start
    for thread in threads:
        thread.join()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    ("treat", "kind"),
    [
        (lambda c: c.sendall(RESPONSE), "response"),
        (lambda c: c.sendall(RESPONSE[:-1]), "truncated"),
        (lambda c: c.sendall(RESPONSE[:20]), "truncated"),
        (lambda c: None, "eof"),
        (reset, "reset"),
        (lambda c: (c.sendall(RESPONSE[:-1]), reset(c)), "reset"),
    ],
    ids=("response", "short body", "short head", "eof", "reset", "reset in the body"),
)
def test_each_ending_has_its_name(toy, treat, kind):
    assert fetch(toy(treat)).kind == kind


def test_a_reset_after_the_end_is_seen(toy):
    """close() without a half-close: what is sent then is answered with a reset."""
    with closing(Client(toy(lambda c: None))) as client:
        client.send(b"hello")
        assert client.end().kind == "eof"
        client.send(b"hello?")
        assert client.end().kind == "reset"


def test_silence_is_a_timeout(toy):
    done = threading.Event()
    assert fetch(toy(lambda c: done.wait()), timeout=0.1).kind == "timeout"
    done.set()


def test_nobody_listening_is_a_refusal(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, so nobody else has it, but not listening
        assert knock(Address(socket.AF_INET, unused.getsockname())).kind == "refused"
    assert knock(Address(socket.AF_UNIX, str(tmp_path / "none"))).kind == "refused"


def test_chunked_head_and_close_delimited_bodies(toy):
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n"
    end = fetch(toy(lambda c: c.sendall(chunked + b"0\r\n\r\n")))
    assert (end.kind, end.body, end.closes) == ("response", b"abc", False)
    assert fetch(toy(lambda c: c.sendall(chunked))).kind == "truncated"
    end = fetch(toy(lambda c: c.sendall(b"HTTP/1.0 200 OK\r\n\r\nto the end")))
    assert (end.kind, end.body) == ("response", b"to the end")
    end = fetch(toy(lambda c: c.sendall(RESPONSE[:-4])), method="HEAD")
    assert (end.kind, end.body, end.closes) == ("response", b"", True)


GUNICORNS_OWN = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/html\r\n"
    b"Content-Length: 3\r\n"
)


def test_a_bare_line_feed_ends_gunicorns_own_pages_alone(toy):
    """As textwrap.dedent has it since Python 3.14; in an answer of ours it is a fault."""
    for empty in b"\n", b"\r\n":
        end = fetch(toy(lambda c, empty=empty: c.sendall(GUNICORNS_OWN + empty + b"bad")))
        assert (end.kind, end.status, end.body) == ("response", 400, b"bad")
    for head in RESPONSE[:-6], GUNICORNS_OWN.replace(b"text/html", b"text/plain"):
        end = fetch(toy(lambda c, head=head: c.sendall(head + b"\nfast")))
        assert end.kind == "truncated"


def test_ends_tells_who_ended_when(toy):
    done = threading.Event()
    with (
        closing(Client(toy(lambda c: None))) as first,
        closing(Client(toy(lambda c: done.wait()))) as second,
        closing(Client(toy(reset))) as third,
    ):
        for client in first, second, third:
            client.send(b"hello")
        began = now()
        kinds = [end.kind for end in ends([first, second, third], 0.2)]
        done.set()
    assert kinds == ["eof", "timeout", "reset"]
    assert now() - began < 5
