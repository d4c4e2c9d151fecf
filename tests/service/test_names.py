"""How a worker is named after ``-k``, and what stops the start."""

from __future__ import annotations

from importlib import metadata

import pytest
from harness import Server, assert_clean, assert_within


def ends_well(server: Server) -> None:
    """The signs by which our worker is known: it serves on, says close, and stops in time."""
    client, held = server.hold("it")
    server.terminate()
    held.release()
    assert client.ending().closes
    client.close()
    assert server.fetch().closes
    assert server.delay is not None
    over = server.term_at + server.delay
    assert_within(server.exit_bound, server.wait_gone(), over, "gone after the delay")
    assert_clean(server)


def refused(server: Server) -> str:
    """The one line with which the start stopped, and no worker was ever there."""
    server.wait_gone()
    assert server.status == 1
    assert not server.worker_pids
    assert "Traceback" not in server.log
    (error,) = (line.text for line in server.lines if line.text.startswith("Error: "))
    return error


def test_k_alone_is_enough(serve, worker):
    server = serve(worker, delay=0.3)
    assert server.grep(f"^Using worker: {worker}$")
    ends_well(server)


def test_by_entry_point(serve, worker):
    try:
        metadata.distribution("gracefulworker")
    except metadata.PackageNotFoundError:
        pytest.skip("entry points need the package installed, which it is not here")
    ends_well(serve(f"egg:gracefulworker#{worker.split('.')[1]}", delay=0.3))


def test_without_a_dot_it_is_gthread(serve):
    server = serve("gracefulworker", delay=0.3, config="import gracefulworker\nthreads = 2\n")
    server.hold("one")
    server.hold("two")  # the second thread; what follows needs none
    server.terminate()


@pytest.mark.parametrize("name", ("Sync", "Gthread", "Gevent"))
def test_a_subclass_works(serve, name):
    server = serve(f"subclasses.{name}", delay=0.3)
    ends_well(server)
    if name != "Sync":
        assert server.grep("^subclass ")


def test_sync_with_threads_is_refused(serve):
    server = serve("gracefulworker.sync", options=("--threads", "4"), ready=False)
    assert "use -k gracefulworker.gthread" in refused(server)


def test_sync_with_threads_is_refused_on_stock(serve):
    """Stock takes another worker class without a word."""
    server = serve("sync", options=("--threads", "4"))
    assert server.grep("^Using worker: gthread$")


def test_an_unsupported_gunicorn_is_refused(serve, worker):
    old = "import gunicorn\ngunicorn.version_info = 20, 1, 0\ngunicorn.__version__ = '20.1.0'\n"
    sentence = refused(serve(worker, config=old, ready=False))
    assert "20.1.0" in sentence and "supports gunicorn" in sentence


def test_gthread_is_refused_on_a_gunicorn_from_before_its_loop_was_rewritten(serve):
    old = "import gunicorn\ngunicorn.version_info = 23, 0, 0\ngunicorn.__version__ = '23.0.0'\n"
    server = serve("gracefulworker.workers.gthread.ThreadWorker", config=old, ready=False)
    sentence = "gracefulworker.gthread needs gunicorn 24.1 or newer, and this is 23.0.0: "
    assert sentence in refused(server)


@pytest.mark.parametrize("name", ("GeventPyWSGI", "GeventHandler"))
def test_a_server_of_another_kind_is_refused(serve, name):
    """What it has in flight is not seen, and would be cut without a word."""
    server = serve(f"subclasses.{name}", ready=False)
    assert refused(server).startswith(f"Error: {name} has a server_class or a wsgi_handler, whose")


def test_a_server_of_another_kind_can_have_the_hook(serve):
    """As the refusal says."""
    server = serve("gevent_pywsgi", delay=0.3, options=("-c", "python:gracefulworker.hooks"))
    client, held = server.hold("it")
    server.terminate()
    server.wait_draining()
    held.release()
    assert client.ending().status == 200
    client.close()  # or gunicorn's own stop waits for it
    server.wait_gone()
    assert server.status == 0 and server.grep("^stopped: after ")


def test_a_subclass_may_leave_the_listeners_as_they_are(serve):
    """Accepting until nobody waits must not block the hub."""
    server = serve("subclasses.GeventPatched", delay=0.3)
    client, held = server.hold("it")
    assert server.fetch().body == b"fast"
    server.terminate()
    server.wait_draining()
    held.release()
    assert client.ending().closes
    assert_clean(server)
