"""Crowds of clients that do not go: each has a cap, for what runs out is descriptors (contract 11).

The servers have few of them, so that a crowd is small.
"""

from __future__ import annotations

import pytest
from harness import assert_clean, assert_within, ends, now, request

pytestmark = pytest.mark.contract(11)

CLOSE = ("Connection: close",)
DESCRIPTORS = 64
FEW = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))
"""

#: The head of a request whose body does not come: its connection is closed with bytes unread.
UNREAD = request("/unread", "POST", (*CLOSE, "Content-Length: 10")) + b"12345"


def crowd(server, count):
    """They have their response, and never close; the statuses."""
    statuses = []
    for _ in range(count):
        client = server.connect()
        client.send(UNREAD)
        statuses.append(client.ending(timeout=5).status)
    return statuses


# -- clients that never close ----------------------------------------------------------------------


def test_more_that_linger_than_there_are_descriptors(serve, worker):
    server = serve(worker, delay=0.2, config=FEW)
    for _ in range(2):
        assert crowd(server, 2 * DESCRIPTORS) == [200] * 2 * DESCRIPTORS
        end = server.fetch("/file", headers=CLOSE)  # the application has some, too
        assert end.status == 200, str(end)
        assert_within(0.5, end.at, end.began, "another client's answer")
    assert len(server.worker_pids) == 1
    server.terminate()
    assert_clean(server)


# -- no descriptor is free -------------------------------------------------------------------------


def starve(server):
    """No descriptor is free; a client that waits for one, and the gate."""
    assert server.fetch("/starve/it").status == 200
    held = server.gate.entered("it")
    client = server.connect()
    client.send(request(headers=CLOSE))
    return client, held


def test_patient_while_no_descriptor_is_free(serve, worker):
    server = serve(worker, delay=3.0 if "uvicorn" in worker else 0.2, config=FEW)
    if "uvicorn" in worker:
        server.terminate()  # until then libuv closes whom it has no descriptor for
    client, held = starve(server)
    if "gevent" not in worker:  # gevent's own server says it in words of its own
        server.wait_log("^no descriptor is free")
    held.release()
    assert client.ending().status == 200
    assert len(server.worker_pids) == 1
    server.terminate()
    assert_clean(server)


@pytest.mark.parametrize("name", ("sync", "gthread"))
def test_a_worker_whose_descriptors_are_lost_gives_way(serve, name):
    server = serve(f"gracefulworker.{name}", delay=0.2, config=FEW)
    client, _ = starve(server)  # for good
    assert client.ending().status == 200
    server.wait_log("^Booting worker with pid", count=2)
    assert len(server.grep("gives way to another")) == 1
    assert len(server.worker_pids) == 2


@pytest.mark.control(11)
@pytest.mark.parametrize("stock", ("sync", "gthread"))
def test_patient_while_no_descriptor_is_free_on_stock(serve, stock):
    """It ends, and so does whatever it has begun."""
    server = serve(stock, config=FEW)
    starve(server)
    server.wait_log("Booting worker", count=2)
    assert server.grep("Too many open files")


def test_silent_connections_and_few_descriptors_from_sigterm_on(serve, worker):
    """Those of sync are set aside; the oldest go, so that those who speak have their turn."""
    if "sync" not in worker:
        pytest.skip("the others are at worker_connections, and close the silent in their time")
    server = serve(worker, delay=1.0, config=FEW)
    server.terminate()
    silent = [server.connect() for _ in range(2 * DESCRIPTORS)]
    speaker = server.connect()
    speaker.send(request())
    end = speaker.ending()
    assert end.status == 200
    assert_within(0.5, end.at, end.began, "an answer")
    assert {end.kind for end in ends(silent)} <= {"eof"}
    assert_clean(server)


# -- a worker that is full of the silent -----------------------------------------------------------


def test_silent_ones_make_room_in_a_full_worker(serve):
    """gthread keeps them as long as stock does, unless others could not come in."""
    options = ("--worker-connections", "6", "--keep-alive", "1")
    server = serve("gracefulworker.gthread", threads=2, options=options)
    silent = [server.connect() for _ in range(6)]
    began = now()
    end = server.fetch(headers=CLOSE)
    assert end.status == 200
    assert_within(7, end.at, began, "an answer")
    assert {end.kind for end in ends(silent)} == {"eof"}
