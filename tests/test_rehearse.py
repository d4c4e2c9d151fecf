"""`gracefulworker rehearse` from outside: real pods, real clients, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest
from harness import CEILING

HERE = Path(__file__).parent
ROOT = Path(find_spec("gracefulworker").origin).parent.parent

#: As short as a rollout can be, and still have something to show.
SHORT = ["--pods", "2", "--lag", "0.6", "--warm-up", "0.3", "--rate", "40", "--connections", "12"]
SHORT += ["--idle-limit", "0.7"]  # less than the delay, or a request may cross a close
DELAY = "1"

COMMAND = [sys.executable, "-m", "gracefulworker", "rehearse", "rehearsed:app"]
PASSED_ON = ["--chdir", str(HERE), "--threads", "8", "--keep-alive", "75"]

#: How long a whole short rehearsal may take on a slow machine.
PATIENCE = 60.0

#: Lines during which somebody may press Ctrl-C.
MOMENTS = (
    "The picture will be here",
    "2 pods are ready, the load begins",
    "pod 3 is ready",
    "pod 1 is no endpoint any more",
    "pod 1 has exited",
)

needs_kube_proxy = pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or None in map(shutil.which, ("ip", "iptables-restore", "unshare", "nsenter")),
    reason="needs Linux, root, iptables and util-linux",
)


class Rehearsal:
    """The command, with all its processes marked, so that any that is left can be found."""

    def __init__(self, tmp_path: Path, *options: str) -> None:
        self.json = tmp_path / "out.json"
        self.html = tmp_path / "out.html"
        self.mark = f"REHEARSAL_UNDER_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        files = ["--json", str(self.json), "--html", str(self.html)]
        options, passed_on = self._split(options)
        self.process = subprocess.Popen(
            [*COMMAND, *SHORT, *files, *options, "--", *PASSED_ON, *passed_on],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                name: value,
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
                "GRACEFUL_DELAY": DELAY,
            },
        )
        self.said = ""

    @staticmethod
    def _split(options: tuple[str, ...]) -> tuple[list[str], list[str]]:
        at = options.index("--") if "--" in options else len(options)
        return list(options[:at]), list(options[at + 1 :])

    def wait_line(self, words: str) -> None:
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return
        raise AssertionError(f"never said {words!r}:\n{self.said}")

    def end(self) -> int:
        said, _ = self.process.communicate(timeout=PATIENCE)
        self.said += said
        return self.process.returncode

    def rollout(self, number: int = 0) -> dict:
        return json.loads(self.json.read_text())["rollouts"][number]

    def left_behind(self) -> list[str]:
        """Command lines of its processes that still run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def assert_nothing_left(self) -> None:
        give_up = time.monotonic() + CEILING
        while self.left_behind() and time.monotonic() < give_up:
            time.sleep(0.05)  # what was killed takes a moment to vanish
        assert not self.left_behind()


@pytest.fixture
def rehearse(tmp_path):
    started = []

    def start(*options):
        rehearsal = Rehearsal(tmp_path, *options)
        started.append(rehearsal)
        return rehearsal

    yield start
    for rehearsal in started:
        rehearsal.process.kill()
        rehearsal.process.communicate()
        rehearsal.assert_nothing_left()


def test_ours_beside_stock(rehearse):
    paths = ["--slow", "/slow", "--stream", "/stream", "--upload", "/upload"]
    rehearsal = rehearse("-k", "gracefulworker.gthread", "--against", "stock", *paths)
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
    for pod in ours["pods"][:2]:
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


def test_a_lag_beyond_the_delay_is_named(rehearse):
    rehearsal = rehearse("--pods", "1", "--lag", "1.8")
    assert rehearsal.end() == 1, rehearsal.said
    assert "graceful_delay has to be longer than the lag (1.8 s)" in " ".join(
        rehearsal.said.split()
    )


@pytest.mark.parametrize("moment", MOMENTS)
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


def networks() -> tuple[str, str]:
    """What this namespace has: links and rules."""
    commands = (["ip", "-o", "link"], ["iptables-save"])
    return tuple(subprocess.run(c, capture_output=True, text=True).stdout for c in commands)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--", "--bind", ":80"], "leave --bind to the rehearsal"),
        (["--", "-b:80"], "leave -b:80 to the rehearsal"),
        (["--html", "/nowhere/x.html"], "/nowhere/x.html cannot be written"),
        (["--requests", "/nowhere/requests"], "No such file"),
        (["--pods", "0"], "0 is not from 1 to 10"),
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
