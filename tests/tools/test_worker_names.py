"""A worker class of ours that is misspelt: gunicorn's start ends in one sentence."""

from __future__ import annotations

import inspect
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


def test_the_workers_are_listed():
    """All that is listed is there: `help` asks for each."""
    assert gracefulworker._WORKERS.keys() <= {*dir(gracefulworker)}
    members = dict(inspect.getmembers(gracefulworker))
    assert members["gthread"] is gracefulworker.gthread


def test_what_cannot_be_had_is_not_listed():
    hidden = "import sys; sys.modules['gevent'] = None"
    code = f"{hidden}; import gracefulworker as g, inspect; print(*dict(inspect.getmembers(g)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    names = ran.stdout.split()
    assert "sync" in names and "gevent" not in names, ran.stderr
