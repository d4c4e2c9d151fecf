"""Server hooks for a gunicorn config file, for any worker class that is not ours.

``-c python:gracefulworker.hooks``, or ``from gracefulworker.hooks import when_ready`` in a config
file, gives it LAME_DUCK before gunicorn's own stop, the plan line, the second SIGTERM, the budget
and the probes of `graceful_probe_bind`. With one of our worker classes it changes nothing:
the class has reached the arbiter by itself.

What may be changed here: what other workers can be given from the arbiter alone.
"""

from __future__ import annotations

from typing import Any

from gracefulworker.arbiter.takeover import Supervisor
from gracefulworker.seam import check_gunicorn


def when_ready(server: Any) -> None:
    """gunicorn's `when_ready` hook; a `when_ready` of your own can call it.

    :param server: the arbiter.
    :raises RuntimeError: on a gunicorn that is not supported, or with a bad setting
        (`gracefulworker.settings.SettingsError`); either stops the start.
    """
    check_gunicorn()
    Supervisor.of(server)
