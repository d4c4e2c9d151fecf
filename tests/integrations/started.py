"""Servers that another command starts, or keeps."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Server


def find_script(name: str) -> str:
    """A command of a package in this Python's environment, or anywhere; skips without it."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@dataclass
class Prefixed(Server):
    """Started as ``prefix... gunicorn ...``; the prefix is gone then, by exec."""

    prefix: tuple[str, ...] = ()

    def _command(self, command):
        return [*self.prefix, *command], []


@dataclass
class Kept(Server):
    """The child of a process manager, which may put it into a session of its own.

    ``self.pid`` is the manager's. Descriptors are not handed down: listen at a ``path``.
    """

    def close(self) -> None:
        arbiters = [int(line.message.split("(")[-1][:-1]) for line in self.grep("^Listening at: ")]
        for pid in (*arbiters, *self.worker_pids) if self.gone_at is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        super().close()
