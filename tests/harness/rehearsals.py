"""The command `gracefulworker rehearse`, with all its processes marked, so that none gets away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from harness.clients import CEILING
from harness.server import SERVED

#: Where rehearsals run; a checkout that pytest may run in is not on their path there.
HERE = SERVED

#: As short as a rollout can be, and still have something to show.
SHORT = ["--pods", "2", "--lag", "0.6", "--warm-up", "0.3", "--rate", "40", "--connections", "12"]
SHORT += ["--idle-limit", "0.7"]  # less than the delay, or a request may cross a close
DELAY = "1"

COMMAND = [sys.executable, "-m", "gracefulworker", "rehearse"]
PASSED_ON = ["--chdir", str(HERE), "--threads", "8", "--keep-alive", "75"]

#: How long a whole short rehearsal may take on a slow machine.
PATIENCE = 60.0

#: Lines during which somebody may press Ctrl-C.
MOMENTS = (
    "The picture will be here",
    "all pods are ready, the load begins",
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
    """A short rehearsal, as a user would start it.

    :param config: the text of a config file.
    """

    def __init__(
        self,
        tmp_path: Path,
        *options: str,
        app: str = "rehearsed:app",
        config: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.json = tmp_path / "out.json"
        self.html = tmp_path / "out.html"
        self.mark = f"REHEARSAL_UNDER_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        files = ["--json", str(self.json), "--html", str(self.html)]
        before, passed_on = self._split(options)
        if config is not None:
            (tmp_path / "config.py").write_text(config)
            passed_on[:0] = ["-c", str(tmp_path / "config.py")]
        self.process = subprocess.Popen(
            [*COMMAND, app, *SHORT, *files, *before, "--", *PASSED_ON, *passed_on],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=HERE,
            env={
                **os.environ,
                name: value,
                "PYTHONUNBUFFERED": "1",
                "PYTHONDEVMODE": "",  # that is for the tests, and not for the pods
                "GRACEFUL_DELAY": DELAY,
                **(env or {}),
            },
        )
        self.said = ""

    @staticmethod
    def _split(options: tuple[str, ...]) -> tuple[list[str], list[str]]:
        at = options.index("--") if "--" in options else len(options)
        return list(options[:at]), list(options[at + 1 :])

    def wait_line(self, words: str) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return
        raise AssertionError(f"never said {words!r}:\n{self.said}")

    def end(self) -> int:
        said, _ = self.process.communicate(timeout=PATIENCE)
        self.said += said
        return self.process.returncode

    def rollout(self, number: int = 0) -> dict[str, Any]:
        rollout: dict[str, Any] = json.loads(self.json.read_text())["rollouts"][number]
        return rollout

    def left_behind(self) -> list[str]:
        """Command lines of its processes that still run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def close(self) -> None:
        """End it, if it has not ended, and see that nothing of it is left."""
        self.process.kill()
        self.process.communicate()
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        give_up = time.monotonic() + CEILING
        while self.left_behind() and time.monotonic() < give_up:
            time.sleep(0.05)  # what was killed takes a moment to vanish
        assert not self.left_behind()


def networks() -> list[str]:
    """What this namespace has: the links, and the rules without their counters."""
    found = []
    for command in (["ip", "-o", "link"], ["iptables-save"]):
        if shutil.which(command[0]):
            said = subprocess.run(command, capture_output=True, text=True).stdout
            found += [line for line in said.splitlines() if not line.startswith(("#", ":"))]
    return found
