"""Closed connections that are handed to the lingerer."""

from __future__ import annotations

import os
import socket

import pytest

from gracefulworker.shared import sockets
from gracefulworker.workers.lingering import Lingerer, still_idle


class TakenBetween(Lingerer):
    """The application's thread closes the socket just after our FIN."""

    def half_close(self, connection):
        super().half_close(connection)
        connection.close()


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_socket_that_the_application_has_closed(pair):
    ours, _ = pair
    ours.close()
    lingerer = Lingerer()
    lingerer.add(ours)
    lingerer.keep(ours)
    assert not lingerer


def test_a_socket_that_the_application_closes_meanwhile(pair):
    ours, theirs = pair
    lingerer = TakenBetween()
    lingerer.add(ours)
    assert not lingerer and theirs.recv(1) == b""
    lingerer.sweep()


def test_a_closed_socket_has_nothing_to_tell(pair):
    ours, theirs = pair
    theirs.send(b".")
    assert sockets.readable([-1, ours.fileno()]) == {ours.fileno()}
    theirs.close()
    assert list(still_idle([theirs, ours])) == [theirs]


def test_one_that_cannot_see_its_client_s_end_is_kept_and_read_before_it_is_closed():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            ours, _ = listener.accept()
            ours.shutdown(socket.SHUT_RD)
            fd = ours.fileno()
            lingerer = Lingerer()
            lingerer.keep(ours)
            lingerer.sweep()
            assert len(lingerer) == 1  # it reads an end of file, which is not the client's
            client.sendall(b"crossing")
            assert os.fstat(fd)
            lingerer.let_go()
            assert not lingerer and client.recv(1) == b""
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0  # no reset
