"""Every kind of listener: TCP over v4 and v6, unix with a path and without (contract 3)."""

from __future__ import annotations

import pytest
from harness import FULL, assert_clean, assert_within, fill, line_up

pytestmark = pytest.mark.contract(3)

KINDS = ("tcp", "tcp6", "unix", "abstract")
NO_GATE = "import gracefulworker.arbiter.gate as gate\ngate.SO_BINDTOIFINDEX = 9999\n"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_queue_is_served_and_newcomers_are_refused(serve, worker, kind):
    """As for v4 in test_03_draining.py."""
    server = serve(worker, listen=(kind,), delay=0.3, **FULL)
    busy = fill(server)
    server.terminate()
    queued = line_up(server, 3)
    server.wait_draining()
    newcomer = server.knock()
    assert newcomer.kind == "refused"
    assert_within(0.1, newcomer.at, newcomer.began, "a refusal")
    for _, held in busy:
        held.release()
    endings = [client.ending() for client in queued]
    assert [(end.kind, end.closes) for end in endings] == [("response", True)] * 3
    assert_clean(server)


def test_several_listeners_at_once(serve, worker):
    server = serve(worker, listen=KINDS, delay=0.3, **FULL)
    everywhere = range(len(KINDS))
    # gevent counts its connections for each listener, the others for the worker
    busy = [one for n in everywhere if not n or "gevent" in worker for one in fill(server, n)]
    server.terminate()
    queued = [client for n in everywhere for client in line_up(server, 2, n)]
    server.wait_draining()
    assert [server.knock(n).kind for n in everywhere] == ["refused"] * len(KINDS)
    for _, held in busy:
        held.release()
    assert [client.ending().kind for client in queued] == ["response"] * len(queued)
    assert_clean(server)


def test_without_the_gate_the_queue_is_still_served(serve, worker):
    """A kernel that does not know the option: whoever was in the queue is answered all the same."""
    server = serve(worker, delay=0.3, config=NO_GATE, **FULL)
    busy = fill(server)
    server.terminate()
    queued = line_up(server, 3)
    server.wait_draining()
    for _, held in busy:
        held.release()
    assert [client.ending().kind for client in queued] == ["response"] * 3
    assert_clean(server)
    assert server.knock().kind == "refused"


def test_without_the_gate_an_idle_service_stops_in_time(serve, worker):
    server = serve(worker, delay=0.3, config=NO_GATE)
    over = server.terminate() + 0.3
    assert server.fetch().kind == "response"
    assert_within(server.exit_bound, server.wait_gone(), over, "gone after the delay")
    assert_clean(server)
