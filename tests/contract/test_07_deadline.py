"""The deadline: what is still in flight is answered or cut, named, and told by the exit status."""

from __future__ import annotations

import re

import pytest
from gunicorn.http import message
from harness import assert_clean, assert_within, request, summary

pytestmark = pytest.mark.contract(7)

#: A deadline soon after SIGTERM: 0.2 s of delay and 0.8 s to finish.
SOON = {"delay": 0.2, "env": {"GRACEFUL_KILL_AFTER": "2"}}
AFTER = 1.0


def is_last_words(end, body=b"The server is shutting down.\n"):
    return (
        end.status == 503
        and end.closes
        and end.header("retry-after") == "1"
        and end.header("content-length") == str(len(body))
        and end.body == body
    )


def are_turned_away(waiting):
    """Nobody has read their method: it may be HEAD, which must not have a body."""
    return all(is_last_words(one.ending(), body=b"") for one in waiting)


@pytest.mark.tracker(3385, 3388)
def test_a_request_without_a_response_gets_503_and_a_name(serve, worker):
    server = serve(worker, **SOON)
    client, _ = server.hold("stuck")
    term = server.terminate()
    end = client.ending()
    assert is_last_words(end), str(end)
    assert client.raw.endswith(b"\r\n\r\n" + end.body), "a strict proxy takes it"
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
    # uvicorn's httptools sends chunks to HTTP/1.0, too, which end visibly.
    server = serve("asgi_workers.H11" if "uvicorn" in worker else worker, **SOON)
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
    assert is_last_words(client.ending())
    assert are_turned_away(waiting)
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
    assert is_last_words(hog.ending())
    assert are_turned_away(waiting)
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


@pytest.mark.parametrize("version", ("1.0", "1.1"))
def test_a_complete_response_without_a_length_ends_cleanly(serve, worker, version):
    """By HTTP/1.0 its end is the connection's; code that runs on is not its business."""
    server = serve(worker, app="apps:after", **SOON)
    client = server.connect()
    client.send(request("/no-length/after", version=version))
    server.gate.entered("after")
    server.terminate()
    end = client.ending()
    assert (end.kind, end.body) == ("response", b"sent")
    assert client.end().kind == "eof"
    server.wait_log(r"^cut at the deadline \(after its response\): GET /no-length/after")


def test_head_gets_the_503_without_a_body(serve, worker):
    server = serve(worker, **SOON)
    client = server.connect()
    client.send(request("/gated/stuck", "HEAD"))
    server.gate.entered("stuck")
    server.terminate()
    end = client.ending("HEAD")
    assert (end.status, end.header("content-length")) == (503, "29")
    assert client.end().body == b""
    server.wait_gone()


def test_a_long_body_that_is_still_being_sent_is_cut_in_the_middle(serve, worker):
    """gunicorn counts a piece as sent before it sends it."""
    server = serve(worker, **SOON)
    client = server.connect()
    client.send(request("/big"))
    client._until(b"\r\n\r\n")
    server.terminate()
    server.wait_gone()
    server.wait_log(r"^cut at the deadline \(in the middle of its response\): GET /big")
    assert server.status == 5
    assert summary(server)["cut"] == 1


#: A handler that hangs: a log collector that does not read, say.
STUCK_LOG = """
import logging, threading
class Stuck(logging.Handler):
    def emit(self, record):
        if record.getMessage().startswith("cut at"):
            threading.Event().wait()
def post_worker_init(worker):
    worker.log.error_log.addHandler(Stuck())
"""


@pytest.mark.parametrize("plain", ("sync", "gthread"))
def test_a_log_that_hangs_costs_nobody_his_503(serve, plain):
    server = serve(f"gracefulworker.{plain}", threads=1, config=STUCK_LOG, **SOON)
    client, _ = server.hold("stuck")
    waiting = [server.connect() for _ in range(3)]
    for one in waiting:
        one.send(request())
    term = server.terminate()
    assert is_last_words(client.ending())
    assert are_turned_away(waiting)
    assert_within(AFTER + 1.0, server.wait_gone(), term, "the exit")
    assert server.status == 5
    assert summary(server)["cut"] == 4
    assert not server.grep("killed")


#: The worker for the application, which is to fail at its deadline; threads take quick turns.
KNOWN = """
def post_worker_init(worker):
    import apps, sys
    sys.setswitchinterval(1e-5)
    apps.worker = worker
"""


@pytest.mark.timed  # who has begun to write has a tenth of a second to end it
def test_who_fails_at_the_deadline_gets_one_answer(serve):
    """gunicorn's 500 or our 503, and never both.

    Those that fail in that moment are the last of many, so that the deadline takes its time.
    """
    server = serve("gracefulworker.gevent", config=KNOWN, **SOON)
    later = ["1000"] * 400 + [f"{place / 5 - 2:.1f}" for place in range(80)]
    clients = [server.connect() for _ in later]
    for client, milliseconds in zip(clients, later, strict=True):
        client.send(request(f"/fails-at-the-deadline/{milliseconds}"))
    server.terminate()
    answers = [client.end().body for client in clients]
    assert {answer.count(b"HTTP/1.1 ") for answer in answers} == {1}
    assert summary(server)["cut"] == sum(b" 503 " in answer for answer in answers)


def test_those_that_are_alike_are_named_together(serve):
    number = 30
    server = serve("gracefulworker.gevent", **SOON)
    clients = [server.hold("stuck")[0] for _ in range(number)]
    other, _ = server.hold("other")
    server.terminate()
    assert all(is_last_words(client.ending()) for client in (*clients, other))
    server.wait_gone()
    named = server.grep("^cut at the deadline")
    assert [re.sub(r"\d\.\d", "0.0", line.message) for line in named] == [
        "cut at the deadline (503): 30 times GET /gated/stuck after 0.0 to 0.0 s, at:",
        "cut at the deadline (503): GET /gated/other after 0.0 s, at:",
    ]
    assert summary(server)["cut"] == number + 1


@pytest.mark.skipif(
    hasattr(message, "RFC9112_TARGET_INVALID"), reason="gunicorn 27 refuses such a request itself"
)
def test_what_a_client_sends_reaches_the_log_in_printable_characters(serve):
    """A path is the client's: a terminal that shows the log must not obey it."""
    server = serve("gracefulworker.sync", **SOON)
    server.hold("\x1b[2J")
    server.terminate()
    server.wait_gone()
    server.wait_log(r"^cut at the deadline \(503\): GET /gated/\\x1b\[2J")
    assert all(line.text.isprintable() for line in server.lines)


@pytest.mark.parametrize("finish", ("0", "0.1"))
def test_an_idle_service_has_nothing_to_cut(serve, worker, finish):
    """Not even with no time for what is in flight."""
    left = 0.2 + float(finish)
    if finish == "0":
        server = serve(worker, workers=2, delay=0.2, options=("--graceful-timeout", "0"))
    else:
        env = {"GRACEFUL_KILL_AFTER": f"{left + 1.0}"}
        server = serve(worker, workers=2, delay=0.2, env=env)
    silent = server.connect()
    idle = server.keep_alive() if "sync" not in worker else server.connect()
    at = server.terminate()
    server.wait_log(f"^draining: .* {float(finish)} s for what is in flight")
    assert (silent.end().kind, idle.end().kind) == ("eof", "eof")
    assert_within(left + 0.5, server.wait_gone(), at, "the exit")
    assert_clean(server)
    assert summary(server)["cut"] == 0


def test_a_silent_connection_is_not_cut_but_closed_in_time(serve, worker):
    """Its patience (2 s) is longer than the deadline."""
    server = serve(worker, **SOON)
    silent = server.connect()
    at = server.terminate()
    assert silent.end().kind == "eof"
    assert_within(AFTER, server.wait_gone(), at, "the exit")
    assert_clean(server)


@pytest.mark.control(7)
@pytest.mark.tracker(3385, 3388)
@pytest.mark.parametrize("stock", ("sync", "uvicorn"))
def test_a_request_is_cut_without_a_word_on_stock(serve, stock):
    server = serve(stock, delay=0.2, options=("--graceful-timeout", "1"))
    client, _ = server.hold("stuck")
    server.signal(15)
    assert client.ending().kind != "response"
    server.wait_gone()
    assert server.status == 0
    assert not server.grep("/gated/stuck")
