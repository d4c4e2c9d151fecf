"""The process is gone when there is nothing left to wait for (contract 6)."""

from __future__ import annotations

import re
import signal

import pytest
from harness import assert_clean, assert_within, stock_of

pytestmark = pytest.mark.contract(6)

HOOKS = """
import os
def say(text):
    os.write(2, f"{text}\\n".encode())
def worker_exit(server, worker):
    say(f"user's worker_exit of {worker.pid}")
def child_exit(server, worker):
    say(f"user's child_exit of {worker.pid}")
def on_exit(server):
    say("user's on_exit")
"""


@pytest.mark.parametrize("workers", (1, 3))
def test_a_quiet_service_is_gone_with_the_delay(serve, worker, workers):
    server = serve(worker, workers=workers, delay=0.4)
    over = server.terminate() + 0.4
    gone = server.wait_gone()
    assert gone >= over
    assert_within(0.3, gone, over, "gone after the delay")
    assert_clean(server)


def test_without_a_delay_it_is_gone_at_once(serve, worker):
    server = serve(worker, delay=0)
    term = server.signal(signal.SIGTERM)
    assert_within(server.exit_bound, server.wait_gone(), term, "gone after SIGTERM")
    assert_clean(server)


def test_gone_after_the_last_request(serve, worker):
    server = serve(worker, workers=2, delay=0.3)
    client, held = server.hold("it")
    server.terminate()
    server.wait_draining()
    held.release()
    end = client.ending()
    assert (end.body, end.closes) == (b"gated", True)
    # The client reads its answer and does not close: that is nobody's business either.
    assert_within(server.exit_bound, server.wait_gone(), end.at, "gone after the last answer")
    assert_clean(server)


@pytest.mark.tracker(2706, 2716)
def test_a_background_thread_does_not_hold_the_exit(serve, worker):
    """One that nobody can change, with graceful_threads = False."""
    server = serve(worker, delay=0.3, env={"APP_THREAD": "1", "GRACEFUL_THREADS": "no"})
    over = server.terminate() + 0.3
    assert_within(server.exit_bound, server.wait_gone(), over, "gone after the delay")
    assert_clean(server)


@pytest.mark.control(6)
@pytest.mark.tracker(2706, 2716)
@pytest.mark.parametrize("stock", ("sync", "gthread"))
def test_a_background_thread_does_not_hold_the_exit_on_stock(serve, stock):
    """The interpreter waits for the thread until the arbiter's SIGKILL."""
    server = serve(stock, env={"APP_THREAD": "1"}, config="graceful_timeout = 1\n")
    term = server.signal(signal.SIGTERM)
    assert server.wait_gone() - term > 0.9


def exit_lines(server):
    pids = [str(pid) for pid in server.worker_pids]
    lines = [line.text for line in server.lines if line.text.startswith("user's")]
    return sorted(
        re.sub("|".join(pids), lambda pid: f"worker {pids.index(pid[0])}", line) for line in lines
    )


def test_the_users_exit_code_runs_as_on_stock(serve, worker):
    """worker_exit and on_exit hooks and atexit functions: each once, where stock runs them.

    uvicorn's worker runs none of it: it raises its SIGTERM again, and dies of that.
    """
    found = {}
    for name in (worker, stock_of(worker)):
        server = serve(name, workers=2, delay=0, config=HOOKS, env={"APP_ATEXIT": "user's atexit"})
        server.signal(signal.SIGTERM)
        server.wait_gone()
        found[name] = exit_lines(server)
    if "uvicorn" not in worker:
        assert found[worker] == found[stock_of(worker)]
    assert found[worker].count("user's atexit") == 2
    assert {"user's on_exit", "user's worker_exit of worker 0"} <= set(found[worker])


def test_the_users_exit_code_may_take_its_time(serve, worker):
    slow = HOOKS + "import time\ndef worker_exit(server, worker):\n    time.sleep(0.7)\n"
    slow += "    say('user flushed')\n"
    server = serve(worker, delay=0, config=slow)
    server.signal(signal.SIGTERM)
    server.wait_log("^user flushed")
    assert_clean(server)


# What the interpreter owes: tests/served/exits.py
