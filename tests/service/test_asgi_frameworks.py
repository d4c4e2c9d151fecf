"""FastAPI, Starlette and Django's ASGI on our uvicorn: what is theirs is finished like a request.

The contract itself is held on an application without a framework, in tests/contract.
"""

from __future__ import annotations

import pytest
from harness import assert_clean, request, summary

WORKER = "gracefulworker.uvicorn"
APPS = {"asgi_app": "fastapi", "starlette_app": "starlette", "django_asgi": "django"}

#: Those that know a lifespan, and tasks that go on after the answer.
STARLETTES = ("asgi_app", "starlette_app")


@pytest.fixture(params=APPS)
def app(request):
    return served(request.param)


@pytest.fixture(params=STARLETTES)
def starlette(request):
    return served(request.param)


def served(name):
    pytest.importorskip("uvicorn_worker")
    pytest.importorskip(APPS[name])
    return f"{name}:app"


def one_line(server, words):
    (line,) = [n for n, line in enumerate(server.lines) if words in line.text]
    return line


@pytest.mark.contract(1)
@pytest.mark.contract(2)
@pytest.mark.contract(5)
@pytest.mark.parametrize("route", ("gated", "sync"))
def test_an_endpoint_is_finished(serve, app, route):
    """In the event loop, and in a thread of the framework's."""
    server = serve(WORKER, app=app, delay=0.3)
    client, held = server.hold("it", f"/{route}/{{}}")
    server.terminate()
    during = server.fetch()
    assert (during.status, during.body, during.closes) == (200, b"fast", True)
    server.wait_draining()
    assert server.knock().kind == "refused"
    held.release()
    end = client.ending()
    assert (end.status, end.body, end.closes) == (200, route.encode(), True)
    client.close()
    assert_clean(server)
    assert summary(server)["served"] == 2
    assert not server.grep("Traceback")


@pytest.mark.contract(5)
@pytest.mark.contract(6)
def test_a_background_task_is_finished(serve, starlette):
    """Its client has had the answer, and gone."""
    server = serve(WORKER, app=starlette, delay=0)
    client = server.connect()
    client.send(request("/background/it"))
    held = server.gate.entered("it")
    assert client.ending().body == b"accepted"
    client.close()
    server.terminate()
    server.wait_draining()
    assert server.knock().kind == "refused"
    held.release()
    assert_clean(server)
    assert one_line(server, "background task done DRAINING")


@pytest.mark.contract(7)
def test_a_background_task_is_named_at_the_deadline(serve, starlette):
    server = serve(WORKER, app=starlette, delay=0, options=("--graceful-timeout", "1"))
    client = server.connect()
    client.send(request("/background/it"))
    server.gate.entered("it")
    assert client.ending().body == b"accepted"
    client.close()
    server.terminate()
    server.wait_gone()
    assert server.status == 5
    assert server.grep("GET /background/it"), "its request is named"
    assert server.grep(r"asgi_app\.py.* in afterwards"), "and where it stood"


@pytest.mark.contract(7)
def test_a_sync_endpoint_is_answered_and_named_at_the_deadline(serve, app):
    server = serve(WORKER, app=app, delay=0, options=("--graceful-timeout", "1"))
    client, _ = server.hold("it", "/sync/{}")
    server.terminate()
    end = client.ending()
    assert (end.status, end.closes) == (503, True)
    server.wait_gone()
    assert server.status == 5
    assert server.grep("GET /sync/it")
    assert server.grep(rf"{app.partition(':')[0]}\.py.* in sync"), "where its thread stood"


@pytest.mark.contract(5)
def test_server_sent_events_end_by_draining(serve, app):
    """By themselves, whole, and long before the delay is over."""
    server = serve(WORKER, app=app, delay=60)
    client = server.connect()
    client.send(request("/events"))
    assert client._until(b"hello\n\n")
    server.terminate()
    end = client.end()
    assert end.kind == "eof" and end.body.endswith(b"data: goodbye\n\n\r\n0\r\n\r\n")
    assert server.fetch().status == 200, "the delay goes on"


def test_the_lifespan_ends_after_the_last_request(serve, starlette):
    server = serve(WORKER, app=starlette, delay=0)
    client = server.connect()
    client.send(request("/background/it"))
    held = server.gate.entered("it")
    server.terminate()
    server.wait_draining()
    held.release()
    server.wait_gone()
    assert server.status == 0
    begun = one_line(server, "lifespan begins")
    done = one_line(server, "background task done")
    assert begun < done < one_line(server, "lifespan ends")
