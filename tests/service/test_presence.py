"""The application knows: `phase()` and `draining()`, wherever it asks."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from harness import assert_clean, assert_within, request

EXAMPLES = Path(__file__).parents[2] / "examples" / "flask_app"


def asked(server):
    return json.loads(server.fetch("/phase").body)


@pytest.mark.parametrize("preload", ((), ("--preload",)), ids=("", "preload"))
@pytest.mark.tracker(2462, 1508, 2925, 3077)
def test_in_a_worker_it_is_the_services(serve, worker, preload):
    server = serve(worker, workers=2, delay=0.4, options=preload, ready=not preload)
    assert asked(server) == ["SERVING", False, False]
    client, held = server.hold("phase", "/phase/{}")
    server.terminate()
    assert asked(server) == ["LAME_DUCK", True, True]
    server.wait_draining()
    held.release()
    assert json.loads(client.ending().body) == ["DRAINING", True, True]
    assert_clean(server)


def test_a_worker_that_is_recycled_is_draining(serve, worker):
    """The service is not: its successor says so."""
    server = serve(worker)
    client, held = server.hold("it", "/until-draining/{}")
    held.release()
    server.signal(signal.SIGHUP)
    assert client.ending().body == b"DRAINING"
    server.wait_log("^Worker exiting")  # until then it may still take one that was in the queue
    assert asked(server) == ["SERVING", False, False]


def test_in_a_worker_of_another_class_it_is_the_services(serve):
    hook = "from gracefulworker.hooks import when_ready\n"
    server = serve("gthread", delay=60, config=hook)
    assert asked(server)[:2] == ["SERVING", False]
    server.terminate()
    assert asked(server)[:2] == ["LAME_DUCK", True]


@pytest.mark.wsgi
@pytest.mark.tracker(2462, 1508, 2925, 3077)
def test_the_examples_events_end_by_themselves(serve, worker):
    options = ("--chdir", str(EXAMPLES))
    server = serve(worker, app="app:app", workers=2, delay=1.0, options=options, ready=False)
    client = server.connect()
    client.send(request("/events?interval=0.1"))
    while b"data: " not in client.buffer:
        client._more()
    term = server.terminate()
    end = client.ending()
    assert end.kind == "response" and end.body.endswith(b"going away\n\n"), str(end)
    assert_within(1.0, end.at, term, "the stream ended")
    assert_clean(server)


@pytest.mark.tracker(2462, 1508, 2925, 3077)
def test_the_examples_events_are_cut_on_stock(serve):
    """The application asks there, too, and is never told."""
    options = ("--chdir", str(EXAMPLES), "--graceful-timeout", "1")
    server = serve("gthread", app="app:app", options=options, ready=False)
    client = server.connect()
    client.send(request("/events?interval=0.1"))
    while b"data: " not in client.buffer:
        client._more()
    term = server.signal(signal.SIGTERM)
    end = client.ending()
    assert end.kind != "response" and end.at - term > 0.9
