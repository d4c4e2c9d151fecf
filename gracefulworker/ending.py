"""What was counted up to the end, and the way out of a process.

What may be changed here: what may hold up an exit. `leave` is also a worker's way out. What is said
of the figures is `gracefulworker.report`'s.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from dataclasses import dataclass, fields
from typing import Any

from gracefulworker.lifecycle import Slot


@dataclass
class Totals:
    """What the workers that are gone have counted since SIGTERM."""

    accepted: int = 0
    accepted_at: int = 0
    served: int = 0
    told_to_close: int = 0
    closed_idle: int = 0
    from_queue: int = 0
    cut: int = 0

    def fold(self, slot: Slot) -> None:
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(slot, field.name)
            together = max(mine, theirs) if field.name == "accepted_at" else mine + theirs
            setattr(self, field.name, together)


def is_command(app: Any) -> bool:
    """Whether gunicorn's own command runs `app`: no code of the user's follows its end.

    Then taking the interpreter apart is time lost, the more of it the more was preloaded (0.03 to
    0.25 s with nothing). An embedding application may have a `finally` that is still to run.
    """
    return type(app).__module__ == "gunicorn.app.wsgiapp"


def is_held_by_threads() -> bool:
    """Whether the interpreter would wait for a thread at its end."""
    others = (t for t in threading.enumerate() if t is not threading.main_thread())
    return any(not thread.daemon for thread in others)


def leave(stop: SystemExit) -> None:
    """End this process now: the user's atexit code runs, non-daemon threads are not joined.

    The interpreter's own way out joins them first, and a thread pool's with them, however long
    they take; nothing else gets past them (bpo-37788).
    """
    status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    try:
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.flush()  # None, closed, or a pipe whose reader has gone
        os._exit(status & 0xFF)
