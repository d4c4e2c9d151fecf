"""The path of a unix socket lives as long as it is ours and somebody may connect (contract 13)."""

from __future__ import annotations

import signal
import socket

import pytest
from harness import assert_clean

pytestmark = pytest.mark.contract(13)


@pytest.mark.tracker(1475, 1109, 1898)
@pytest.mark.parametrize("kind", ("path", "unix"))
def test_the_path_of_a_unix_socket_lives_as_long_as_the_delay(serve, worker, kind):
    """Bound by gunicorn itself, or handed down."""
    server = serve(worker, listen=(kind,), delay=0.4)
    path = server.addresses[0].path
    term = server.terminate()
    while (end := server.fetch()).kind == "response":
        continue
    assert end.kind == "refused"  # by the gate, or since the path has gone
    assert end.began - term >= 0.39
    assert_clean(server)
    assert not path.exists()


@pytest.mark.control(13)
@pytest.mark.tracker(1475, 1109, 1898)
def test_the_path_of_a_unix_socket_lives_as_long_as_the_delay_on_stock(serve):
    """Stock removes it first, before it tells its workers to finish."""
    server = serve("sync", listen=("path",), delay=5)
    client, held = server.hold("it")
    server.signal(signal.SIGTERM)
    while server.addresses[0].path.exists():  # the ceiling is that of the response below
        assert server.gone_at is None
    held.release()
    assert client.ending().kind == "response"


@pytest.mark.tracker(1475, 1109, 1898)
def test_the_path_of_the_next_instance_is_left_alone(serve, worker):
    """It has bound the same path meanwhile: that is no longer ours to remove."""
    server = serve(worker, listen=("path",), delay=0.4)
    path = server.addresses[0].path
    server.terminate()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        assert_clean(server)
        assert path.exists()


#: Another path after the first HUP, and the first one stays.
RELOADED = """
import os, pathlib
_here = pathlib.Path({directory!r})
bind = ["unix:" + str(_here / "stays.sock"), "unix:" + str(_here / "goes.sock")]
if (_here / "reload").exists():
    bind[1] = "unix:" + str(_here / "comes.sock")
"""


def reload_binds(serve, worker, tmp_path):
    """A service whose HUP has changed one of its binds; the paths that there are now."""
    server = serve(
        worker, delay=0, listen=(), config=RELOADED.format(directory=str(tmp_path)), ready=False
    )
    server.wait_log("^app imported")
    (tmp_path / "reload").touch()
    server.signal(signal.SIGHUP)
    server.wait_log("^app imported", count=2)
    server.wait_log("^Worker exiting")
    return server, sorted(path.name for path in tmp_path.glob("*.sock"))


def test_paths_after_a_hup_that_changed_a_bind(serve, worker, tmp_path):
    """The one that has gone is removed at once, and those that have come or stayed at the end."""
    server, there = reload_binds(serve, worker, tmp_path)
    assert there == ["comes.sock", "stays.sock"]
    server.terminate()
    assert_clean(server)
    assert not list(tmp_path.glob("*.sock"))


@pytest.mark.control(13)
def test_paths_after_a_hup_that_changed_a_bind_on_stock(serve, tmp_path):
    """Stock leaves the one that has gone for ever."""
    server, there = reload_binds(serve, "sync", tmp_path)
    assert there == ["comes.sock", "goes.sock", "stays.sock"]
    server.signal(signal.SIGTERM)
    server.wait_gone()
    assert [path.name for path in tmp_path.glob("*.sock")] == ["goes.sock"]
