"""What only an event loop has: lifespans, coroutines, background tasks, uvicorn's own protocols."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import Storm, assert_clean, assert_within, request, summary
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

APP = {"app": "asgi_own:app"}
SOON = {"delay": 0.2, "env": {"GRACEFUL_KILL_AFTER": "2"}}

#: uvicorn's parsers and event loops.
KINDS = (
    "asgi_workers.H11",
    "asgi_workers.HttpTools",
    "asgi_workers.Asyncio",
    "asgi_workers.Zttp",
    "asgi_workers.Http2",
)


@pytest.fixture(params=KINDS)
def kind(request):
    """Each of them; the one with HTTP/2 serves HTTP/1, too."""
    return request.param


@pytest.fixture
def start(serve):
    def start(worker="gracefulworker.uvicorn", **options):
        return serve(worker, **{**APP, **options})

    return start


def stack_of(server, pattern):
    """The lines below the one that names what was cut."""
    cut = server.wait_log(pattern)
    return "\n".join(line.text for line in server.lines[server.lines.index(cut) + 1 :][:24])


# -- its parsers and loops -------------------------------------------------------------------------


@pytest.mark.contract(2, 3)
def test_nothing_is_lost_in_a_shutdown(start, kind):
    server = start(kind, workers=2, delay=0.3)
    with Storm(server.addresses[0], 12) as storm:
        storm.wait_served(60)
        server.terminate()
        storm.wait_over()
    assert not storm.losses, storm.census()
    assert not storm.out_of_order
    assert_clean(server)


@pytest.mark.contract(2, 5)
def test_half_a_head_and_a_request_in_flight_are_answered(start, kind):
    server = start(kind, delay=0.3)
    half = server.connect()
    half.send(request()[:7])
    client, held = server.hold("it", "/in_thread/{}")
    server.terminate()
    server.wait_draining()
    half.send(request()[7:])
    held.release()
    for one, body in ((half, b"fast"), (client, b"gated")):
        end = one.ending()
        assert (end.body, end.closes) == (body, True)
        assert one.end().kind == "eof"
    assert_clean(server)


@pytest.mark.contract(4)
def test_idle_connections_are_closed_and_half_a_pipelined_head_is_not(start, kind):
    server = start(kind, delay=0.3, options=("--keep-alive", "75"))
    idle, half = server.keep_alive(), server.connect()
    half.send(request() + request()[:7])
    assert half.ending().body == b"fast"
    server.terminate()
    assert idle.end().kind == "eof"
    half.send(request()[7:])
    end = half.ending()
    assert (end.body, end.closes) == (b"fast", True)
    assert_clean(server)
    assert summary(server)["idle"] == 1


@pytest.mark.contract(4)
@pytest.mark.parametrize("has_rest", (True, False), ids=("whole", "half"))
def test_a_client_that_was_answered_before_its_upload_was_over_is_idle(start, kind, has_rest):
    """Whether the rest of the upload, the last thing that its parser has had, comes or not."""
    server = start(kind, delay=0.3, options=("--keep-alive", "75"))
    client = server.connect()
    head, body = request("/fast", body=b"x" * 40, method="POST").split(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n" + body[:10])
    assert client.ending().body == b"fast"
    if has_rest:
        client.send(body[10:])
    server.terminate()
    assert client.end().kind == "eof"
    assert_clean(server)


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPLOAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


@pytest.mark.parametrize(
    ("piece", "is_half"),
    (
        (HEAD, False),
        (HEAD + HEAD, False),
        (HEAD + b"G", True),
        (HEAD + HEAD[:-1], True),
        (HEAD[:-1], True),
        (UPLOAD + b"half", False),
        (UPLOAD + b"halfG", True),
        (UPLOAD + b"half" + HEAD + UPLOAD, True),
        (HEAD[7:], False),  # it is not known of what it is the end
        (HEAD[-1:], False),
    ),
)
def test_zttp_is_asked_for_the_end_of_a_piece(piece, is_half):
    pytest.importorskip("zttp")
    from gracefulworker.workers.uvicorn_zttp import ends_in_a_request

    assert ends_in_a_request(piece) == is_half


# -- WebSockets ------------------------------------------------------------------------------------


def open_websocket(server, path="/", **options):
    host, port = server.addresses[0].target
    return connect(f"ws://{host}:{port}{path}", proxy=None, **options)


@pytest.mark.contract(4, 6)
def test_a_websocket_is_told_that_the_service_restarts(start, kind):
    """By 1012, at the end of the delay; until then it works."""
    server = start(kind, delay=0.4)
    with open_websocket(server) as early:
        over = server.terminate() + 0.4
        with open_websocket(server) as late:
            for one in (early, late):
                one.send("hello")
                assert one.recv(10) == "hello"
            for one in (early, late):
                with pytest.raises(ConnectionClosed) as closed:
                    one.recv(10)
                assert closed.value.rcvd.code == 1012
    assert_within(1.0, server.wait_gone(), over, "gone after the delay")
    assert_clean(server)
    assert len(server.grep("^websocket told 1012")) in (0, 2)  # old uvicorns say 1006
    assert summary(server)["websockets"] == 2


def test_a_handler_that_was_told_has_until_the_deadline(start, kind):
    server = start(kind, delay=0.2)
    with open_websocket(server, "/held/it"):
        server.terminate()
        held = server.gate.entered("it")
        assert server.gone_at is None
        held.release()
    assert_clean(server)


def test_one_that_does_not_end_is_cut_and_named(start, kind):
    server = start(kind, **SOON)
    with open_websocket(server, "/held/it"):
        server.terminate()
        server.gate.entered("it")
        server.wait_gone()
    assert server.status == 5
    cut = r"^cut at the deadline \(its WebSocket, which was told to end\): GET /held/it"
    assert "in gate" in stack_of(server, cut)


def test_one_that_is_being_opened_at_the_end_of_the_delay_is_opened_first(start, kind):
    server = start(kind, delay=0.2)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_websocket, server, "/accept/it")
        held = server.gate.entered("it")
        server.terminate()
        server.wait_draining()
        held.release()
        with opening.result() as one:
            with pytest.raises(ConnectionClosed):
                one.recv(10)
            assert one.close_code == 1012
    assert_clean(server)


# -- the application's own knowledge ---------------------------------------------------------------


def test_the_application_can_ask(start):
    server = start(delay=5)
    assert json.loads(server.fetch("/asked").body) == ["SERVING", False, False]
    server.terminate()
    assert json.loads(server.fetch("/asked").body) == ["LAME_DUCK", True, True]


def test_events_end_when_they_are_told(start):
    server = start(delay=0.3)
    client, held = server.hold("it", "/events/{}")
    held.release()
    client._until(b"data: ")
    server.terminate()
    client._until(b"data: over")
    assert_clean(server)


# -- what comes after a response, and after the last one -------------------------------------------


@pytest.mark.contract(6)
def test_background_tasks_are_finished_and_the_lifespan_ends_after_them(start, kind):
    server = start(kind, delay=0.2)
    client, held = server.hold("it", "/background/{}")
    assert client.ending().body == b"sent"
    server.terminate()
    server.wait_draining()
    held.release()
    assert_clean(server)
    said = [line.text for line in server.lines if line.text.startswith(("background", "lifespan"))]
    assert said == ["lifespan started", "background it done", "lifespan ends"]


@pytest.mark.contract(7)
def test_a_lifespan_that_does_not_end_is_named_at_the_deadline(start):
    server = start(delay=0.2, env={"GRACEFUL_KILL_AFTER": "2", "LIFESPAN": "hangs"})
    at = server.terminate()
    assert_within(2.0, server.wait_gone(), at, "the exit")
    assert server.status == 5
    assert "in hang_at_the_end" in stack_of(server, "the lifespan's shutdown, which is at:")


def test_a_lifespan_that_fails_is_a_failed_boot(start):
    server = start(ready=False, env={"LIFESPAN": "fails"})
    server.wait_gone()
    assert server.status == 3
    assert server.grep("no database")


# -- the deadline ----------------------------------------------------------------------------------


@pytest.mark.contract(7)
@pytest.mark.parametrize(
    ("path", "where"),
    (("/stuck", "in stuck"), ("/in_thread/it", "in gate"), ("/in_group/it", "in gate")),
)
def test_it_is_named_where_the_code_of_a_task_stands(start, kind, path, where):
    server = start(kind, **SOON)
    client = server.connect()
    client.send(request(path))
    if "it" in path:
        server.gate.entered("it")
    server.terminate()
    end = client.ending()
    assert (end.status, end.closes) == (503, True)
    server.wait_gone()
    assert server.status == 5
    assert summary(server)["cut"] == 1
    stack = stack_of(server, rf"^cut at the deadline \(503\): GET {path} after \d\.\d s, at:")
    assert where in stack
    assert "gracefulworker/workers" not in stack


@pytest.mark.contract(7)
def test_whoever_waits_for_a_blocked_event_loop_gets_503(start, kind):
    """From a native thread, past the loop."""
    server = start(kind, **SOON)
    behind = server.keep_alive()
    client, _ = server.hold("it", "/blocked/{}")
    behind.send(request())
    server.terminate()
    queued = server.connect()
    queued.send(request())
    assert client.ending().status == 503
    assert [one.ending().status for one in (behind, queued)] == [503, 503]
    server.wait_gone()
    assert server.status == 5
    assert summary(server)["cut"] == 3
    assert "in blocked" in stack_of(server, r"^cut at the deadline \(503\): GET /blocked/it")


@pytest.mark.contract(7)
def test_a_response_that_is_not_yet_sent_is_cut_though_its_code_is_over(start, kind):
    server = start(kind, **SOON)
    client = server.connect()
    client.send(request("/big"))
    client._until(b"\r\n\r\n")
    server.terminate()
    server.wait_gone()
    assert server.status == 5
    server.wait_log(r"^cut at the deadline \(in the middle of its response\): GET /big")


# -- recycling, probes, warm-up --------------------------------------------------------------------


@pytest.mark.contract(8)
def test_max_requests_loses_nobody(start, kind):
    server = start(kind, workers=2, delay=0.2, options=("--max-requests", "100"))
    with Storm(server.addresses[0], 6) as storm:
        server.wait_log("^app imported", count=5)
        storm.wait_served(50)
        server.terminate()
        storm.wait_over()
    assert not storm.losses, storm.census()
    assert_clean(server)


def test_probes_and_the_access_log(start):
    env = {"GRACEFUL_READINESS_PATH": "/ready"}
    server = start(env=env, options=("--access-logfile", "-", "--max-requests", "3"))
    for _ in range(4):
        end = server.fetch("/ready")
        assert (end.status, json.loads(end.body)["phase"]) == (200, "SERVING")
    assert server.fetch("/ready", method="HEAD").body == b""
    assert server.fetch("/ready", method="POST").status == 405
    assert len(server.worker_pids) == 1
    assert server.fetch("/fast").body == b"fast"
    server.wait_log("GET /fast")
    assert not server.grep("/ready")


@pytest.mark.parametrize(("path", "boots"), (("/fast", True), ("/missing", False)))
def test_warm_up(start, path, boots):
    """After the lifespan's start, and before the first connection."""
    server = start(ready=boots, env={"GRACEFUL_WARMUP": path})
    if boots:
        lines = [line.message for line in server.lines]
        assert lines.index("lifespan started") < next(
            n for n, line in enumerate(lines) if line.startswith("warm-up: GET /fast was answered")
        )
    else:
        server.wait_gone()
        assert server.status == 3
        assert server.grep("^warm-up: GET /missing raised KeyError: 'missing', so the worker")
