"""`gracefulworker drain`: the delay before SIGTERM, and one delay, not two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from harness import Storm, assert_clean, assert_within, now

from gracefulworker.tools import cli

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux's /proc")

HOOK = "from gracefulworker.hooks import when_ready\n"


@pytest.fixture
def drain(capsys):
    """Runs the command; returns its status and what it said."""

    def run(*arguments):
        status = cli.main(["drain", *map(str, arguments)])
        return status, capsys.readouterr().err

    return run


def begin(server, *arguments):
    """The command as a process of its own, which waits."""
    command = [sys.executable, "-m", "gracefulworker", "drain", "--pid", str(server.pid)]
    process = subprocess.Popen([*command, *arguments])
    server.wait_log("^lame duck:")
    return process


@pytest.mark.contract(1)
def test_then_sigterm_one_delay_and_nothing_lost(serve, worker, drain):
    server = serve(worker, workers=2, delay=0.6)
    with Storm(server.addresses[0], clients=3, path="/sleep/0.01") as storm:
        storm.wait_served(10)
        began = now()
        assert drain("--pid", server.pid) == (0, "")
        over = now()
        assert 0.6 <= over - began
        assert_within(0.75, over, began, "the delay")
        storm.wait_served(10)  # until SIGTERM
        term = server.signal(signal.SIGTERM)
        assert_within(0.1, server.wait_draining().at, term, "draining")
        storm.wait_over()
    assert not storm.losses, storm.census()
    assert not storm.out_of_order
    assert_within(0.5, server.wait_gone(), term, "gone")
    assert_clean(server)
    assert server.wait_log("^lame duck: ").message == (
        "lame duck: drain request received, serving for 0.6 s more, and on until SIGTERM"
    )


def test_in_the_delay_the_answers_say_close_and_what_restarts_is_refused(serve, worker):
    server = serve(worker, delay=0)
    with begin(server) as process:
        assert process.wait(10) == 0
    assert server.fetch().closes
    server.signal(signal.SIGHUP)
    server.wait_log("^SIGHUP refused")
    assert server.fetch().kind == "response"
    assert not server.grep("^draining")
    server.signal(signal.SIGTERM)
    assert_clean(server)


def test_a_sigterm_in_the_delay_does_not_cut_it_short(serve):
    server = serve("gracefulworker.gthread", delay=0.8)
    began = now()
    with begin(server) as process:
        server.signal(signal.SIGTERM)
        assert server.wait_draining().at - began >= 0.79
        assert process.wait(10) == 0
    assert_clean(server)


def test_stop_sends_sigterm_too(serve, worker, drain):
    server = serve(worker, delay=0.3)
    began = now()
    assert drain("--pid", server.pid, "--stop") == (0, "")
    assert server.wait_gone() - began >= 0.3
    assert_clean(server)


def test_after_a_late_sigterm_there_is_all_the_time_to_finish(serve):
    """The time until SIGTERM is nobody's: a deadline that counts it would cut at once."""
    server = serve("gracefulworker.gthread", delay=0, config="graceful_timeout = 1\n")
    client, held = server.hold("it")
    with begin(server) as process:
        assert process.wait(10) == 0
    with pytest.raises(AssertionError, match="passed with 0"):
        server.wait_log("^draining", timeout=1.2)
    server.signal(signal.SIGTERM)
    server.wait_draining()
    held.release()
    assert client.ending().closes
    assert_clean(server)


def test_in_a_service_that_is_stopping_it_waits_for_the_delay(serve, drain):
    server = serve("gracefulworker.sync", delay=0.4)
    server.terminate()
    assert drain("--pid", server.pid) == (0, "")
    assert now() - server.term_at >= 0.39


def test_by_pidfile_and_for_another_worker_class(serve, drain, tmp_path):
    pidfile = tmp_path / "pid"
    server = serve("gthread", delay=0.2, config=HOOK, options=("--pid", str(pidfile)))
    assert drain("--pidfile", pidfile) == (0, "")
    assert server.fetch().kind == "response"
    term = server.signal(signal.SIGTERM)
    assert_within(0.1, server.wait_draining().at, term, "draining")


def test_with_quiet_it_returns_early(serve, drain):
    server = serve("gracefulworker.gthread", delay=60, env={"GRACEFUL_QUIET": "0.3"})
    began = now()
    assert drain("--pid", server.pid) == (0, "")
    assert_within(0.6, now(), began, "the delay")


# -- whom it finds


def only(monkeypatch, tmp_path, *pids):
    """A /proc with these processes only: the machine has other people's services."""
    for pid in pids:
        (tmp_path / str(pid)).symlink_to(f"/proc/{pid}")
    (tmp_path / "self").symlink_to("/proc/self")
    monkeypatch.setattr("gracefulworker.tools.cli.drain.PROC", tmp_path)


def test_it_looks_for_the_arbiter(serve, drain, monkeypatch, tmp_path):
    server = serve("gracefulworker.gthread", workers=2, delay=0.1)
    only(monkeypatch, tmp_path, os.getpid(), server.pid, *server.worker_pids)
    assert drain() == (0, "")
    assert server.grep("^lame duck")


def test_several_and_none(serve, drain, monkeypatch, tmp_path):
    servers = [serve("gracefulworker.sync") for _ in range(2)]
    first, second = sorted(server.pid for server in servers)
    only(monkeypatch, tmp_path, first, second)
    status, said = drain()
    assert status == 1
    assert f"there are several to choose from ({first}, {second}): give --pid or --pidfile" in said
    for name in (first, second):
        (tmp_path / str(name)).unlink()
    status, said = drain()
    assert status == 1
    assert "no gunicorn that gracefulworker looks after is running here" in said
    assert not any(server.grep("^lame duck") for server in servers)


def test_a_stock_gunicorn_is_left_alone(serve, drain):
    server = serve("sync")
    status, said = drain("--pid", server.pid)
    assert status == 1
    assert f"process {server.pid} (" in said and "start it with -k gracefulworker.gthread" in said
    server.signal(signal.SIGURG)  # nor would it mind
    assert server.fetch().kind == "response"


def test_a_worker_is_not_the_main_process(serve, drain):
    server = serve("gracefulworker.sync")
    status, said = drain("--pid", server.worker_pids[0])
    assert status == 1
    assert f"is not gunicorn's main process: that is {server.pid}" in said


def test_nobody_there(drain, tmp_path):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert drain("--pid", process.pid) == (
        1,
        f"gracefulworker drain: there is no process {process.pid}\n",
    )
    status, said = drain("--pidfile", tmp_path / "none")
    assert status == 1 and "there is no process id in" in said


def test_the_arbiter_goes_meanwhile(serve):
    server = serve("gracefulworker.sync", delay=60)
    process = begin(server)
    server.signal(signal.SIGKILL)  # and nobody reaps it yet
    assert process.wait(10) == 1


def test_elsewhere_it_says_what_it_needs(drain, monkeypatch, tmp_path):
    monkeypatch.setattr("gracefulworker.tools.cli.drain.PROC", tmp_path)
    status, said = drain()
    assert status == 1 and "this needs Linux" in said
