"""Which gunicorn we lean on.

What may be changed here: the range, together with tox.ini's matrix and setup.cfg, after the suite
has passed on its oldest and its newest.
"""

from __future__ import annotations

import gunicorn

#: From the first to just before the last, as in setup.cfg.
OLDEST = (25, 1)
BEFORE = (28, 0)


def check_gunicorn() -> None:
    """Stop the start on a gunicorn whose methods we have not been tried on.

    :raises RuntimeError: which gunicorn prints as one line, with exit status 1.
    """
    if not OLDEST <= tuple(gunicorn.version_info[:2]) < BEFORE:
        raise RuntimeError(
            f"gracefulworker supports gunicorn {OLDEST[0]}.{OLDEST[1]} to {BEFORE[0] - 1}, and this"
            f" is {gunicorn.__version__}: install one of those, or a newer gracefulworker"
        )
