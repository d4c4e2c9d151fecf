"""`phase()` and `draining()` where nobody serves."""

from __future__ import annotations

import subprocess
import sys

import gracefulworker


def test_outside_of_a_worker_it_is_serving():
    assert gracefulworker.phase() is gracefulworker.Phase.SERVING
    assert gracefulworker.draining() is False


def test_asking_needs_no_gevent():
    code = "import sys, gracefulworker as g; g.draining(); sys.exit('gevent' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
