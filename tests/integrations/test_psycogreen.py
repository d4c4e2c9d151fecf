"""A worker of a team's own that makes psycopg2 yield to gevent."""

from __future__ import annotations

import contextlib
import socket

import pytest
from harness import CEILING, assert_clean, request


def test_psycopg2_waits_without_blocking_the_worker(serve_prefixed):
    pytest.importorskip("psycogreen")
    pytest.importorskip("psycopg2")
    server = serve_prefixed("psycogreened.Worker", delay=0.5)
    with socket.create_server(("127.0.0.1", 0)) as database:
        database.settimeout(CEILING)
        client = server.connect()
        client.send(request(f"/database/{database.getsockname()[1]}"))
        link, _ = database.accept()
        with contextlib.closing(link):
            # The worker has one thread, and the database does not answer.
            server.terminate()
            assert server.fetch().closes
            server.wait_draining()
        end = client.ending()
        assert (end.status, end.closes, end.body) == (200, True, b"tried")
    client.close()
    server.wait_log("^the database has gone")
    assert_clean(server)
