"""The examples, served as their own files say and ended with a request in flight.

examples/kubernetes is tested in tools/test_check.py.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from harness import assert_clean, request

EXAMPLES = Path(__file__).parents[2] / "examples"

#: Each example's directory, the application that its Dockerfile starts, what it needs.
PROJECTS = [("flask_app", "app:app", "flask"), ("django_app", "mysite.wsgi", "django")]


@pytest.fixture(params=PROJECTS, ids=[name for name, *_ in PROJECTS])
def example(request, serve):
    """Starts an example with its own configuration (`-k`, `-w` and the address are the test's)."""
    name, app, package = request.param
    pytest.importorskip(package)

    def start(worker):
        return serve(
            worker,
            app=app,
            workers=2,
            delay=0.5,
            options=(
                "--chdir",
                str(EXAMPLES / name),
                "-c",
                str(EXAMPLES / name / "gunicorn.conf.py"),
            ),
            env={"ALLOWED_HOSTS": "test"},
            ready=False,
        )

    return start


@pytest.mark.contract(2)
@pytest.mark.contract(5)
@pytest.mark.parametrize("engine", ("gthread", "gevent"))
def test_a_streamed_answer_outlives_the_delay(example, engine):
    server = example(f"gracefulworker.{engine}")
    assert server.fetch("/", headers=("Connection: close",)).status == 200
    client = server.connect()
    client.send(request("/stream?chunks=6&pause=0.2"))
    first = client._until(b"chunk 1 of 6\n")
    assert first.startswith(b"HTTP/1.1 200")
    server.terminate()
    during = server.fetch("/")
    assert (during.status, during.closes) == (200, True)
    server.wait_draining()
    assert server.knock().kind == "refused"
    assert client.end().kind == "eof"
    assert b"chunk 6 of 6\n" in client.raw and client.raw.endswith(b"0\r\n\r\n")
    client.close()
    assert_clean(server)


def test_a_probe_of_any_host_is_answered_before_django(example, request):
    if "flask_app" in request.node.name:
        pytest.skip("examples/flask_app leaves probes to graceful_probe_bind")
    server = example("gracefulworker.gthread")
    head = b"GET %s HTTP/1.1\r\nHost: 10.0.0.7:8000\r\nConnection: close\r\n\r\n"
    for path, statuses in ((b"/", {b"400"}), (b"/ready", {b"200", b"503"})):
        client = server.connect()
        client.send(head % path)
        said = client.end().body
        assert said.split()[1] in statuses  # 503: a worker boots still
        assert (b'"phase": "SERVING"' in said) == (path == b"/ready")


def test_the_other_routes(example):
    server = example("gracefulworker")  # their configuration files import it, so it is known
    body = 300_000 * b"x"
    uploaded = server.fetch("/upload", method="POST", body=body)
    assert hashlib.sha256(body).hexdigest().encode() in uploaded.body
    assert b"slept" in server.fetch("/slow?seconds=0.01").body
    for path in ("/slow?seconds=nan", "/slow?seconds=61", "/stream?chunks=0"):
        assert server.fetch(path).status == 400
    for path, method in (("/nowhere", "GET"), ("/upload", "GET")):
        assert server.fetch(path, method=method).status in (404, 405)
