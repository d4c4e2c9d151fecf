"""A request is active from its first byte, and who sends none costs nobody time (contract 5)."""

from __future__ import annotations

import signal

import gunicorn
import pytest
from harness import FULL, assert_clean, assert_within, ends, fill, now, request

pytestmark = pytest.mark.contract(5)

WHOLE = request(headers=("X-Padding: some", "X-More: padding"))
CUTS = {"request line": 7, "headers": WHOLE.index(b"some")}


def workers_for(worker, connections):
    """A request that has begun takes a sync worker; so it needs one for each of them."""
    return connections if "sync" in worker else 1


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_half_a_request_is_finished(serve, worker, cut):
    """Begun before SIGTERM or in LAME_DUCK, finished in LAME_DUCK or in DRAINING."""
    server = serve(worker, workers=workers_for(worker, 3), delay=0.4)
    one, two, three = (server.connect() for _ in range(3))
    one.send(WHOLE[:cut])
    two.send(WHOLE[:cut])
    server.terminate()
    three.send(WHOLE[:cut])
    one.send(WHOLE[cut:])
    endings = [one.ending()]
    server.wait_draining()
    two.send(WHOLE[cut:])
    three.send(WHOLE[cut:])
    endings += [two.ending(), three.ending()]
    assert [(end.kind, end.body, end.closes) for end in endings] == [
        ("response", b"fast", True)
    ] * 3
    assert_within(
        server.exit_bound, server.wait_gone(), endings[-1].at, "gone after the last answer"
    )
    assert_clean(server)


def test_an_upload_in_pieces_is_read_to_its_end(serve, worker):
    """Pieces before SIGTERM, in LAME_DUCK and in DRAINING, with a length and in chunks."""
    pieces = b"0123456789", b"abcdefghij", b"ABCDEFGHIJ"
    length = ("Content-Length: 30",)
    chunked = ("Transfer-Encoding: chunked",)
    server = serve(worker, workers=workers_for(worker, 2), delay=0.4)
    plain, parts = server.connect(), server.connect()

    def send(piece):
        plain.send(piece)
        parts.send(b"%x\r\n%s\r\n" % (len(piece), piece))

    plain.send(request("/upload", "POST", length))
    parts.send(request("/upload", "POST", chunked))
    send(pieces[0])
    server.terminate()
    send(pieces[1])
    server.wait_draining()
    send(pieces[2])
    parts.send(b"0\r\n\r\n")
    endings = [plain.ending(), parts.ending()]
    assert [(end.kind, end.body, end.closes) for end in endings] == [
        ("response", b"".join(pieces), True)
    ] * 2
    assert_clean(server)


def test_a_streamed_response_is_sent_to_its_end(serve, worker):
    server = serve(worker, delay=0.4)
    client, held = server.hold("it", "/stream/{}/4")
    held.release()
    held = server.gate.entered("it")
    server.terminate()
    held.release()
    held = server.gate.entered("it")
    server.wait_draining()
    released = held.release()
    end = client.ending()
    assert (end.kind, end.body) == ("response", b"piece 0;piece 1;piece 2;piece 3;")
    assert_within(server.exit_bound, server.wait_gone(), released, "gone after the last piece")
    assert_clean(server)


def test_expect_100_continue_across_the_end_of_the_delay(serve, worker):
    server = serve(worker, delay=0.4)
    client = server.connect()
    server.terminate()
    client.send(request("/upload", "POST", ("Expect: 100-continue", "Content-Length: 10")))
    assert client._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
    server.wait_draining()
    client.send(b"0123456789")
    end = client.ending()
    assert (end.kind, end.body, end.closes) == ("response", b"0123456789", True)
    assert_clean(server)


def test_who_speaks_late_is_served(serve, worker):
    """One second and more of silence after the delay, less than graceful_first_byte."""
    server = serve(worker, delay=0.3, env={"GRACEFUL_FIRST_BYTE": "2"})
    server.terminate()
    early, late = server.connect(), server.connect()
    draining = server.wait_draining()
    # Silence is what is tested here; should either be closed meanwhile, that ends the wait.
    silence = ends([early, late], draining.at + 1.1 - now())
    assert [end.kind for end in silence] == ["timeout"] * 2
    for client in early, late:
        end = client.ask()
        assert (end.kind, end.body, end.closes) == ("response", b"fast", True)
    assert_within(server.exit_bound, server.wait_gone(), end.at, "gone after the last answer")
    assert_clean(server)


SILENT = {"sync": 1, "gthread": 8, "gevent": 8, "uvicorn": 8}


def test_silent_connections_cost_nobody_time(serve, worker):
    """Some from before SIGTERM, some from after it; each is closed after graceful_first_byte."""
    count = SILENT[worker.split(".")[1]]
    server = serve(worker, delay=0.5, env={"GRACEFUL_FIRST_BYTE": "0.7"})
    silent = [server.connect() for _ in range(count)]
    over = server.terminate() + 0.5
    silent += [server.connect() for _ in range(count)]
    for path in ("/fast", "/pid"):
        end = server.fetch(path)
        assert end.kind == "response"
        assert_within(0.2, end.at, end.began, "an answer in LAME_DUCK")
    half = server.connect()
    half.send(WHOLE[:7])
    server.wait_draining()
    half.send(WHOLE[7:])
    end = half.ending()
    assert end.kind == "response"
    assert_within(0.2, end.at, end.began, "an answer in DRAINING")
    endings = ends(silent)
    assert [end.kind for end in endings] == ["eof"] * (2 * count)
    assert min(end.at for end in endings) >= over + 0.65, "closed before its time"
    assert_within(0.8, max(end.at for end in endings), over, "the last silent one")
    assert_within(1.0, server.wait_gone(), over, "gone")
    assert_clean(server)


@pytest.mark.control(5)
@pytest.mark.parametrize("stock", ("sync", "gthread"))
def test_silent_connections_cost_nobody_time_on_stock(serve, stock):
    if stock == "gthread" and gunicorn.version_info < (24,):
        pytest.skip("the gthread of gunicorn 23 accepts in another way")
    server = serve(stock)
    for _ in range(SILENT[stock]):
        server.connect()
    assert server.fetch(timeout=1.0).kind == "timeout"


@pytest.mark.control(5, 6)
def test_silent_connections_do_not_hold_the_exit_on_stock_gevent(serve):
    """Not a word from them, and stock gevent uses all of graceful_timeout."""
    server = serve("gevent", config="graceful_timeout = 2\n")
    for _ in range(3):
        server.connect()
    term = server.signal(signal.SIGTERM)
    assert server.wait_gone() - term > 1.5


def test_silent_ones_do_not_keep_others_from_the_queue(serve, worker):
    """After the delay the queue is full of silent connections with one request behind them."""
    count = SILENT[worker.split(".")[1]]
    server = serve(worker, delay=0.3, env={"GRACEFUL_FIRST_BYTE": "0.7"}, **FULL)
    busy = fill(server)
    server.terminate()
    for _ in range(count):
        server.connect()
    client = server.connect()
    client.send(request())
    server.wait_draining()
    released = [held.release() for _, held in busy]
    end = client.ending()
    assert end.kind == "response"
    assert_within(0.3, end.at, released[-1], "an answer from the queue")
    assert_clean(server)


def test_without_patience_a_silent_one_from_the_queue_is_closed_at_once(serve, worker):
    """The worker comes to it only after the delay, when its time is over as it is accepted."""
    server = serve(worker, delay=0.2, env={"GRACEFUL_FIRST_BYTE": "0"})
    (pid,) = server.worker_pids
    server.signal(signal.SIGSTOP, pid)
    client = server.connect()
    server.terminate()
    server.wait_draining()
    resumed = server.signal(signal.SIGCONT, pid)
    end = client.end()
    assert end.kind == "eof"
    assert_within(0.3, end.at, resumed, "the end of file")
    assert_within(0.5, server.wait_gone(), resumed, "gone")
    assert_clean(server)


def test_first_byte_counts_from_the_accept_when_that_is_later(serve):
    """A busy sync worker accepts the queue long after the delay (the others accept it at once)."""
    server = serve("gracefulworker.sync", delay=0.2, env={"GRACEFUL_FIRST_BYTE": "0.6"})
    busy, held = server.hold("it")
    server.terminate()
    client = server.connect()
    draining = server.wait_draining()
    # Longer than graceful_first_byte: the time that must not count.
    assert [end.kind for end in ends([client], draining.at + 0.7 - now())] == ["timeout"]
    held.release()
    assert busy.ending().closes
    assert [end.kind for end in ends([client], 0.3)] == ["timeout"], "closed before its time"
    assert client.ask().kind == "response"
    assert_clean(server)


V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 80\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\1\xc0\0\2\2\x9c\x40\0\x50"
PROXIED = {"config": "proxy_protocol = True\n", "env": {"GRACEFUL_FIRST_BYTE": "0.4"}}


@pytest.mark.parametrize("header", (V1, V2), ids=("v1", "v2"))
def test_a_proxy_header_alone_is_no_request(serve, worker, header):
    """Balancers send it when their own client connects, who may say nothing for long."""
    if "uvicorn" in worker:
        pytest.skip("uvicorn does not know it")
    if header == V2 and gunicorn.version_info < (25,):
        pytest.skip("gunicorn knows it since 25")
    server = serve(worker, workers=workers_for(worker, 2), delay=0.2, **PROXIED)
    silent, late = (server.connect() for _ in range(2))
    silent.send(header)
    late.send(header)
    at = server.terminate()
    server.wait_draining()
    late.send(request())
    assert late.ending().body == b"fast"
    assert silent.end().kind == "eof"
    assert_within(0.2 + 0.4 + 0.3, server.wait_gone(), at, "the exit")
    assert_clean(server)


@pytest.mark.control(5)
@pytest.mark.parametrize("stock", ("sync", "gevent"))
def test_a_proxy_header_alone_is_no_request_on_stock(serve, stock):
    options = ("--graceful-timeout", "2", "--keep-alive", "75")
    server = serve(stock, config=PROXIED["config"], options=options)
    silent = server.connect()
    silent.send(V1)
    assert server.fetch("/fast", timeout=1.0).kind == ("timeout" if stock == "sync" else "response")
    at = server.signal(signal.SIGTERM)
    assert server.wait_gone() - at > 1.5
