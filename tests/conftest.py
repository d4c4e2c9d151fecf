"""Fixtures of the suite: ``serve`` starts servers and ends them, ``worker`` names ours in turn.

``pytest --contract N`` runs the tests that hold line N of the contract (contract_lines.py).
"""

from __future__ import annotations

import resource
from importlib.util import find_spec
from pathlib import Path

import gunicorn
import harness
import pytest
from contract_lines import LINES
from harness.rehearsals import Rehearsal

WORKERS = ("sync", "gthread", "gevent", "uvicorn")


#: The names of ours that need gunicorn 24.1 (gracefulworker.seam).
WITH_THREADS = ("gracefulworker", "gracefulworker.gthread", "subclasses.Gthread")

#: Those that need uvicorn's newest parser: 0.52 does not go with today's zttp.
WITH_ZTTP = ("asgi_workers.Zttp", "asgi_workers.Http2")
HTTP2 = "uvicorn.protocols.http.auto_zttp_impl"


def skip_where_it_cannot_be(worker):
    if worker in WITH_THREADS and gunicorn.version_info < (24,):
        pytest.skip("gthread needs gunicorn 24.1")
    if worker in WITH_ZTTP and not (find_spec("zttp") and find_spec(HTTP2)):
        pytest.skip("needs the package zttp, and uvicorn 0.53")
    return worker


@pytest.fixture(params=WORKERS)
def worker(request):
    """Each of our four workers, as a user names it after ``-k``."""
    return skip_where_it_cannot_be(f"gracefulworker.{request.param}")


@pytest.fixture(params=("gthread", "gevent", "uvicorn"))
def keeper(request):
    """Those of them that keep connections alive (sync answers one request per connection)."""
    return skip_where_it_cannot_be(f"gracefulworker.{request.param}")


@pytest.fixture
def serve(request):
    """Starts a ``harness.Server``; all are gone when the test is over, whatever happened."""
    servers = request.node.servers = []

    def start(worker, **options):
        skip_where_it_cannot_be(worker)
        if request.node.get_closest_marker("control"):
            assert not worker.startswith("gracefulworker"), "a control shows what stock does"
        server = harness.Server(worker, **options)
        servers.append(server)  # before it starts: a failure to start shows its log too
        return server.start()

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def rehearse(tmp_path):
    """Starts a short rehearsal, of gthread; all of it is gone when the test is over."""
    skip_where_it_cannot_be("gracefulworker.gthread")
    started = []

    def start(*options, **how):
        started.append(Rehearsal(tmp_path, *options, **how))
        return started[-1]

    yield start
    for rehearsal in started:
        rehearsal.close()


@pytest.fixture
def descriptors():
    """As many descriptors as the system allows, here and in the servers started from here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(autouse=True, scope="session")
def stalls():
    with harness.watch_stalls():
        yield


#: What the quick run (`tox -e py`) leaves to `tox -e more`: the core is a single service, from its
#: boot to its orderly end; this is what may go on around it, and the tools beside it.
MORE = {
    "contract": {
        "test_01_quiet",
        "test_05_half_requests",
        "test_06_owed",
        "test_08_recycling",
        "test_08_successors",
        "test_08_reuse_port",
        "test_09_boot",
        "test_09_sigterm_to_others",
        "test_10_signals",
        "test_11_crowds",
        "test_11_lingering",
        "test_12_unchanged",
        "test_13_outlived",
        "test_13_unix_paths",
    },
    "docs": {"test_examples", "test_platforms"},
    "protocols": {"test_http2", "test_tls", "test_websocket"},
    "service": {
        "test_asgi_frameworks",
        "test_files",
        "test_hooks",
        "test_log",
        "test_names",
        "test_orphans",
        "test_probes",
        "test_report",
        "test_timeout_0",
        "test_user_code",
    },
    "tools": {path.stem for path in Path(__file__).parent.glob("tools/test_*.py")},
}


def pytest_addoption(parser):
    parser.addoption(
        "--contract",
        type=int,
        choices=LINES,
        metavar="N",
        help=f"only the tests that hold line N of the contract, 1 to {max(LINES)}, and controls",
    )
    parser.addoption(
        "--uvicorn",
        action="store_true",
        help="only the tests of the uvicorn engine, which are left out otherwise",
    )


def pytest_collection_modifyitems(config, items):
    """Mark as ``more`` what the quick run leaves out, and what is ``timed``.

    That holds the server to tenths of a second, and runs alone (see tox.ini).
    """
    for item in items:
        if item.path.stem in MORE.get(item.path.parent.name, ()):
            item.add_marker(pytest.mark.more)
        if {"assert_within", "ends_well"} & set(item.function.__code__.co_names):
            item.add_marker(pytest.mark.timed)
    keep_only(config, items, lambda item: is_on_uvicorn(item) == config.option.uvicorn)
    if config.option.uvicorn:
        keep_only(config, items, lambda item: not item.get_closest_marker("wsgi"))
    if number := config.option.contract:
        keep_only(config, items, lambda item: is_about(item, number))


def keep_only(config, items, is_meant):
    config.hook.pytest_deselected(items=[item for item in items if not is_meant(item)])
    items[:] = [item for item in items if is_meant(item)]


def is_on_uvicorn(item):
    """Whether a test is about that engine, or a control on uvicorn's own worker."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    engines = {params.get(name) for name in ("worker", "keeper", "stock")}
    return item.path.stem.startswith("test_uvicorn") or "uvicorn" in engines


def pytest_sessionfinish(session, exitstatus):
    """Of several runs with --contract, as tox has them, one may have none of the line's tests."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.contract:
        session.exitstatus = pytest.ExitCode.OK


def is_about(item, number):
    """Whether a test holds this line of the contract, or shows that stock breaks it."""
    marks = (*item.iter_markers("contract"), *item.iter_markers("control"))
    return any(number in mark.args for mark in marks)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure shows the whole log of each server that the test started."""
    report = yield
    if report.failed:
        for number, server in enumerate(getattr(item, "servers", ())):
            report.sections.append((f"log of server {number}, -k {server.worker}", server.log))
    return report
