"""The way out of a process.

What may be changed here: what may hold up an exit. `leave` is also a worker's way out.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import Any


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
