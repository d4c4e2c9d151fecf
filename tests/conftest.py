"""Fixtures of the suite: ``serve`` starts servers and ends them, ``worker`` names ours in turn."""

from __future__ import annotations

import gunicorn
import harness
import pytest
from rehearsals import Rehearsal

WORKERS = ("sync", "gthread", "gevent")


#: The names of ours that need gunicorn 24.1 (gracefulworker.seam).
WITH_THREADS = ("gracefulworker", "gracefulworker.gthread", "subclasses.Gthread")


def skip_where_it_cannot_be(worker):
    if worker in WITH_THREADS and gunicorn.version_info < (24,):
        pytest.skip("gthread needs gunicorn 24.1")
    return worker


@pytest.fixture(params=WORKERS)
def worker(request):
    """Each of our three workers, as a user names it after ``-k``."""
    return skip_where_it_cannot_be(f"gracefulworker.{request.param}")


@pytest.fixture(params=("gthread", "gevent"))
def keeper(request):
    """The two of them that keep connections alive (sync answers one request per connection)."""
    return skip_where_it_cannot_be(f"gracefulworker.{request.param}")


@pytest.fixture
def serve(request):
    """Starts a ``harness.Server``; all are gone when the test is over, whatever happened."""
    servers = request.node.servers = []

    def start(worker, **options):
        skip_where_it_cannot_be(worker)
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


@pytest.fixture(autouse=True, scope="session")
def stalls():
    harness.STALLS = harness.Stalls()
    harness.STALLS.start()
    yield
    harness.STALLS.stop()
    harness.STALLS = None


#: What the quick run (`tox -e py`) leaves to `tox -e more`: the core is a single service, from its
#: boot to its orderly end; this is what may go on around it, and the tools beside it.
MORE = {
    "test_drain",
    "test_examples",
    "test_http2",
    "test_lingering",
    "test_orphans",
    "test_outlived",
    "test_platforms",
    "test_recycling",
    "test_rehearse",
    "test_rehearse_endings",
    "test_rehearse_picture",
    "test_report",
    "test_reuse_port",
    "test_timeout_0",
    "test_tls",
    "test_tracker",
    "test_unchanged",
    "test_user_code",
    "test_websocket",
}


def pytest_collection_modifyitems(items):
    """Mark as ``more`` what the quick run leaves out, and what is ``timed``.

    That holds the server to tenths of a second, and runs with fewer others (see tox.ini).
    """
    for item in items:
        if item.path.stem in MORE:
            item.add_marker(pytest.mark.more)
        if {"assert_within", "ends_well"} & set(item.function.__code__.co_names):
            item.add_marker(pytest.mark.timed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure shows the whole log of each server that the test started."""
    report = yield
    if report.failed:
        for number, server in enumerate(getattr(item, "servers", ())):
            report.sections.append((f"log of server {number}, -k {server.worker}", server.log))
    return report
