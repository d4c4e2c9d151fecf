"""`gracefulworker plan`: what it reads, the picture, and that the picture is to scale."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracefulworker.settings import Settings
from gracefulworker.tools import cli
from gracefulworker.tools.cli.plan import WIDTH, picture

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plan(capsys, tmp_path, monkeypatch):
    """Runs the command in an empty directory; returns its status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = cli.main(["plan", *arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_defaults(plan):
    status, out, err = plan()
    assert (status, err) == (0, "")
    assert out == (
        "shutdown plan: accept 5.0 s, finish within 24.0 s, exit by 29.0 s of 30.0 s\n"
        "\n"
        "SIGTERM    |                                                     seconds\n"
        "LAME_DUCK  |==========                                                  "
        "|   0.0 to   5.0  serves as before, answers say close\n"
        "DRAINING   |          ================================================  "
        "|   5.0 to  29.0  refuses newcomers, finishes the rest\n"
        "margin     |                                                          =="
        "|  29.0 to  30.0  exits\n"
        "SIGKILL    |                                                           X"
        "| at  30.0\n"
        "\n"
        "terminationGracePeriodSeconds: needs at least 30, you set nothing: 30 is assumed,"
        " Kubernetes' default\n"
    )


@pytest.mark.parametrize(
    ("worker", "ours"),
    [
        ("uvicorn_worker.UvicornWorker", "gracefulworker.uvicorn"),
        ("uvicorn.workers.UvicornWorker", "gracefulworker.uvicorn"),
        ("gthread", "gracefulworker.gthread"),
        ("asgi", None),
    ],
)
def test_a_class_that_is_not_ours_is_named(plan, tmp_path, worker, ours):
    """Without the hook nothing holds; with it, the delay."""
    _, out, err = plan("-k", worker)
    hook = "put `from gracefulworker.hooks import when_ready` into the config file"
    use = f"use -k {ours}" if ours else hook
    stops = f"{worker} stops as soon as SIGTERM comes, nothing of this plan holds: {use}"
    assert err == f"warning: {stops}\n"
    assert out.count("  not with this worker class\n") == 2 and "serves as before" not in out
    hook = "from gracefulworker.hooks import when_ready\ngraceful_idle = 1\n"
    (tmp_path / "gunicorn.conf.py").write_text(f"{hook}worker_class = {worker!r}\n")
    _, out, err = plan()
    first, second = err.splitlines()
    more = f": the rest needs -k {ours}" if ours else ""
    has = f"{worker} has the delay by the hook, and then stops in its own way{more}"
    assert first == f"warning: {has}"
    assert second.startswith("warning: graceful_idle: needs a worker class of gracefulworker")
    assert "serves as before\n" in out and "stops in its own way" in out
    _, _, err = plan("-c", "python:gracefulworker.hooks", "-k", worker)
    assert err.startswith(f"warning: {has}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        'worker_class = "gracefulworker.uvicorn"',
        'worker_class = "egg:gracefulworker#uvicorn"',
        'import gracefulworker\nworker_class = "gracefulworker"',
        "import gracefulworker\nclass W(gracefulworker.sync): ...\nworker_class = W",
        'worker_class = "shop.Worker"',  # nobody knows
    ],
)
def test_ours_is_not_remarked_upon(plan, tmp_path, text):
    (tmp_path / "gunicorn.conf.py").write_text(text)
    status, out, err = plan()
    assert (status, err) == (0, "")
    assert "answers say close" in out


def test_chosen_graceful_timeout_needs_a_period(plan):
    _, out, _ = plan("--graceful-timeout", "85", "--graceful-delay", "20")
    assert "\nterminationGracePeriodSeconds: needs at least 106, you set nothing: say it in" in out


def test_what_is_needed_stands_beside_what_is_set(plan):
    given = ["--graceful-timeout", "30", "--graceful-delay", "20", "--graceful-kill-after", "90"]
    _, out, _ = plan(*given)
    assert "needs at least 51, you set 90 (graceful_kill_after)\n" in out
    status, out, err = plan(*given, "--graceful-quiet", "20", "--format", "json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "schema": 1,
        "draining": 20.0,
        "deadline": 50.0,
        "needed": 51,
        "kill_after": 90.0,
        "assumed": None,
        "warnings": [
            "--graceful-quiet 20 has no effect, because the delay of 20 s is over before: lower it,"
            " or raise graceful_delay above it"
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--graceful-quiet", "5"], "--graceful-quiet 5 has no effect"),
        (["--graceful-idle", "40"], "--graceful-idle 40 is cut short"),
        (["--graceful-first-byte", "25"], "--graceful-first-byte 25 is cut short"),
    ],
)
def test_settings_that_contradict_each_other(plan, arguments, sentence):
    """The same sentence is logged at the start of a service."""
    status, _, err = plan(*arguments)
    assert status == 0
    assert err.startswith(f"warning: {sentence}")


def test_the_start_says_it_too(serve):
    server = serve("gracefulworker.sync", delay=1, env={"GRACEFUL_QUIET": "2"})
    line = server.wait_log("^GRACEFUL_QUIET=2 in the environment has no effect, because the delay")
    assert line.level == "WARNING"


def test_a_switch_may_be_given_alone(plan):
    for options in (["--graceful-sigint"], ["--graceful-sigint", "off"]):
        assert plan(*options)[::2] == (0, "")


@pytest.mark.parametrize("options", ([], ["-u"]))  # flushed at its end, and line by line
def test_a_reader_that_leaves_is_no_news(options):
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    command = [sys.executable, *options, "-m", "gracefulworker", "plan"]
    ran = subprocess.run(command, cwd=ROOT, stdout=write_fd, stderr=subprocess.PIPE, text=True)
    os.close(write_fd)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import shop_settings\n", "ModuleNotFoundError: No module named 'shop_settings'"),
        ("import os\nos.environ['DATABASE_URL']\n", "KeyError: 'DATABASE_URL'"),
        ("open('/run/secrets/none')\n", "FileNotFoundError: [Errno 2] No such file or directory"),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines; it is run here"),
    ],
)
def test_a_config_that_needs_the_service_is_told_where_to_run(plan, tmp_path, text, reason):
    (tmp_path / "gunicorn.conf.py").write_text(text)
    status, out, err = plan()
    assert (status, out) == (2, "")
    assert reason in err
    assert "run this in the service's own environment, such as `kubectl exec POD -- " in err


def test_sources_that_name_each_other(plan, tmp_path, monkeypatch):
    (tmp_path / "prod.py").write_text("raw_env = ['GRACEFUL_DELAY=15']\ngraceful_timeout = 40\n")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "-c prod.py")
    assert "accept 15.0 s, finish within 40.0 s" in plan()[1]
    assert "accept 2.0 s, finish within 40.0 s" in plan("--graceful-delay", "2")[1]


def test_sources(plan, tmp_path, monkeypatch):
    """The config file, over it the environment, over that the options."""
    (tmp_path / "gunicorn.conf.py").write_text("graceful_delay = 3\ngraceful_timeout = 40\n")
    assert "accept 3.0 s, finish within 40.0 s" in plan()[1]
    monkeypatch.setenv("GRACEFUL_DELAY", "4")
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--graceful-timeout 50")
    assert "accept 4.0 s, finish within 50.0 s" in plan()[1]
    options = ["--graceful-delay", "6", "--graceful-timeout", "60"]
    assert "accept 6.0 s, finish within 60.0 s" in plan(*options)[1]
    (tmp_path / "other.py").write_text("graceful_kill_after = 50\n")
    assert "of 50.0 s" in plan("-c", "other.py")[1]


def test_module_as_config_file(plan, tmp_path, monkeypatch):
    (tmp_path / "plan_settings.py").write_text("graceful_delay = 7\n")
    assert "accept 7.0 s" in plan("-c", "python:plan_settings")[1]


def test_warning(plan):
    status, _, err = plan("--graceful-timeout", "60", "--graceful-kill-after", "40")
    assert status == 0
    assert err.startswith("warning: graceful_timeout = 60 is cut to 34 s")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--graceful-kill-after", "6"], "--graceful-kill-after 6 leaves no time to finish"),
        (["--graceful-timeout", "soon"], "--graceful-timeout soon is refused by gunicorn"),
        (["-c", "none.py"], "there is no config file none.py\n"),
        (["-c", "."], "the config file . is a directory\n"),
        (["-k", "gracefulworker.gthred"], "is not a worker class: did you mean gracefulworker.gth"),
        (["-k", "egg:gracefulworker#gthred"], "finds no worker class 'egg:gracefulworker#gthred'"),
        (["-k", "gracefulworker"], "only after `import gracefulworker` in its config file: add"),
        (["-k", "gthred"], "gunicorn finds no worker class 'gthred': ours are gracefulworker.sync"),
    ],
)
def test_settings_that_would_stop_the_start(plan, arguments, sentence):
    status, out, err = plan(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("gracefulworker plan: ")
    assert sentence in err


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("WEB_CONCURRENCY", "many", "WEB_CONCURRENCY=many is not a whole number, which gunicorn"),
        ("GUNICORN_CMD_ARGS", "-k gracefulworker.sync --threads 4", "threads = 4 needs another"),
        ("GUNICORN_CMD_ARGS", "--graceful-timeout x", "--graceful-timeout x is refused by gunico"),
        ("GRACEFUL_DELAY", "5s", "GRACEFUL_DELAY=5s in the environment is not a number of seconds"),
    ],
)
def test_variables_that_would_stop_the_start(tmp_path, variable, value, sentence):
    """In a process of its own, since gunicorn reads some when it is imported."""
    command = [sys.executable, "-m", "gracefulworker", "plan"]
    environ = {**os.environ, variable: value}
    ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"gracefulworker plan: {sentence}")
    assert ran.stderr.count("\n") == 1


def test_what_a_config_file_prints_is_no_output(tmp_path):
    """By whatever way."""
    prints = "import os\nprint('1')\nos.write(1, b'2\\n')\nos.system('echo 3')\n"
    (tmp_path / "gunicorn.conf.py").write_text(prints)
    command = [sys.executable, "-m", "gracefulworker", "plan", "--format", "json"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(ran.stdout)["needed"] == 30
    assert sorted(ran.stderr) == ["\n", "\n", "\n", "1", "2", "3"]
    closed = subprocess.run(
        ["sh", "-c", '"$@" 2>&-', "sh", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert closed.returncode == 0 and closed.stderr == ""


def test_usage_error(plan, capsys):
    with pytest.raises(SystemExit) as ended:
        plan("--graceful-delay", "5000")
    assert ended.value.code == 2
    assert "5000 is more than 3600 s, so it is probably in milliseconds" in capsys.readouterr().err


def test_needs_the_core_only(tmp_path):
    (tmp_path / "yaml.py").write_text("raise ModuleNotFoundError(name='yaml')\n")
    command = [sys.executable, "-m", "gracefulworker", "plan"]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


TIMES = st.floats(0, 3600)


@given(TIMES, st.floats(1, 3600), st.none() | TIMES)
def test_picture_is_to_scale(delay, finish, spare):
    period = None if spare is None else delay + finish + 1 + spare
    read = Settings(delay=delay, finish=finish, period=period)
    _, _, head, *rows, kill, _, needed = picture(read).splitlines()
    bars = [row.split("|")[1] for row in (head, *rows, kill)]
    assert {len(bar) for bar in bars} == {WIDTH}
    # Each phase begins where the one before it ends, and together they fill the time.
    assert (
        "".join("=" if "=" in column else " " for column in zip(*bars[1:4], strict=True))
        == "=" * WIDTH
    )
    assert sum(bar.count("=") for bar in bars[1:4]) == WIDTH
    lame_duck = bars[1].count("=")
    end = period or read.needed
    assert abs(lame_duck - WIDTH * delay / end) <= 0.5 + 1e-6
    (least,) = re.findall(r"needs at least (\d+)", needed)
    assert int(least) >= delay + finish + 1 - 0.001
