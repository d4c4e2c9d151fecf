"""The process is gone when there is nothing left to wait for (contract 6)."""

from __future__ import annotations

import gzip
import re
import signal

import pytest
from harness import Server, assert_clean, assert_within

pytestmark = pytest.mark.contract(6)

HOOKS = """
import os
def say(text):
    os.write(2, f"{text}\\n".encode())
def worker_exit(server, worker):
    say(f"user's worker_exit of {worker.pid}")
def child_exit(server, worker):
    say(f"user's child_exit of {worker.pid}")
def on_exit(server):
    say("user's on_exit")
"""


@pytest.mark.parametrize("workers", (1, 3))
def test_a_quiet_service_is_gone_with_the_delay(serve, worker, workers):
    server = serve(worker, workers=workers, delay=0.4)
    over = server.terminate() + 0.4
    gone = server.wait_gone()
    assert gone >= over
    assert_within(0.3, gone, over, "gone after the delay")
    assert_clean(server)


def test_without_a_delay_it_is_gone_at_once(serve, worker):
    server = serve(worker, delay=0)
    term = server.signal(signal.SIGTERM)
    assert_within(0.3, server.wait_gone(), term, "gone after SIGTERM")
    assert_clean(server)


def test_gone_after_the_last_request(serve, worker):
    server = serve(worker, workers=2, delay=0.3)
    client, held = server.hold("it")
    server.terminate()
    server.wait_draining()
    held.release()
    end = client.ending()
    assert (end.body, end.closes) == (b"gated", True)
    # The client reads its answer and does not close: that is nobody's business either.
    assert_within(0.3, server.wait_gone(), end.at, "gone after the last answer")
    assert_clean(server)


@pytest.mark.tracker(2706, 2716)
def test_a_background_thread_does_not_hold_the_exit(serve, worker):
    """One that nobody can change, with graceful_threads = False."""
    server = serve(worker, delay=0.3, env={"APP_THREAD": "1", "GRACEFUL_THREADS": "no"})
    over = server.terminate() + 0.3
    assert_within(0.3, server.wait_gone(), over, "gone after the delay")
    assert_clean(server)


@pytest.mark.control(6)
@pytest.mark.tracker(2706, 2716)
@pytest.mark.parametrize("stock", ("sync", "gthread"))
def test_a_background_thread_does_not_hold_the_exit_on_stock(serve, stock):
    """The interpreter waits for the thread until the arbiter's SIGKILL."""
    server = serve(stock, env={"APP_THREAD": "1"}, config="graceful_timeout = 1\n")
    term = server.signal(signal.SIGTERM)
    assert server.wait_gone() - term > 0.9


def exit_lines(server):
    pids = [str(pid) for pid in server.worker_pids]
    lines = [line.text for line in server.lines if line.text.startswith("user's")]
    return sorted(
        re.sub("|".join(pids), lambda pid: f"worker {pids.index(pid[0])}", line) for line in lines
    )


def test_the_users_exit_code_runs_as_on_stock(serve, worker):
    """worker_exit and on_exit hooks and atexit functions: each once, where stock runs them."""
    found = {}
    for name in (worker, worker.split(".")[1]):
        server = serve(name, workers=2, delay=0, config=HOOKS, env={"APP_ATEXIT": "user's atexit"})
        server.signal(signal.SIGTERM)
        server.wait_gone()
        found[name] = exit_lines(server)
    assert found[worker] == found[worker.split(".")[1]]
    assert found[worker].count("user's atexit") == 2
    assert {"user's on_exit", "user's worker_exit of worker 0"} <= set(found[worker])


def test_the_users_exit_code_may_take_its_time(serve, worker):
    slow = HOOKS + "import time\ndef worker_exit(server, worker):\n    time.sleep(0.7)\n"
    slow += "    say('user flushed')\n"
    server = serve(worker, delay=0, config=slow)
    server.signal(signal.SIGTERM)
    server.wait_log("^user flushed")
    assert_clean(server)


# What the interpreter owes: tests/served/exits.py


@pytest.fixture
def leave_behind(serve, tmp_path):
    """Starts a server of an application that has been asked for each of these."""

    def start(worker, *routes, **options):
        server = serve(worker, app="exits:app", env={"EXITS": str(tmp_path)}, **options)
        for route in routes:
            server.fetch(route)
        return server

    return start


def test_files_are_flushed_and_temporary_ones_gone(leave_behind, worker, tmp_path):
    for name in (worker.split(".")[1], worker):
        server = leave_behind(name, "/files", delay=0)
        server.signal(signal.SIGTERM)
        server.wait_gone()
        assert (tmp_path / "text").read_text() == "buffered"
        assert gzip.decompress((tmp_path / "packed").read_bytes()) == b"packed"
        assert {one.name for one in tmp_path.iterdir()} == {"text", "packed"}
        for one in tmp_path.iterdir():
            one.unlink()


def test_a_pool_of_processes_is_told(leave_behind, worker):
    """Its processes hold the log, too: `wait_gone` waits for them."""
    server = leave_behind(worker, "/pool", delay=0)
    server.signal(signal.SIGTERM)
    assert server.wait_gone() - server.lines[-1].at < 1
    assert_clean(server)


@pytest.mark.parametrize("how", ("SIGTERM", "SIGHUP"))
def test_an_executor_s_jobs_are_done(leave_behind, worker, how, tmp_path):
    server = leave_behind(worker, "/jobs", delay=0)
    server.signal(signal.Signals[how])
    if how == "SIGHUP":
        server.wait_log("^Worker exiting")
        server.wait_log("^app imported", count=2)
        server.signal(signal.SIGTERM)
    server.wait_gone()
    assert (tmp_path / "job").read_text() == "done"
    assert_clean(server)


SHORT = "graceful_timeout = 2\n"


@pytest.mark.parametrize("engine", ("sync", "gthread"))  # under gevent threads are daemons
def test_what_holds_the_exit_is_said_and_named_at_the_deadline(leave_behind, engine):
    worker = f"gracefulworker.{engine}"
    server = leave_behind(worker, "/endless", delay=0, config=SHORT)
    term = server.signal(signal.SIGTERM)
    said = server.wait_log("^exit: waiting for thread 'endless'")
    assert "graceful_threads = False" in said.text and said.at - term >= 1
    server.wait_log("^cut at the deadline: the exit, held by thread 'endless', which is at:")
    server.wait_gone()
    assert server.status == 5


def test_an_atexit_function_is_named_at_the_deadline(leave_behind, worker):
    server = leave_behind(worker, "/atexit", delay=0, config=SHORT)
    server.signal(signal.SIGTERM)
    server.wait_log("^exit: waiting for atexit function exits.hang at ")
    server.wait_log("^cut at the deadline: the exit, held by atexit function exits.hang")
    server.wait_gone()
    assert server.status == 5


@pytest.mark.parametrize("engine", ("sync", "gthread"))  # gevent cannot sleep then
def test_the_end_of_the_modules_has_a_bound_too(leave_behind, engine):
    """No thread of Python's runs any more; faulthandler says where it is."""
    server = leave_behind(f"gracefulworker.{engine}", "/del", delay=0, config=SHORT)
    term = server.signal(signal.SIGTERM)
    server.wait_gone()
    assert server.gone_at - term < 5
    assert server.grep("in __del__") and server.status == 5


def test_a_request_s_sys_exit_costs_nobody_else_anything(leave_behind):
    server = leave_behind("gracefulworker.gthread", delay=0)
    others = [server.connect() for _ in range(3)]
    server.fetch("/exit")
    for other in others:
        assert other.ask("/fast").body == b"ok"
    server.signal(signal.SIGTERM)
    server.wait_gone()
    assert_clean(server)


@pytest.mark.parametrize("worker_class", ("sync", "gracefulworker.sync"))
def test_sys_exit_at_import_says_its_words(serve, worker_class):
    config = "def post_fork(server, worker):\n    raise SystemExit('DATABASE_URL is missing')\n"
    server = serve(worker_class, config=config, ready=False)
    server.wait_log("^DATABASE_URL is missing")


@pytest.mark.parametrize("worker_class", ("sync", "gracefulworker.sync"))
def test_the_profile_is_written(worker_class, serve, monkeypatch):
    """What runs gunicorn has a `finally` of its own (coverage run, python -m cProfile)."""
    command = Server._command

    def profiled(self, words):
        words, more = command(self, words)
        return [words[0], "-m", "cProfile", "-o", str(self.dir / "profile"), *words[1:]], more

    monkeypatch.setattr(Server, "_command", profiled)
    server = serve(worker_class, delay=0)
    server.signal(signal.SIGTERM)
    server.wait_gone()
    assert (server.dir / "profile").stat().st_size > 1000
