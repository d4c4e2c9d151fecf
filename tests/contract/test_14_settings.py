"""Bad settings stop the start of a running gunicorn with one sentence (contract 14).

How each is read and fitted, and all the sentences: unit/test_settings.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from harness import assert_clean

pytestmark = pytest.mark.contract(14)

HOOK = """
import os

def on_starting(server):
    from gracefulworker import settings
    print(settings.read(server.cfg, os.environ).plan())
    raise SystemExit(0)
"""


def gunicorn(directory, *arguments, **environ):
    """Run a real gunicorn whose config file reads the settings before anything is bound."""
    return subprocess.run(
        [sys.executable, "-m", "gunicorn", *arguments, "service:app"],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(directory), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("file", "arguments", "environ"),
    [
        ("gunicorn.conf.py", [], {}),
        ("service_conf.py", ["-c", "service_conf.py"], {}),
        ("service_conf.py", ["-c", "python:service_conf"], {}),
        ("service_conf.py", [], {"GUNICORN_CMD_ARGS": "-c python:service_conf"}),
        ("service_conf.py", [], {"GUNICORN_CMD_ARGS": "-c file:service_conf.py"}),
    ],
)
def test_a_running_gunicorn_finds_its_file(tmp_path, file, arguments, environ):
    (tmp_path / file).write_text("graceful_delay = 3\ngraceful_kill_after = 60\n" + HOOK)
    done = gunicorn(tmp_path, *arguments, **environ)
    assert done.stdout == (
        "shutdown plan: accept 3.0 s, finish within 30.0 s, exit by 33.0 s of 60.0 s\n"
    ), done
    assert done.returncode == 0


def test_gunicorns_own_environment_option_wins_over_the_file(tmp_path):
    (tmp_path / "gunicorn.conf.py").write_text("graceful_delay = 3\n" + HOOK)
    done = gunicorn(tmp_path, "-e", "GRACEFUL_DELAY=4")
    assert done.stdout.startswith("shutdown plan: accept 4.0 s, "), done


@pytest.mark.parametrize(
    ("line", "environ", "sentence"),
    [
        ("", {"GRACEFUL_DELAY": "soon"}, "GRACEFUL_DELAY=soon in the environment is not a number"),
        ("graceful_delay = 5000", {}, "graceful_delay = 5000 in the config file is more than"),
        ("graceful_delya = 3", {}, "graceful_delya = 3 in the config file is not a setting"),
        ("graceful_kill_after = 3", {}, "graceful_kill_after = 3 in the config file leaves no"),
    ],
)
def test_bad_settings_stop_a_running_gunicorn(tmp_path, line, environ, sentence):
    (tmp_path / "gunicorn.conf.py").write_text(f"{line}\n{HOOK}")
    done = gunicorn(tmp_path, **environ)
    assert done.returncode == 1
    errors = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert [text.startswith(f"Error: {sentence}") for text in errors] == [True], done.stderr
    assert "Traceback" not in done.stderr
    assert "Listening at" not in done.stderr


@pytest.mark.control(14)
def test_a_misspelt_setting_is_passed_over_on_stock(serve):
    """Stock runs the config file and takes what it knows: the service starts, and says nothing."""
    server = serve("sync", config="graceful_timeuot = 60\n")
    assert server.fetch().kind == "response"
    assert not server.grep("graceful_timeuot")


@pytest.mark.parametrize(
    ("line", "sentence"),
    (
        ("graceful_delay = 'soon'", "keeping the former settings"),
        ("graceful_probe_bind = '192.0.2.1:80'", "probes are answered where they were"),
    ),
)
def test_a_slip_in_a_reloaded_file_ends_no_service(serve, worker, line, sentence):
    server = serve(worker, config="graceful_delay = 0.4\n")
    (server.dir / "config.py").write_text(f"graceful_delay = 0.4\n{line}\n")
    server.signal(signal.SIGHUP)
    server.wait_log(f"^{line.split()[0]} = .*; {sentence}")
    server.wait_log("^Worker exiting")
    assert server.fetch().body == b"fast"
    server.terminate()
    server.wait_log("^lame duck: .* 0.4 s")
    assert_clean(server)


#: What `-k` names is another class after the first HUP.
SWITCHED = """
import pathlib, sys, types
import gunicorn.workers.sync
import gracefulworker
where = sys.modules.setdefault("switched", types.ModuleType("switched"))
if pathlib.Path({directory!r}, "switched").exists():
    where.Worker = gracefulworker.sync
    {line}
else:
    where.Worker = gunicorn.workers.sync.SyncWorker
"""


@pytest.mark.parametrize(
    ("line", "plan"),
    (
        ("graceful_delay = 0.4", "^shutdown plan: accept 0.4 s"),
        ("graceful_delay = 'soon'", "^graceful_delay = 'soon' .*; using the defaults"),
    ),
)
def test_a_reload_brings_our_workers_into_a_service_that_runs(serve, tmp_path, line, plan):
    config = SWITCHED.format(directory=str(tmp_path), line=line)
    server = serve("switched.Worker", config=config, delay=None)
    (tmp_path / "switched").touch()
    server.signal(signal.SIGHUP)
    server.wait_log(plan)
    server.wait_log("^Worker exiting")
    assert server.fetch().body == b"fast"
    server.terminate()
    assert server.fetch().closes
    assert_clean(server)
