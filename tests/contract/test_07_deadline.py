"""The deadline: what is still in flight is answered or cut, named, and told by the exit status."""

from __future__ import annotations

import re

import pytest
from harness import assert_within, request, summary

pytestmark = pytest.mark.contract(7)

#: A deadline soon after SIGTERM: 0.2 s of delay and 0.8 s to finish.
SOON = {"delay": 0.2, "env": {"GRACEFUL_KILL_AFTER": "2"}}
AFTER = 1.0


def is_last_words(end):
    return (
        end.status == 503
        and end.closes
        and end.header("retry-after") == "1"
        and end.body == b"The server is shutting down.\n"
    )


@pytest.mark.tracker(3385, 3388)
def test_a_request_without_a_response_gets_503_and_a_name(serve, worker):
    server = serve(worker, **SOON)
    client, _ = server.hold("stuck")
    term = server.terminate()
    end = client.ending()
    assert is_last_words(end), str(end)
    assert client.end().kind == "eof"
    assert end.at - term >= AFTER
    assert_within(AFTER + 1.0, server.wait_gone(), term, "the exit")
    assert server.status == 5
    assert summary(server)["cut"] == 1
    cut = server.wait_log("^cut at the deadline")
    assert re.fullmatch(
        r"cut at the deadline \(503\): GET /gated/stuck after \d\.\d s, at:", cut.message
    )
    stack = [line.text for line in server.lines[server.lines.index(cut) + 1 :]]
    assert any("in gated" in line for line in stack[:20]), "where its code stood"
    assert not any("gracefulworker" in line for line in stack if line.startswith("  File"))


def test_a_response_that_has_begun_is_never_given_a_false_end(serve, worker):
    server = serve(worker, **SOON)
    client, _ = server.hold("stuck", "/stream/{}")
    server.terminate()
    end = client.ending()
    assert end.kind == "truncated" and end.status == 200
    server.wait_gone()
    assert server.status == 5
    server.wait_log(r"^cut at the deadline \(in the middle of its response\): GET /stream/stuck")


def test_a_body_that_ends_with_the_connection_is_cut_by_a_reset(serve, worker):
    """HTTP/1.0 without a length: any other end would look like the whole."""
    server = serve(worker, **SOON)
    client = server.connect()
    client.send(request("/stream/stuck", version="1.0"))
    server.gate.entered("stuck")
    server.terminate()
    assert client.ending().kind == "reset"
    server.wait_gone()
    assert server.status == 5


#: What an application may have said, and what holds for every socket that is made then.
PATIENT = "import socket\nsocket.setdefaulttimeout(5)\n"


@pytest.mark.parametrize("config", (None, PATIENT), ids=("", "default timeout"))
@pytest.mark.parametrize("plain", ("sync", "gthread"))
def test_whole_requests_that_wait_get_503_too(serve, plain, config):
    server = serve(f"gracefulworker.{plain}", threads=1, config=config, **SOON)
    client, _ = server.hold("stuck")
    waiting = [server.connect() for _ in range(3)]
    for one in waiting:
        one.send(request())
    term = server.terminate()
    assert all(is_last_words(one.ending()) for one in (client, *waiting))
    assert_within(AFTER + 1.0, server.wait_gone(), term, "the exit")
    assert server.status == 5
    assert summary(server)["cut"] == 4
    server.wait_log(r"^cut at the deadline \(503\): 3 waiting requests")


def test_whole_requests_behind_a_blocked_hub_get_503_too(serve):
    server = serve("gracefulworker.gevent", **SOON)
    hog = server.connect()
    hog.send(request("/hog/4"))
    server.terminate()
    waiting = [server.connect() for _ in range(3)]
    for one in waiting:
        one.send(request())
    assert all(is_last_words(one.ending()) for one in (hog, *waiting))
    server.wait_gone()
    assert server.status == 5
    assert summary(server)["cut"] == 4


def test_code_that_runs_on_after_its_response_is_named(serve, worker):
    server = serve(worker, app="apps:after", **SOON)
    client, _ = server.hold("after")
    end = client.ending()
    assert end.body == b"sent"
    term = server.terminate()
    assert_within(AFTER + 1.0, server.wait_gone(), term, "the exit")
    assert server.status == 5
    server.wait_log(r"^cut at the deadline \(after its response\): GET /gated/after")
    assert server.grep("in close_after")


@pytest.mark.control(7)
@pytest.mark.tracker(3385, 3388)
def test_a_request_is_cut_without_a_word_on_stock(serve):
    server = serve("sync", delay=0.2, options=("--graceful-timeout", "1"))
    client, _ = server.hold("stuck")
    server.signal(15)
    assert client.ending().kind != "response"
    server.wait_gone()
    assert server.status == 0
    assert not server.grep("/gated/stuck")
