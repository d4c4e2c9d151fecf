"""Fixtures of the suite: ``serve`` starts servers and ends them, ``worker`` names ours in turn."""

from __future__ import annotations

import gunicorn
import harness
import pytest
from rehearsals import Rehearsal

WORKERS = ("sync", "gthread", "gevent")


#: The names of ours that need gunicorn 24.1 (gracefulworker.support).
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
    """Starts a short rehearsal; all of it is gone when the test is over."""
    started = []

    def start(*options):
        started.append(Rehearsal(tmp_path, *options))
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


def pytest_collection_modifyitems(items):
    """Mark as ``timed`` what holds the server to tenths of a second.

    These run with a processor for each (see tox.ini), the others as many at once as there are.
    """
    for item in items:
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
