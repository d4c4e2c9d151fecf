"""The user's own kubectl, as a subprocess: their login works, and nothing of Kubernetes is here.

What may be changed here: how it is called. What its answers mean stands in `kubernetes_events`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from gracefulworker.tools.rehearse.pods import end_with_parent

#: Seconds that one answer may take, and in which it ends when it is told to.
PATIENCE = 30.0
ENDS_WITHIN = 2.0

#: Bytes of one line: an object with all its managed fields.
LINE_MOST = 16 * 2**20


class NoCluster(Exception):
    """The cluster cannot be rehearsed with; the argument is a sentence."""


class Kubectl:
    """kubectl with a context and a namespace, those of the user where none is given."""

    def __init__(self, context: str | None, namespace: str | None) -> None:
        self._words = ["kubectl"]
        if context:
            self._words += ["--context", context]
        if namespace:
            self._words += ["--namespace", namespace]

    def command(self, *words: str) -> list[str]:
        return [*self._words, *words]

    def run(self, *words: str) -> str:
        """What it prints.

        :raises NoCluster: it is not there, or fails.
        """
        done = self._run(*words)
        if done.returncode:
            raise NoCluster(f"kubectl {' '.join(words[:2])}: {last_line(done.stderr)}")
        return done.stdout

    def get(self, *words: str) -> dict[str, Any]:
        """An object.

        :raises NoCluster: as `run`.
        """
        found: dict[str, Any] = json.loads(self.run("get", *words, "--output", "json"))
        return found

    def may(self, *words: str) -> bool:
        """Whether the user has a right, in the words of `kubectl auth can-i`.

        :raises NoCluster: nobody can say.
        """
        done = self._run("auth", "can-i", *words)
        answer = done.stdout.strip().splitlines()[-1:]
        if answer not in (["yes"], ["no"]):
            raise NoCluster(f"kubectl auth can-i: {last_line(done.stderr)}")
        return answer == ["yes"]

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        if not shutil.which("kubectl"):
            raise NoCluster("there is no kubectl on the PATH: install it, and log in")
        try:
            return subprocess.run(
                self.command(*words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise NoCluster(
                f"kubectl {' '.join(words[:2])} did not answer within {PATIENCE:g} s: is the"
                " cluster there?"
            ) from None


class Follower:
    """A kubectl that goes on talking: each line is given to `hear`, until its end or `close`.

    It is in a session of its own, out of the reach of Ctrl-C, and does not outlive this process.
    """

    def __init__(self, command: list[str], hear: Callable[[str], None]) -> None:
        self._command, self._hear = command, hear
        self._trouble = b""
        self.status: int | None = None

    async def start(self) -> Follower:
        end = functools.partial(end_with_parent, signal.SIGTERM)
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=LINE_MOST,
            start_new_session=True,
            preexec_fn=end if sys.platform == "linux" else None,
        )
        self.ended = asyncio.ensure_future(self._follow())
        return self

    async def _follow(self) -> None:
        assert self._process.stdout and self._process.stderr, "they were asked for"
        trouble = asyncio.ensure_future(self._process.stderr.read())
        try:
            async for line in self._process.stdout:
                self._hear(line.decode(errors="replace").rstrip("\n"))
            self._trouble = await trouble
            self.status = await self._process.wait()
        finally:
            trouble.cancel()

    @property
    def trouble(self) -> str:
        """What it said last of why it failed."""
        return last_line(self._trouble.decode(errors="replace"))

    async def close(self) -> None:
        """End it, and reap it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)  # what is called kubectl may be a script
            await asyncio.wait([asyncio.ensure_future(self._process.wait())], timeout=ENDS_WITHIN)
        self.ended.cancel()
        await asyncio.gather(self.ended, return_exceptions=True)


def last_line(text: str) -> str:
    """The line that says why; those before it are warnings."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it says nothing of the reason"
