"""gunicorn workers that lose no request when a pod starts and stops.

``gunicorn -k gracefulworker.gthread app:app`` (or ``.sync``, ``.gevent``, ``.uvicorn``) is all that
is needed; a config file that has ``import gracefulworker`` makes ``-k gracefulworker`` mean
gthread. The phases that lead to the end are described in `gracefulworker.phases`; the application
can ask for its own with `phase` and `draining`.

What may be changed here: only the names that users write. The worker classes are looked up when
they are asked for, so that this import needs neither gevent, uvicorn nor a gunicorn that we
support.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from gunicorn.workers import SUPPORTED_WORKERS

from gracefulworker.phases import Phase
from gracefulworker.seam import check_gunicorn
from gracefulworker.shared.current import draining, phase

if "gunicorn.app.base" in sys.modules:  # gunicorn runs, and its config file imports us, perhaps
    from gracefulworker import check_config as _check_config

    _check_config.stand_before(sys._getframe(1))

__all__ = ["Phase", "draining", "phase"]

__version__ = "0.1.0"

_WORKERS = {
    "sync": ("gracefulworker.workers.sync", "SyncWorker"),
    "gthread": ("gracefulworker.workers.gthread", "ThreadWorker"),
    "gevent": ("gracefulworker.workers.ggevent", "GeventWorker"),
    "uvicorn": ("gracefulworker.workers.uvicorn", "UvicornWorker"),
}

#: What a worker needs beside gunicorn: the module, and the extra that has the same name as it.
_NEEDED = {"gevent": "gevent", "uvicorn": "uvicorn_worker"}

# `-k NAME` without a dot is looked up only here (gunicorn.util.load_class).
SUPPORTED_WORKERS["gracefulworker"] = "gracefulworker.gthread"


if TYPE_CHECKING:
    # What is looked up, for `class W(gracefulworker.gthread)`; any other name is a mistake.
    from gracefulworker.workers import ggevent as _ggevent
    from gracefulworker.workers import gthread as _gthread
    from gracefulworker.workers import sync as _sync
    from gracefulworker.workers import uvicorn as _uvicorn

    sync = _sync.SyncWorker
    gthread = _gthread.ThreadWorker
    gevent = _ggevent.GeventWorker
    uvicorn = _uvicorn.UvicornWorker


def _look_up(name: str) -> Any:
    """The worker class behind `-k gracefulworker.NAME` (PEP 562).

    :raises RuntimeError: on a gunicorn that is not supported, for gevent without gevent (uvicorn
        without uvicorn-worker), and in gunicorn's own look-up for a name that is no worker's.
    """
    if name not in _WORKERS:
        raise missing(__name__, name)
    check_gunicorn()
    needed = _NEEDED.get(name)
    if needed is not None and importlib.util.find_spec(needed) is None:
        raise RuntimeError(
            f"gracefulworker.{name} needs {needed}: pip install 'gracefulworker[{name}]'"
        )
    module, worker = _WORKERS[name]
    return getattr(importlib.import_module(module), worker)


if not TYPE_CHECKING:
    __getattr__ = _look_up


def __dir__() -> list[str]:
    """What is there, and the workers that can be had here: `help` asks for all that is listed."""
    names = {*globals()}
    for name in _WORKERS:
        with contextlib.suppress(RuntimeError, ImportError):  # not installed, or half of it
            _look_up(name)
            names.add(name)
    return sorted(names)


def missing(module: str, name: str) -> Exception:
    """What `module`, of which a function named `__getattr__` calls this, has to say of `name`."""
    # gunicorn.util.load_class is called in a property of its Config, whose __getattr__ takes an
    # AttributeError for a setting that is to be looked up: it would go on with the name itself, as
    # text, and call that. Anybody else (hasattr, an import) wants the AttributeError.
    if sys._getframe(2).f_globals.get("__name__") != "gunicorn.util":
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    if difflib.get_close_matches(name.lower(), _WORKERS, 1, 0.5):
        remedy = f"did you mean gracefulworker.{nearest_worker(name)}?"
    else:
        *most, last = _WORKERS
        remedy = f"give gracefulworker.{', .'.join(most)} or .{last}"
    return RuntimeError(f"{module}.{name} is not a worker class: {remedy}")


def nearest_worker(name: str) -> str:
    """The worker whose name is most like `name`: ``gthred`` was meant to be ``gthread``."""
    return difflib.get_close_matches(name.lower(), _WORKERS, 1, 0.0)[0]
