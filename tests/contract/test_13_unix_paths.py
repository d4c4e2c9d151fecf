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
    while path.exists():
        end = server.fetch()
        if end.kind != "response":
            break
    assert end.kind == "refused"
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
