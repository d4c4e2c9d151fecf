"""A plugin of pytest: gunicorn's own tests find our classes where gunicorn has its own.

In the tests' process they are put in gunicorn's modules; servers that the tests start are given
our names after ``-k``. The classes that ours are made from stay what they are.
"""

from __future__ import annotations

import importlib.util
import subprocess
from typing import Any

import gunicorn
from gunicorn.workers import SUPPORTED_WORKERS, sync

import gracefulworker
from gracefulworker import seam

#: gunicorn's names of them.
NAMES = {"sync", "gthread", "gevent"}

sync.SyncWorker = gracefulworker.sync
if importlib.util.find_spec("gevent"):
    from gunicorn.workers import ggevent

    ggevent.GeventWorker = gracefulworker.gevent
else:
    NAMES.remove("gevent")
if gunicorn.version_info[:2] >= seam.GTHREAD:
    from gunicorn.workers import gthread

    gthread.ThreadWorker = gracefulworker.gthread
else:
    NAMES.remove("gthread")

SUPPORTED_WORKERS.update((name, f"gracefulworker.{name}") for name in NAMES)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """Starts a server with our worker in place of gunicorn's."""

    def __init__(self, args: Any, *more: Any, **options: Any) -> None:
        if not isinstance(args, str):
            args = [*args]
            for place, name in enumerate(args[1:], 1):
                if args[place - 1] in ("-k", "--worker-class") and name in NAMES:
                    args[place] = f"gracefulworker.{name}"
        super().__init__(args, *more, **options)


subprocess.Popen = Popen  # type: ignore[misc]
