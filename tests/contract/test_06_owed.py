"""A process ends by the interpreter's own shutdown: what Python owes is done (contract 6).

Each case runs on the stock worker of the same name too: what that does is what is right.
"""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys

import pytest
from harness import assert_clean, assert_within, now, stock_of
from harness.server import SERVED

pytestmark = pytest.mark.contract(6)

#: Long enough that nothing ends by it.
PATIENT = "graceful_timeout = 20\n"


@pytest.fixture(params=("ours", "stock"))
def either(request, worker):
    """Our worker, and the stock one of the same name."""
    if request.param == "stock" and "uvicorn" in worker:
        pytest.skip("it raises its SIGTERM again, and dies of it: nothing is done")
    return worker if request.param == "ours" else stock_of(worker)


@pytest.fixture
def owing(serve, tmp_path):
    def start(worker, **options):
        env = {"OWED": str(tmp_path), **options.pop("env", {})}
        return serve(worker, app="owed:app", ready=False, delay=0, env=env, **options)

    return start


def end(server):
    """SIGTERM, to the end of all; status 0, and the last line is said if it is ours."""
    server.signal(signal.SIGTERM)
    if server.worker.startswith("gracefulworker"):
        assert_clean(server)
    else:
        server.wait_gone()
        assert server.status == 0


def test_buffers_are_flushed_and_finalizers_run(owing, either, tmp_path):
    server = owing(either)
    assert server.fetch("/files").body == b"files"
    end(server)
    assert (tmp_path / "plain").read_text() == "plain"
    assert (tmp_path / "table").read_bytes() == b"a,b\r\n"
    assert gzip.open(tmp_path / "packed", "rt").read() == "packed"
    assert [line.text for line in server.lines if "user's __del__" in line.text]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "plain", "table"]


@pytest.mark.parametrize("where", ("/in_executor", "/in_thread"))
def test_a_job_is_let_finish(owing, either, where, tmp_path):
    if "gevent" in either and (where == "/in_thread" or either == "gevent"):
        pytest.skip("a patched thread is a greenlet, which nobody waits for; stock waits for none")
    server = owing(either, config=PATIENT)
    assert server.fetch(where).status == 200
    held = server.gate.entered("job")
    server.signal(signal.SIGTERM)
    server.wait_log("^Worker exiting")
    if either.startswith("gracefulworker"):
        server.wait_log("^exit: waiting for thread .*graceful_threads = False")
    held.release()
    server.wait_gone()
    assert server.status == 0
    assert (tmp_path / "job").read_text() == "done\n"


@pytest.mark.parametrize("how", ("hup", "max_requests"))
def test_a_job_is_let_finish_when_a_worker_is_recycled(owing, worker, how, tmp_path):
    options = ("--max-requests", "1") if how == "max_requests" else ()
    server = owing(worker, config=PATIENT, options=options)
    assert server.fetch("/in_executor").status == 200
    held = server.gate.entered("job")
    if how == "hup":
        server.signal(signal.SIGHUP)
    server.wait_log("^Worker exiting")
    held.release()
    end(server)
    assert (tmp_path / "job").read_text() == "done\n"


def test_threads_are_not_waited_for_when_that_is_asked(owing, worker):
    server = owing(worker, env={"GRACEFUL_THREADS": "false"})
    assert server.fetch("/in_thread").status == 200
    server.gate.entered("job")
    term = server.signal(signal.SIGTERM)
    assert_within(0.5, server.wait_gone(), term, "gone")
    assert_clean(server)


def test_at_the_deadline_what_holds_the_exit_is_named(owing, worker):
    server = owing(worker, config=SHORT)
    where, name = "/in_thread", "'the job'"
    if "gevent" in worker:
        where, name = "/in_executor", "'ThreadPoolExecutor"
    assert server.fetch(where).status == 200
    server.gate.entered("job")
    term = server.signal(signal.SIGTERM)
    assert_within(2.8, server.wait_gone(), term, "gone")
    assert server.status == 5
    assert server.grep(f"^cut at the deadline: the exit, held by thread {name}")
    assert [line for line in server.lines if "in job" in line.text], "where its code stands"


SHORT = "graceful_timeout = 2\n"


def test_an_atexit_function_is_named_at_the_deadline(owing, worker):
    server = owing(worker, config=SHORT)
    server.fetch("/hanging_atexit")
    server.signal(signal.SIGTERM)
    server.wait_log("^exit: waiting for atexit function owed.hang at ")
    server.wait_log("^cut at the deadline: the exit, held by atexit function owed.hang")
    server.wait_gone()
    assert server.status == 5


@pytest.mark.parametrize("engine", ("sync", "gthread"))  # gevent cannot sleep then
def test_the_end_of_the_modules_has_a_bound_too(owing, engine):
    """No thread of Python's runs any more; faulthandler says where it is."""
    server = owing(f"gracefulworker.{engine}", config=SHORT)
    server.fetch("/hanging_del")
    term = server.signal(signal.SIGTERM)
    assert server.wait_gone() - term < 5
    assert server.grep("in __del__") and server.status == 5


@pytest.mark.parametrize("preload", (False, True), ids=("used", "preloaded"))
def test_a_pool_of_processes_does_not_hold_the_exit(owing, worker, preload):
    options = ("--preload",) if preload else ()
    env = {"OWED_PRELOAD": "1"} if preload else {}
    server = owing(worker, options=options, env=env)
    if not preload:  # a forked process cannot use its parent's
        assert server.fetch("/in_processes").body == b"[0, 1, 4, 9]"
    assert server.fetch().body == b"ok"
    term = server.signal(signal.SIGTERM)
    assert_within(1.0, server.wait_gone(), term, "gone, with all processes")
    assert_clean(server)


def test_a_pool_of_processes_is_told_though_no_thread_is_waited_for(owing, worker):
    """Else it would wait for work until the deadline."""
    server = owing(worker, config=PATIENT, env={"GRACEFUL_THREADS": "false"})
    assert server.fetch("/in_processes").body == b"[0, 1, 4, 9]"
    term = now()
    end(server)
    assert server.gone_at - term < 10


def test_a_job_in_another_process_is_ended_at_the_deadline(owing, worker):
    """Its process is not left behind: the server is gone only when all of its processes are."""
    server = owing(worker, config=SHORT)
    assert server.fetch("/in_process").status == 200
    server.gate.entered("job")
    server.signal(signal.SIGTERM)
    server.wait_log("^cut at the deadline: the exit, held by ")
    server.wait_gone()
    assert server.status == 5


def test_a_requests_own_exit_costs_nobody_else_anything(owing, either):
    """sync and gevent, ours and stock, end that worker; gthread goes on."""
    if "gthread" not in either:
        pytest.skip("the worker is that request's only thread")
    server = owing(either, config=PATIENT)
    held = [server.hold(f"it{number}") for number in range(3)]
    server.fetch("/leave")
    for client, at in held:
        at.release()
        assert client.ending().body == b"gated"
    end(server)


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGQUIT), ids=("SIGINT", "SIGQUIT"))
@pytest.mark.parametrize("kind", ("gracefulworker.gthread", "gthread"))
def test_a_quick_stop_lets_a_thread_answer(serve, kind, number):
    server = serve(kind, config=PATIENT)
    client, held = server.hold("it")
    server.signal(number)
    server.wait_log("^Worker exiting")
    held.release()
    assert client.ending().body == b"gated"
    server.wait_gone()


def test_the_words_of_an_exit_at_import_are_said(serve, either, tmp_path):
    text = "import sys\nsys.exit('DATABASE_URL is missing')\n"
    (tmp_path / "refusing.py").write_text(text)
    options = ("--pythonpath", str(tmp_path))
    server = serve(either, app="refusing:app", ready=False, options=options)
    server.wait_log("^DATABASE_URL is missing")


FORKING = """
import os, sys
def fork():
    if not os.fork():
        sys.exit(0)
def {hook}(server{more}):
    fork()
def graceful_on_drained(server, report):
    server.log.info("drained")
graceful_timeout = 3
"""


@pytest.mark.parametrize("hook", ("on_exit", "worker_exit"))
def test_a_process_that_exit_code_forks_ends_by_itself_and_says_nothing(serve, worker, hook):
    more = ", worker" if hook == "worker_exit" else ""
    server = serve(worker, delay=0, config=FORKING.format(hook=hook, more=more))
    term = server.signal(signal.SIGTERM)
    assert_within(1.5, server.wait_gone(), term, "gone, with all processes")
    assert_clean(server)
    assert len(server.grep("^stopped: ")) == len(server.grep("^drained")) == 1


def test_a_process_that_the_application_forks_ends_by_itself(owing):
    """And the worker's deadline still holds."""
    server = owing("gracefulworker.sync", config="graceful_timeout = 1\n")
    server.fetch("/fork")
    client, held = server.hold("it")
    server.signal(signal.SIGTERM)
    assert client.ending().status == 503
    server.wait_gone()
    held.release()


EMBEDDED = """
import sys, threading
from gunicorn.app.base import BaseApplication

class Application(BaseApplication):
    def load_config(self):
        self.cfg.set("worker_class", sys.argv[1])
        self.cfg.set("bind", sys.argv[2])
    def load(self):
        import apps
        return apps.app

threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    Application().run()
finally:
    print("the program's finally", flush=True)
"""


def run(command, cwd, **env):
    """A server that is started by other means than the harness has; what it printed."""
    path = os.pathsep.join([str(SERVED), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "GRACEFUL_DELAY": "0", "PYTHONPATH": path, "PYTHONDEVMODE": "", **env}
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said, limit = "", now() + 15
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if line.startswith("app imported"):
                process.terminate()
            assert now() < limit, said
    return said, process.returncode


@pytest.mark.parametrize("kind", ("gracefulworker.sync", "sync"))
def test_an_embedding_program_s_finally_runs(tmp_path, kind):
    (tmp_path / "program.py").write_text(EMBEDDED)
    said, status = run(["program.py", kind, "127.0.0.1:0"], tmp_path)
    assert said.count("the program's finally") >= 1 and status == 0, said


@pytest.mark.parametrize("kind", ("gracefulworker.sync", "gracefulworker.gthread", "sync"))
def test_a_profiler_around_gunicorn_writes_its_data(tmp_path, kind):
    serving = ["-m", "gunicorn", "-k", kind, "-b", "127.0.0.1:0", "apps:app"]
    said, status = run(["-m", "cProfile", "-o", "data", *serving], tmp_path)
    assert (tmp_path / "data").stat().st_size and status == 0, said


@pytest.mark.parametrize("kind", ("gracefulworker.sync", "gracefulworker.gevent", "sync"))
def test_coverage_around_gunicorn_writes_its_data(tmp_path, kind):
    pytest.importorskip("coverage")
    serving = ["-m", "gunicorn", "-k", kind, "-b", "127.0.0.1:0", "apps:app"]
    said, status = run(["-m", "coverage", "run", "-p", *serving], tmp_path)
    assert len(list(tmp_path.glob(".coverage*"))) == 2 and status == 0, said


@pytest.mark.control(6)
@pytest.mark.parametrize("stock", ("sync", "gthread", "uvicorn"))
def test_a_job_that_hangs_on_stock_ends_in_a_kill_without_a_word(owing, stock):
    server = owing(stock, config="graceful_timeout = 1\n")
    assert server.fetch("/in_thread").status == 200
    server.gate.entered("job")
    server.signal(signal.SIGTERM)
    server.wait_gone()
    assert server.status == 0 and not server.grep("the job")
