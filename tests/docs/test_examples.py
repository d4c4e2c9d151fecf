"""The examples, served as their own files say and ended with a request in flight.

examples/kubernetes is tested in tools/test_check.py.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from harness import assert_clean, request

EXAMPLES = Path(__file__).parents[2] / "examples"

#: RFC 6455 section 4.1; and a close frame with the status 1012, "service restart".
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
WEBSOCKET = (*UPGRADE, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
RESTARTS = b"\x88\x02\x03\xf4"

#: Each example's directory, the application that its Dockerfile starts, what it needs.
FLASK, DJANGO = ("flask_app", "app:app", "flask"), ("django_app", "mysite.wsgi", "django")
FASTAPI = ("fastapi_app", "app:app", "fastapi")


def on(*pairs):
    """Run a test on these examples, each with a worker class."""
    names = [f"{example[0]}-{worker.rpartition('.')[2]}" for example, worker in pairs]
    return pytest.mark.parametrize(("example", "worker"), pairs, indirect=["example"], ids=names)


@pytest.fixture
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
@on(
    (FLASK, "gracefulworker.gthread"),
    (FLASK, "gracefulworker.gevent"),
    (DJANGO, "gracefulworker.gthread"),
    (DJANGO, "gracefulworker.gevent"),
    (FASTAPI, "gracefulworker.uvicorn"),
)
def test_a_streamed_answer_outlives_the_delay(example, worker):
    server = example(worker)
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


@on((DJANGO, "gracefulworker.gthread"))
def test_a_probe_of_any_host_is_answered_before_django(example, worker):
    server = example(worker)
    head = b"GET %s HTTP/1.1\r\nHost: 10.0.0.7:8000\r\nConnection: close\r\n\r\n"
    for path, statuses in ((b"/", {b"400"}), (b"/ready", {b"200", b"503"})):
        client = server.connect()
        client.send(head % path)
        said = client.end().body
        assert said.split()[1] in statuses  # 503: a worker boots still
        assert (b'"phase": "SERVING"' in said) == (path == b"/ready")


# Their configuration files import gracefulworker, so the plain name is known; it means gthread.
@on((FLASK, "gracefulworker"), (DJANGO, "gracefulworker"), (FASTAPI, "gracefulworker.uvicorn"))
def test_the_other_routes(example, worker):
    server = example(worker)
    body = 300_000 * b"x"
    uploaded = server.fetch("/upload", method="POST", body=body)
    assert hashlib.sha256(body).hexdigest().encode() in uploaded.body
    assert b"slept" in server.fetch("/slow?seconds=0.01").body
    for path in ("/slow?seconds=nan", "/slow?seconds=61", "/stream?chunks=0"):
        assert server.fetch(path).status == 400
    for path, method in (("/nowhere", "GET"), ("/upload", "GET")):
        assert server.fetch(path, method=method).status in (404, 405)


@pytest.mark.contract(5)
@on((FASTAPI, "gracefulworker.uvicorn"))
def test_what_only_asgi_has_ends_well(example, worker):
    """A WebSocket and server-sent events are told; a thread and a background task are finished."""
    pytest.importorskip("websockets")
    server = example(worker)
    assert server.fetch("/", headers=("Connection: close",)).status == 200
    websocket, events, report = (server.connect() for _ in range(3))
    websocket.send(request("/echo", headers=WEBSOCKET))
    assert websocket._until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    events.send(request("/events"))
    assert events._until(b"retry: 500\n\n")
    report.send(request("/report?seconds=1"))
    order = server.fetch("/orders?seconds=1.5", method="POST")
    assert order.status == 202
    server.terminate()
    assert b"event: goodbye" in events.end().body
    assert websocket._take(len(RESTARTS)) == RESTARTS
    websocket.close()
    assert report.ending().body.startswith(b'{"slept":1.0')
    assert_clean(server)
    messages = [line.message for line in server.lines]
    assert "a WebSocket has ended with 1012" in messages
    done = messages.index("an order is confirmed")
    closed = [n for n, message in enumerate(messages) if message == "resources are closed"]
    assert len(closed) == 2 and done < max(closed), "once in each worker, after all its work"
