"""The log: one line per phase, nothing above INFO in a clean stop, and a last line that is true."""

from __future__ import annotations

import signal

import pytest
from harness import assert_clean, now, summary


def phases(server):
    words = ("shutdown plan", "lame duck", "draining", "stopped")
    found = [line.message.split(":")[0] for line in server.lines if line.level]
    return [word for word in found if word in words]


@pytest.mark.tracker(3050, 2755)
def test_one_line_per_phase_and_nothing_above_info(serve, worker):
    server = serve(worker, workers=2, delay=0.3)
    server.terminate()
    assert server.fetch().kind == "response"
    assert_clean(server)
    assert phases(server) == ["shutdown plan", "lame duck", "draining", "stopped"]
    assert {line.level for line in server.lines if line.level} == {"INFO"}
    assert server.lines[-1].message.startswith("stopped: clean")


def test_the_figures_of_the_last_line(serve, worker):
    keeps = "sync" not in worker
    server = serve(worker, delay=0.8, options=("--keep-alive", "75"))
    if keeps:
        told, *_idle = (server.keep_alive() for _ in range(3))
    term = server.terminate()
    if keeps:
        assert told.ask().closes  # 1
    assert server.fetch().closes  # 2
    before = now() - term
    last = server.connect()
    after = now() - term
    assert last.ask().closes  # 3
    assert_clean(server)
    figures = summary(server)
    assert figures["served"] == (3 if keeps else 2)
    assert before - 0.1 <= figures["last"] <= after + 0.2
    assert figures["idle"] == (2 if keeps else 0)
    assert figures["queue"] == 0
    assert figures["cut"] == 0
    if keeps:  # sync closes after each response in any case
        assert figures["told"] == 3
    assert 0.8 <= figures["after"] <= server.wait_gone() - term + 0.05  # it is rounded


def test_no_new_connection_is_said_so(serve, worker):
    server = serve(worker, delay=0.2)
    server.terminate()
    assert_clean(server)
    figures = summary(server)
    assert (
        0.2 <= figures.pop("after") <= server.wait_gone() - server.term_at + 0.05
    )  # it is rounded
    assert figures == {
        "served": 0, "last": None, "told": 0, "idle": 0, "queue": 0, "cut": 0,
        "websockets": None,
    }  # fmt: skip


def test_figures_of_several_workers_and_of_dead_ones_add_up(serve, worker):
    server = serve(worker, workers=2, delay=0.7, options=("--max-requests", "4"))
    server.terminate()
    for _ in range(15):
        assert server.fetch().kind == "response"
    assert_clean(server)
    assert summary(server)["served"] == 15


def test_a_request_that_died_with_its_worker_is_not_passed_over(serve, worker):
    server = serve(worker, delay=0.5)
    client, held = server.hold("it")
    server.terminate()
    server.signal(signal.SIGKILL, held.pid)
    assert client.ending().kind in ("reset", "eof")
    server.wait_gone()
    assert server.status == 5
    assert server.wait_log("^stopped:").message.startswith("stopped: cut after")
    assert summary(server)["cut"] == 1


def test_the_plan_is_stated_at_the_start(serve, worker):
    server = serve(worker)
    plan = server.wait_log("^shutdown plan:").message
    assert plan == "shutdown plan: accept 5.0 s, finish within 24.0 s, exit by 29.0 s of 30.0 s"
    server.signal(signal.SIGTERM)
    assert server.wait_log("^lame duck:").message == (
        "lame duck: SIGTERM received, serving for 5.0 s more"
    )
