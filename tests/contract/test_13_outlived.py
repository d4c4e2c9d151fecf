"""Listeners that outlive the server, of a USR2 upgrade and of systemd: left alone (contract 13)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
from harness import Address, Server, Storm, assert_clean

pytestmark = pytest.mark.contract(13)

#: What systemd does: the listener becomes descriptor 3, and LISTEN_PID names the process.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


class Activated(Server):
    """A server that gets its listener by systemd's protocol; the test keeps it, as systemd does."""

    def _launch(self) -> None:
        self.held = socket.socket()
        self._stack.callback(self.held.close)
        self.held.bind(("127.0.0.1", 0))
        self.held.listen(64)
        super()._launch()
        self.addresses = [Address(socket.AF_INET, self.held.getsockname())]

    def _command(self, command: list[str]) -> tuple[list[str], list[int]]:
        fd = self.held.fileno()
        return [sys.executable, "-c", ACTIVATE, str(fd), *command], [fd]


class Installed(Server):
    """A server that was started by the `gunicorn` script, which USR2 can start again.

    ``python -m gunicorn`` is started again as ``gunicorn/__main__.py``, and finds gunicorn.http in
    place of the standard library's http.
    """

    def _command(self, command: list[str]) -> tuple[list[str], list[int]]:
        return [str(Path(sys.executable).with_name("gunicorn")), *command[3:]], []


@pytest.fixture
def started(request):
    """Starts a server of a class of this file."""
    with contextlib.ExitStack() as stack:

        def start(kind, worker, **options):
            server = kind(worker, delay=0.3, **options)
            request.node.servers = [server]
            stack.callback(server.close)
            return server.start()

        yield start


def test_systemd_s_socket_is_neither_gated_nor_emptied(started, worker):
    server = started(Activated, worker, listen=())
    client, held = server.hold("it")
    server.terminate()
    server.wait_draining()
    held.release()
    assert client.ending().status == 200
    assert_clean(server)
    late = server.connect()  # let in by the kernel, for whoever systemd starts next
    late.send(b"GET /fast HTTP/1.1\r\nHost: test\r\n\r\n")
    server.held.settimeout(5)
    successor, _ = server.held.accept()
    with successor:
        assert successor.recv(100).startswith(b"GET /fast"), "the queue was left to the next"


def upgrade(server):
    """USR2, and SIGTERM to the old master once the new one serves; the new master's pid."""
    server.signal(signal.SIGUSR2)
    server.wait_log("^app imported", count=2)
    new = server.wait_log("^Listening at", count=2).message
    return int(re.search(r"\((\d+)\)$", new).group(1))


def test_a_usr2_upgrade_loses_nobody(started, worker):
    server = started(Installed, worker, listen=("path",))
    path = server.addresses[0].path
    with Storm(server.addresses[0], clients=4) as storm:
        storm.wait_served(20)
        new = upgrade(server)
        server.terminate()
        server.wait_log("^stopped: clean")
        assert path.exists()
        storm.wait_served(50)
    assert not storm.losses and "refused" not in storm.census(), storm.census()
    assert server.status == 0
    os.kill(new, signal.SIGTERM)
    server.wait_gone()
    assert len(server.grep("^stopped: clean")) == 2
    assert not path.exists(), "the new master has become the owner"


def test_the_new_master_of_an_upgrade_can_be_backed_out(started, worker):
    """SIGTERM to the new one, while the old one goes on."""
    server = started(Installed, worker, listen=("path",))
    with Storm(server.addresses[0], clients=4) as storm:
        new = upgrade(server)
        os.kill(new, signal.SIGTERM)
        server.wait_log("^stopped: clean")
        storm.wait_served(50)
    assert not storm.losses and "refused" not in storm.census(), storm.census()
    server.terminate()
    assert_clean(server)
