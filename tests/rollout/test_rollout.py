"""The rollout behind kube-proxy's own rules: three pods, a lag of 3 s, some seeds, each worker.

Minutes long, so not part of the default suite: ``tox -e rollout``. What is held here: nothing is
lost, no idle connection is closed unannounced unless it was idle for the whole delay, no pod has to
be killed, and each is gone 300 ms after its last active request or the end of the delay (as long as
nothing else keeps the machine busy). The control beside it, stock with the same seed, loses dozens.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from harness.rehearsals import HERE, MOMENTS, needs_kube_proxy, networks

#: Enough for the slow requests that a run has at once.
CAPACITY = {
    "sync": ["--workers", "6"],
    "gthread": ["--workers", "2", "--threads", "8"],
    "gevent": ["--workers", "2"],
    "uvicorn": ["--workers", "2"],
}

#: The first ones are enough to see what stock loses.
SEEDS = {"sync": 5, "gthread": 5, "gevent": 5, "uvicorn": 3}
RUNS = [(engine, seed) for engine, most in SEEDS.items() for seed in range(1, most + 1)]

#: Seconds by which an end of file may be noted before the log line of the gate is.
SLACK = 0.1

PATHS = ["--slow", "/slow", "--stream", "/stream", "--upload", "/upload"]


@needs_kube_proxy
@pytest.mark.contract(1)
@pytest.mark.contract(3)
@pytest.mark.contract(4)
@pytest.mark.contract(6)
@pytest.mark.parametrize(("engine", "seed"), RUNS)
def test_nothing_is_lost(tmp_path, engine, seed):
    out = tmp_path / "out.json"
    app = "asgi_rehearsed:app" if engine == "uvicorn" else "rehearsed:app"
    command = [sys.executable, "-m", "gracefulworker", "rehearse", app]
    command += ["-k", f"gracefulworker.{engine}", "--against", "stock"]
    command += ["--service", "iptables", "--lag", "3", "--seed", str(seed), "--json", str(out)]
    command += [*PATHS, "--idle-limit", "4"]
    command += ["--", *CAPACITY[engine], "--keep-alive", "65"]
    env = {**os.environ, "PYTHONDEVMODE": ""}
    done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, stock = json.loads(out.read_text())["rollouts"]
    assert ours["lost"] == 0
    for pod in ours["pods"][:3]:
        assert "sigkill" not in pod["marks"]
        assert pod["idle_closed"] == 0
        assert pod["overtime"] < 0.3
        for connection in closed_idle(ours, pod):
            assert connection["close"] == "by the server, unannounced", "and not by a reset"
            assert connection["closed"] > pod["marks"]["gate"] - SLACK, "in the delay"
    assert stock["lost"] >= 24


def closed_idle(rollout, pod) -> list[dict]:
    """Connections that a pod closed from its SIGTERM on, without a word on a response."""
    return [
        connection
        for connection in rollout["connections"]
        if connection["pod"] == pod["name"]
        and connection["close"] in ("by the server, unannounced", "reset while idle")
        and connection["closed"] >= pod["marks"]["sigterm"]
    ]


@pytest.mark.parametrize("service", ["balancer", pytest.param("iptables", marks=needs_kube_proxy)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_leaves_nothing(rehearse, service, moment):
    """No process is left, and no namespace, link or rule is seen from outside."""
    before = networks()
    rehearsal = rehearse("--service", service)
    rehearsal.wait_line(moment)
    rehearsal.process.send_signal(signal.SIGINT)
    assert rehearsal.end() == 130, rehearsal.said
    assert "Traceback" not in rehearsal.said
    rehearsal.assert_nothing_left()
    assert networks() == before
