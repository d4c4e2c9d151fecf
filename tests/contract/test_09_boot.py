"""A SIGTERM that comes while the service is still starting is not lost (contract 9)."""

from __future__ import annotations

import signal

import pytest
from harness import assert_clean, assert_within, request

pytestmark = pytest.mark.contract(9)


@pytest.mark.parametrize(
    ("delay", "whom"), [(0.5, "the arbiter"), (0.5, "the group"), (2.0, "the arbiter")]
)
def test_sigterm_while_the_application_is_imported(serve, worker, delay, whom):
    """Import takes a second: the delay ends in the middle of it, or long after it."""
    server = serve(worker, delay=delay, env={"APP_IMPORT": "1"}, ready=False)
    early = server.connect()
    early.send(request())
    server.wait_log("^Booting worker with pid")
    term = (server.signal if whom == "the arbiter" else server.killpg)(signal.SIGTERM)
    server.wait_log("^lame duck:")
    second = server.connect()
    second.send(request())
    last = early.ending(), second.ending()
    assert [(end.kind, end.status, end.closes) for end in last] == [("response", 200, True)] * 2
    if delay > 1:
        assert server.fetch().kind == "response"  # the service is up, and its delay is not over
    server.wait_draining()
    assert server.knock().kind == "refused"
    idle = max(term + delay, last[-1].at)
    assert_within(server.exit_bound, server.wait_gone(), idle, "gone")
    assert_clean(server)


@pytest.mark.control(9)
@pytest.mark.parametrize("stock", ("sync", "uvicorn"))
def test_sigterm_while_the_application_is_imported_on_stock(serve, stock):
    """Until the worker has handlers of its own (the hook keeps it so) SIGTERM is lost on it."""
    hook = (
        "import time\ndef post_fork(server, worker):\n    time.sleep(0.5)\ngraceful_timeout = 2\n"
    )
    server = serve(stock, config=hook, ready=False)
    server.wait_log("^Booting worker with pid")
    term = server.killpg(signal.SIGTERM)
    assert server.wait_gone() - term > 1.9


def test_sigterm_in_that_moment_is_not_lost_on_ours(serve, worker):
    hook = "import time\ndef post_fork(server, worker):\n    time.sleep(0.5)\n"
    server = serve(worker, config=hook, delay=0.1, ready=False)
    server.wait_log("^Booting worker with pid")
    term = server.killpg(signal.SIGTERM)
    assert_within(1.3, server.wait_gone(), term, "gone")
    assert_clean(server)


def test_sigterm_between_two_boots(serve, worker):
    """The first of three is up, the others are not yet."""
    server = serve(worker, workers=3, delay=0.4, env={"APP_IMPORT": "0.3"}, ready=False)
    client = server.connect()
    client.send(request())
    server.wait_log("^app imported")
    over = server.terminate() + 0.4
    end = client.ending()
    assert end.kind == "response"  # whether before or after SIGTERM is open
    assert_within(0.9, server.wait_gone(), over, "gone")
    assert_clean(server)


@pytest.mark.contract(6)
def test_a_worker_that_boots_while_nobody_waits_is_told_once_to_leave(serve, worker):
    """Its handler sleeps for a moment: signals that interrupt it end in a RecursionError."""
    hook = "import os\ndef worker_int(worker):\n    os.write(2, b'told to leave\\n')\n"
    server = serve(worker, delay=0, config=hook, env={"APP_IMPORT": "1"})
    server.signal(signal.SIGHUP)
    server.wait_log("^Booting worker", count=2)
    server.signal(signal.SIGTERM)
    server.wait_draining()
    assert_clean(server)
    assert len(server.grep("^told to leave")) <= 1  # none where it had no handlers yet
