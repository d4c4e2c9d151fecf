"""`graceful_quiet`: the delay ends early when nobody comes any more, and never later."""

from __future__ import annotations

import pytest
from harness import Storm, assert_clean, assert_within, now, request, summary

pytestmark = pytest.mark.contract(1)

QUIET = {"GRACEFUL_QUIET": "0.4"}


def test_without_traffic_the_delay_ends_early(serve, worker):
    server = serve(worker, workers=2, delay=60, env=QUIET)
    term = server.terminate()
    draining = server.wait_draining()
    assert draining.at - term >= 0.39
    assert_within(0.9, server.wait_gone(), term, "gone")
    assert_clean(server)


def test_with_traffic_the_delay_is_what_it_was(serve, worker):
    server = serve(worker, delay=1.0, env=QUIET)
    with Storm(server.addresses[0], clients=2, path="/sleep/0.01") as storm:
        storm.wait_served(5)
        term = server.terminate()
        draining = server.wait_draining()
        storm.wait_over()
    assert not storm.losses, storm.census()
    assert draining.at - term >= 0.99
    assert_within(1.1, draining.at, term, "the end of the delay")


def test_a_newcomer_begins_the_time_anew(serve, worker):
    server = serve(worker, delay=60, env=QUIET)
    server.terminate()
    for _ in range(3):
        at = now()
        assert server.fetch("/sleep/0.2").kind == "response"
    assert server.wait_draining().at - at >= 0.39


def test_a_request_on_an_old_connection_counts_when_it_begins(serve, keeper):
    server = serve(keeper, delay=60, env=QUIET)
    client = server.keep_alive()
    server.terminate()
    with pytest.raises(AssertionError, match="passed with 0"):
        server.wait_log("^draining", timeout=0.2)
    at = now()
    client.send(request("/gated/it"))
    held = server.gate.entered("it")
    assert server.wait_draining().at - at >= 0.39
    held.release()
    assert client.ending().closes
    assert_clean(server)


def test_who_waits_for_a_busy_worker_counts(serve):
    server = serve("gracefulworker.sync", delay=1.2, env=QUIET)
    client, held = server.hold("it")
    waiting = server.connect()
    term = server.terminate()
    assert server.wait_draining().at - term >= 1.19
    held.release()
    assert client.ending().kind == "response"
    assert waiting.ask().kind == "response"
    assert_clean(server)


def test_with_another_worker_class_it_is_not_known(serve):
    config = "from gracefulworker.hooks import when_ready\n"
    server = serve("gthread", delay=1.0, env=QUIET, config=config)
    term = server.terminate()
    assert server.wait_draining().at - term >= 0.99


AGENTS = ("kube-probe/1.34", "ELB-HealthChecker/2.0", "GoogleHC/1.0", "Consul Health Check")


@pytest.mark.parametrize("path", ("/fast", "/sleep/0.1"))
def test_a_prober_on_the_applications_port_is_nobody_new(serve, worker, path):
    """It is answered by the application, and neither ends nor lengthens anything."""
    server = serve(worker, delay=60, env=QUIET)
    server.terminate()
    ended = False
    while not ended:
        for agent in AGENTS:
            end = server.fetch(path, headers=(f"User-Agent: {agent}",))
            ended = ended or end.kind == "refused"
            assert ended or end.status == 200
    assert_clean(server)
    figures = summary(server)
    assert (figures["served"], figures["last"]) == (0, None)


def test_the_kubelet_at_a_path_of_ours_is_not_taken_off_twice(serve, worker):
    server = serve(worker, delay=0.6, env={"GRACEFUL_READINESS_PATH": "/ready"})
    server.terminate()
    assert server.fetch().kind == "response"
    for _ in range(3):
        assert server.fetch("/ready", headers=("User-Agent: kube-probe/1.34",)).status == 200
    assert_clean(server)
    figures = summary(server)
    assert figures["served"] == 1 and figures["last"] is not None


def test_who_only_looks_like_a_prober_is_somebody(serve):
    server = serve("gracefulworker.gthread", delay=60, env=QUIET)
    server.terminate()
    for agent in ("my kube-probe/1.0", "curl/8 (GoogleHC/1.0)"):
        assert server.fetch(headers=(f"User-Agent: {agent}",)).kind == "response"
    assert_clean(server)
    assert summary(server)["served"] == 2
