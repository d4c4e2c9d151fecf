"""Lifts the upper bound of gunicorn's version, for `tox -e next`.

This folder is on PYTHONPATH there, so each Python imports this at its start: the tests' own and
those of the servers that they start. Users have no switch for it, as nobody has tried what they
would get.
"""

import gracefulworker.seam

gracefulworker.seam.BEFORE = (10**6, 0)
