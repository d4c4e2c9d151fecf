"""`--timeout 0`, which Google's own line for Cloud Run has: nobody watches for stuck workers."""

from __future__ import annotations

import signal

import pytest
from harness import assert_clean, assert_within

NO_TIMEOUT = ("--timeout", "0")


@pytest.mark.contract(1)
@pytest.mark.contract(3)
def test_a_service_without_timeout_is_a_lame_duck_and_drains(serve, worker):
    server = serve(worker, delay=0.6, options=NO_TIMEOUT)
    server.terminate()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_log("^app imported", count=2)
    end = server.fetch()
    assert end.status == 200 and end.closes
    client, held = server.hold("it")
    server.wait_draining()
    assert server.knock().kind == "refused"
    released = held.release()
    assert client.ending().status == 200
    assert_within(server.exit_bound, server.wait_gone(), released, "the exit")


@pytest.mark.contract(4)
def test_a_service_without_timeout_ends_when_it_is_idle(serve, worker):
    server = serve(worker, delay=0.2, options=NO_TIMEOUT)
    over = server.terminate() + 0.2
    assert_within(server.exit_bound, server.wait_gone(), over, "the exit")
    assert_clean(server)


@pytest.mark.contract(7)
def test_a_service_without_timeout_has_a_deadline(serve, worker):
    server = serve(worker, delay=0.2, options=NO_TIMEOUT, env={"GRACEFUL_KILL_AFTER": "2"})
    client, _ = server.hold("stuck")
    term = server.terminate()
    assert client.ending().status == 503
    assert_within(2.0, server.wait_gone(), term, "the exit")
    assert server.status == 5
