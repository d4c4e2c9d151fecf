"""A worker class of ours that is misspelt: gunicorn's start ends in one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gracefulworker


@pytest.mark.parametrize(
    ("name", "meant"),
    [("gthred", "gthread"), ("GEVENT", "gevent"), ("async", "sync")],
)
def test_the_start_ends_with_the_nearest_name(tmp_path, name, meant):
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-k"]
    ran = subprocess.run(
        [*command, f"gracefulworker.{name}", "app:app"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert ran.stderr.strip() == (
        f"Error: gracefulworker.{name} is not a worker class: did you mean gracefulworker.{meant}?"
    )


def test_anybody_else_is_told_that_there_is_no_such_attribute():
    assert not hasattr(gracefulworker, "gthred")
