"""``gracefulworker.hooks.when_ready``: the delay for worker classes that are not ours."""

from __future__ import annotations

import signal

import pytest
from harness import assert_clean, now

PLAIN = "from gracefulworker.hooks import when_ready\n"
CALLED = """
from gracefulworker import hooks
def when_ready(server):
    server.log.info("user's when_ready")
    hooks.when_ready(server)
"""


@pytest.mark.contract(1)
@pytest.mark.parametrize("config", (PLAIN, CALLED), ids=("imported", "called"))
@pytest.mark.parametrize("stock", ("gthread", "sync"))
def test_any_worker_class_gets_the_delay(serve, stock, config):
    server = serve(stock, delay=0.6, config=config)
    assert len(server.grep("^shutdown plan: accept 0.6 s")) == 1
    assert len(server.grep("^user's when_ready")) == (config == CALLED)
    term = server.terminate()
    endings = [server.fetch()]
    while endings[-1].kind == "response":
        endings.append(server.fetch())
    assert len(endings) > 1 and endings[-1].began - term >= 0.59
    server.wait_gone()
    assert server.status == 0


@pytest.mark.contract(1)
def test_a_killed_worker_is_replaced_in_the_delay(serve):
    server = serve("gthread", delay=60, config=PLAIN)
    server.terminate()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_log("^app imported", count=2)
    assert server.fetch().kind == "response"


@pytest.mark.contract(10)
def test_a_second_sigterm_ends_the_delay(serve):
    server = serve("gthread", delay=60, config=PLAIN)
    term = server.terminate()
    server.signal(signal.SIGTERM)
    with pytest.raises(AssertionError, match="passed with 0"):
        server.wait_log("^draining:", timeout=term + 1.1 - now())
    assert server.fetch().kind == "response"
    again = server.signal(signal.SIGTERM)
    assert server.wait_gone() - again < 2.5  # stock polls, and gthread lingers
    assert server.status == 0


def test_with_our_own_workers_it_changes_nothing(serve, worker):
    def life(config):
        server = serve(worker, delay=0.3, config=config)
        server.terminate()
        assert server.fetch().closes
        assert_clean(server)
        lines = [line.message for line in server.lines if line.level]
        return [line.split(":")[0] for line in lines if "pid" not in line]

    with_hook, without = life(PLAIN), life("")
    assert with_hook == without
    assert with_hook.count("shutdown plan") == 1
