"""What stops gunicorn's start in one sentence: a name that is misspelt; also `--check-config`."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest

import gracefulworker


@pytest.fixture
def gunicorn(tmp_path):
    """Runs gunicorn where there is an application."""
    (tmp_path / "app.py").write_text("def app(environ, start_response): ...\n")

    def run(*arguments, **variables):
        return subprocess.run(
            [sys.executable, "-m", "gunicorn", *arguments],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("gthred", "did you mean gracefulworker.gthread?"),
        ("GEVENT", "did you mean gracefulworker.gevent?"),
        ("async", "did you mean gracefulworker.sync?"),
        ("UvicornWorker", "did you mean gracefulworker.uvicorn?"),
        ("workers.gthread", "did you mean gracefulworker.gthread?"),  # a module
        ("", "give gracefulworker.sync, .gthread, .gevent or .uvicorn"),
        ("hooks", "give gracefulworker.sync, .gthread, .gevent or .uvicorn"),
    ],
)
def test_the_start_ends_with_the_nearest_name(gunicorn, name, remedy):
    ran = gunicorn("-b", "127.0.0.1:0", "-k", f"gracefulworker.{name}", "app:app")
    assert ran.returncode == 1
    assert ran.stderr.strip() == f"Error: gracefulworker.{name} is not a worker class: {remedy}"


# -- gunicorn --check-config


OURS = "import gracefulworker\n"
HOOK = "from gracefulworker.hooks import when_ready\n"


@pytest.mark.parametrize(
    ("config", "arguments", "variables", "sentence"),
    [
        (OURS, ["-k", "gracefulworker.sinc"], {}, "did you mean gracefulworker.sync?"),
        (OURS, ["-k", "gracefulworker.sync"], {"GRACEFUL_DELAY": "5s"}, "GRACEFUL_DELAY=5s in the"),
        (OURS, ["-k", "gracefulworker.sync", "--threads", "2"], {}, "threads = 2 needs another"),
        (OURS, ["-k", "gracefulworker.sync", "-e", "GRACEFUL_DELAY=x"], {}, "GRACEFUL_DELAY=x in"),
        (OURS, [], {"GUNICORN_CMD_ARGS": "-k gracefulworker.sinc"}, "did you mean gracefulworker."),
        (OURS + "worker_class = gracefulworker.sync\ngraceful_delay = -1\n", [], {}, "= -1 in the"),
        (OURS, ["-k", "gunicorn.workers.sync.None"], {}, "is not a worker class"),
        ("", ["-c", "python:gracefulworker.hooks"], {"GRACEFUL_DELAY": "5s"}, "is not a number"),
        (HOOK + "graceful_delay = 'x'\n", [], {}, "graceful_delay = 'x' in the config file is not"),
    ],
)
def test_check_config_refuses_what_the_start_refuses(
    gunicorn, tmp_path, config, arguments, variables, sentence
):
    (tmp_path / "gunicorn.conf.py").write_text(config)
    arguments = ["-b", "127.0.0.1:0", *arguments, "app:app"]
    checked = gunicorn("--check-config", *arguments, **variables)
    assert checked.returncode == 1
    assert sentence in checked.stderr
    assert "Traceback" not in checked.stderr
    started = gunicorn(*arguments, **variables)
    assert started.returncode
    assert checked.stderr.strip() in started.stderr or "'str' object is not" in started.stderr


@pytest.mark.parametrize(
    ("config", "arguments", "variables"),
    [
        (OURS, ["-k", "gracefulworker.sync"], {"GRACEFUL_DELAY": "5"}),
        (OURS, ["-k", "gevent"], {"GRACEFUL_DELAY": "5s"}),  # nobody reads it
        (HOOK, ["-k", "gthread"], {}),
        ("", ["-k", "gracefulworker.sinc"], {}),  # nothing of ours is loaded: docs/check.md
    ],
)
def test_check_config_passes_the_rest(gunicorn, tmp_path, config, arguments, variables):
    (tmp_path / "gunicorn.conf.py").write_text(config)
    ran = gunicorn("--check-config", *arguments, "app:app", **variables)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_check_config_says_what_the_start_warns_of_and_loads_the_application(gunicorn, tmp_path):
    (tmp_path / "gunicorn.conf.py").write_text(OURS)
    ran = gunicorn("--check-config", "-k", "gracefulworker.sync", "app:none", GRACEFUL_QUIET="9")
    assert ran.returncode == 1
    assert ran.stderr.startswith("warning: GRACEFUL_QUIET=9 in the environment has no effect")
    assert "Error while loading the application" in ran.stderr


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
