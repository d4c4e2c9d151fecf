"""What the start refuses, found without a start: for `gunicorn --check-config`, and for `plan`.

gunicorn itself only loads the application there, and neither the worker class nor a setting of
ours. But a config file that imports us is run within `Application.load_config`, and that
application's `run` comes afterwards: there we can look first. Where the config file does not import
us, nothing of ours is loaded, and nothing can be said.

What may be changed here: what is looked at. What needs an arbiter is not: whether
`graceful_probe_bind` can be listened on, and a `when_ready` of the user's own.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from gunicorn.util import load_class

from gracefulworker import seam, settings


def stand_before(frame: FrameType | None) -> None:
    """Put `judge` before the `run` of the application that reads its configuration, if one does.

    :param frame: where we are imported.
    """
    base = sys.modules.get("gunicorn.app.base")
    while base is not None and frame is not None:
        if frame.f_code is base.Application.load_config.__code__:
            application = frame.f_locals["self"]
            application.run = _looking_first(application)
            return
        frame = frame.f_back


def _looking_first(application: Any) -> Callable[[], None]:
    stock: Callable[[], None] = application.run

    def run() -> None:
        """Application.run, which ends the process where there is only something to be checked."""
        if application.cfg.check_config:
            try:
                judge(application.cfg)
            except RuntimeError as error:
                # As BaseApplication.run has it.
                print(f"\nError: {error}\n", file=sys.stderr)
                sys.exit(1)
        stock()

    return run


def judge(cfg: seam.Config) -> None:
    """Look at the worker class and, if it or the hook is ours, at our settings.

    :raises RuntimeError: what the start would say.
    """
    is_ours = judge_class(cfg)
    hooks = sys.modules.get("gracefulworker.hooks")
    if not is_ours:
        if hooks is None or cfg.when_ready is not hooks.when_ready:
            return
        seam.check_gunicorn()
    for sentence in settings.read(cfg, {**os.environ, **cfg.env}).warnings:
        print(f"warning: {sentence}", file=sys.stderr)


def judge_class(cfg: seam.Config) -> bool:
    """Load the worker class; whether it is one of ours.

    :raises RuntimeError: there is none of that name, or it refuses the configuration.
    """
    # Not Config.worker_class, which also has gevent patch this process.
    uri = cfg.settings["worker_class"].get()
    if isinstance(uri, str):
        uri = cfg.worker_class_str  # with threads another one than sync
    try:
        worker_class = load_class(uri)
    except AttributeError:
        raise RuntimeError(f"{uri} is not a worker class") from None
    from gracefulworker.arbiter.crew import OurWorker

    is_ours = isinstance(worker_class, type) and issubclass(worker_class, OurWorker)
    if is_ours:
        worker_class.check_config(cfg, logging.getLogger("gunicorn.error"))
    return is_ours
