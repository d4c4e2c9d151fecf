"""Which gunicorn we lean on.

What may be changed here: the range, together with tox.ini's matrix and setup.cfg, after the suite
has passed on its oldest and its newest.
"""

from __future__ import annotations

from typing import Any

import gunicorn

#: From the first to just before the last, as in setup.cfg.
OLDEST = (23, 0)
BEFORE = (28, 0)

#: It never notices that a worker has ended, nor would it in stock (its handle_cld is missing).
BROKEN = (24, 0)

#: gthread's loop has been in pieces that can be overridden since this one.
GTHREAD = (24, 1)


def check_gunicorn() -> None:
    """Stop the start on a gunicorn whose methods we have not been tried on.

    :raises RuntimeError: which gunicorn prints as one line, with exit status 1.
    """
    version = tuple(gunicorn.version_info[:2])
    if not OLDEST <= version < BEFORE or version == BROKEN:
        raise RuntimeError(
            f"gracefulworker supports gunicorn {OLDEST[0]} to {BEFORE[0] - 1} without"
            f" {BROKEN[0]}.{BROKEN[1]}, and this is {gunicorn.__version__}: install one of those,"
            " or a newer gracefulworker"
        )


def check_gthread() -> None:
    """Stop the start of gthread on a gunicorn from before its loop was rewritten.

    :raises RuntimeError: as above.
    """
    if tuple(gunicorn.version_info[:2]) < GTHREAD:
        raise RuntimeError(
            f"gracefulworker.gthread needs gunicorn {GTHREAD[0]}.{GTHREAD[1]} or newer, and this is"
            f" {gunicorn.__version__}: install one, or use gracefulworker.sync or .gevent"
        )


def offers_http2(cfg: Any) -> bool:
    """Whether gunicorn (25 on) is asked to speak HTTP/2, and the package h2 is there."""
    if "h2" not in getattr(cfg, "http_protocols", ()):
        return False
    from gunicorn.http2 import is_http2_available

    return bool(is_http2_available())
