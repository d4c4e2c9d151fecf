"""`gracefulworker rehearse` from outside: real pods, real clients, and nothing left behind."""

from __future__ import annotations

import re
import signal

import pytest
from harness.rehearsals import MOMENTS, needs_kube_proxy, networks


def test_ours_beside_stock(rehearse):
    paths = ["--slow", "/slow", "--stream", "/stream", "--upload", "/upload"]
    rehearsal = rehearse("--pods", "1", "--against", "stock", *paths)
    assert rehearsal.end() == 0, rehearsal.said
    ours, stock = rehearsal.rollout(0), rehearsal.rollout(1)
    assert (ours["worker"], stock["worker"]) == ("gracefulworker.gthread", "gthread")
    assert ours["lost"] == 0 and ours["asked"] > 50
    assert stock["lost"] > 0, "a rehearsal that finds nothing on stock can find nothing"
    kinds = {connection["kind"] for connection in ours["connections"]}
    assert kinds == {
        "fresh",
        "keep-alive",
        "sleeper",
        "slow request",
        "late speaker",
        "slow answer",
        "slow upload",
        "stream",
    }
    for pod in ours["pods"][:1]:
        assert {"sigterm", "lame_duck", "endpoint_gone", "gate", "exit"} <= pod["marks"].keys()
        assert pod["status"] == 0 and "sigkill" not in pod["marks"]
        assert pod["marks"]["endpoint_gone"] - pod["marks"]["sigterm"] > 0.5
    assert due(ours) == pytest.approx(due(stock), abs=0.05), "the same seed asks at the same times"
    assert re.search(r"gracefulworker\.gthread lost 0 of \d+ requests\.", rehearsal.said)
    rehearsal.assert_nothing_left()


def due(rollout) -> list[float]:
    """When the first requests on fresh connections were due, in seconds of the load."""
    return sorted(
        request["due"] - rollout["load"][0]
        for connection in rollout["connections"]
        for request in connection["requests"]
        if connection["kind"] == "fresh"
    )[:20]


def test_a_loss_on_our_side_is_exit_status_1(rehearse):
    rehearsal = rehearse("-k", "sync")
    assert rehearsal.end() == 1, rehearsal.said
    assert rehearsal.rollout()["lost"] > 0


def test_a_pod_that_must_be_killed_is_exit_status_1(rehearse):
    rehearsal = rehearse(
        "-k", "gevent", "--pods", "1", "--grace", "1.5", "--", "--keep-alive", "75"
    )
    assert rehearsal.end() == 1, rehearsal.said
    killed = [pod for pod in rehearsal.rollout()["pods"] if "sigkill" in pod["marks"]]
    assert killed, "stock gevent waits for connections that nobody closes"
    assert "had to be killed" in rehearsal.said


@pytest.mark.parametrize("path", ("/time", "/pid"))
def test_a_body_that_differs_by_itself_is_not_compared(rehearse, path):
    rehearsal = rehearse("--pods", "2", "--path", path)
    assert rehearsal.end() == 0, rehearsal.said
    assert f"so not compared: GET {path}" in " ".join(rehearsal.said.split())


def test_of_a_single_pod_nobody_knows_what_differs(rehearse):
    rehearsal = rehearse("--pods", "1", "--path", "/pid")
    assert rehearsal.end() == 0, rehearsal.said


def test_a_path_that_is_not_there_is_named(rehearse):
    rehearsal = rehearse("--pods", "1", "--path", "/missing")
    assert rehearsal.end() == 0, rehearsal.said
    said = " ".join(rehearsal.said.split())
    assert "not a success before the rollout: GET /missing (404)" in said


def test_a_body_that_changes_is_a_loss(rehearse):
    rehearsal = rehearse("--pods", "2", "--path", "/spoilt")
    assert rehearsal.end() == 1, rehearsal.said
    assert rehearsal.rollout()["endings"]["wrong answer"] > 0


def test_a_lag_beyond_the_delay_is_named(rehearse):
    rehearsal = rehearse("--pods", "1", "--lag", "1.8")
    assert rehearsal.end() == 1, rehearsal.said
    assert "graceful_delay has to be longer than the lag (1.8 s)" in " ".join(
        rehearsal.said.split()
    )


@pytest.mark.parametrize("moment", MOMENTS[1:4:2])  # all of them: tests/rollout
def test_ctrl_c_leaves_nothing(rehearse, moment):
    rehearsal = rehearse()
    rehearsal.wait_line(moment)
    rehearsal.process.send_signal(signal.SIGINT)
    assert rehearsal.end() == 130, rehearsal.said
    assert "Traceback" not in rehearsal.said
    rehearsal.assert_nothing_left()


def test_its_own_death_ends_the_pods(rehearse):
    rehearsal = rehearse()
    rehearsal.wait_line("pod 1 is no endpoint any more")
    rehearsal.process.kill()
    rehearsal.process.wait()
    rehearsal.assert_nothing_left()


@needs_kube_proxy
def test_behind_kube_proxys_rules(rehearse):
    rehearsal = rehearse("--service", "iptables", "--against", "stock", "--pods", "1")
    assert rehearsal.end() == 0, rehearsal.said
    ours, stock = rehearsal.rollout(0), rehearsal.rollout(1)
    assert ours["lost"] == 0 and ours["asked"] > 50
    assert stock["lost"] > 0
    # Each pod was chosen, by the rules alone.
    assert {connection["pod"] for connection in ours["connections"]} >= {"pod 1", "pod 2"}
    rehearsal.assert_nothing_left()


@needs_kube_proxy
def test_the_end_behind_kube_proxys_rules_leaves_nothing(rehearse):
    """No process, and with it no namespace, link or rule: they are all held by these."""
    before = networks()
    rehearsal = rehearse("--service", "iptables")
    rehearsal.wait_line("pod 3 is ready")
    rehearsal.process.kill()
    rehearsal.process.wait()
    rehearsal.assert_nothing_left()
    assert networks() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--", "--bind", ":80"], "leave --bind to the rehearsal"),
        (["--", "-b:80"], "leave -b:80 to the rehearsal"),
        (["--html", "/nowhere/x.html"], "/nowhere/x.html cannot be written"),
        (["--requests", "/nowhere/requests"], "No such file"),
        (["--pods", "0"], "0 is not from 1 to 10"),
        (["-k", "subclasses.Gthread2", "--against", "stock"], "name the class that is beside"),
        (["--path", "/broken"], "GET /broken was answered 500 before the rollout"),
        (
            ["--ready-path", "/broken", "--ready-within", "1"],
            "did not answer GET /broken within 1 s",
        ),
        (["--", "--no-such-option"], "pod 1 exited with status"),
    ],
)
def test_what_cannot_be_rehearsed_is_exit_status_2(rehearse, options, sentence):
    rehearsal = rehearse(*options)
    assert rehearsal.end() == 2
    assert sentence in " ".join(rehearsal.said.split())
