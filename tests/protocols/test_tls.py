"""The same over TLS, where the handshake is not yet a request."""

from __future__ import annotations

import contextlib
import signal
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustme
from harness import (
    CEILING,
    FULL,
    assert_clean,
    assert_within,
    ends,
    now,
    request,
    stock_of,
    summary,
)
from protocols.test_websocket import GOING_AWAY, WEBSOCKET

LONG = ("--keep-alive", "75")


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture
def secure(serve, authority, tmp_path):
    """Starts a server with a certificate, and connects to it."""
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    options = ("--certfile", str(tmp_path / "server.pem"), *LONG)

    def connect(server, client=None):
        client = client or server.connect()
        client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
        return client

    def start(worker, **more):
        more["options"] = (*options, *more.get("options", ()))
        server = serve(worker, ready=False, **more)
        server.wait_log("^app imported")
        with contextlib.closing(connect(server)) as client:
            assert client.ask().status == 200
        return server

    start.connect, start.context = connect, context  # type: ignore[attr-defined]
    return start


@pytest.mark.contract(2)
def test_a_request_in_flight_is_finished_and_told_to_close(secure, worker):
    server = secure(worker, delay=0.3)
    client = secure.connect(server)
    client.send(b"GET /gated/it HTTP/1.1\r\nHost: test\r\n\r\n")
    held = server.gate.entered("it")
    server.terminate()
    server.wait_draining()
    held.release()
    end = client.ending()
    assert end.body == b"gated" and end.closes
    client.close()
    assert_clean(server)


@pytest.mark.contract(3)
def test_the_queue_is_served_and_newcomers_are_refused(secure, worker):
    server = secure(worker, delay=0.3, **FULL)
    busy = []
    for n in range(1 if "sync" in worker else 2):
        busy.append(secure.connect(server))
        busy[n].send(request(f"/gated/busy{n}"))
    held = [server.gate.entered(f"busy{n}") for n in range(len(busy))]
    server.terminate()
    queued = [server.connect() for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:  # nobody shakes hands with them yet
        endings = pool.map(lambda client: secure.connect(server, client).ask(), queued)
        server.wait_draining()
        assert server.knock().kind == "refused"
        for gate in held:
            gate.release()
        assert [(end.status, end.closes) for end in endings] == [(200, True)] * 5
    assert [client.ending().body for client in busy] == [b"gated"] * len(busy)
    assert_clean(server)


@pytest.mark.contract(3)
def test_who_is_accepted_at_the_very_end_is_served(secure):
    """All that waited while the application kept gevent's hub are accepted at once."""
    server = secure("gracefulworker.gevent", delay=0.3)
    busy = secure.connect(server)
    server.terminate()
    busy.send(request("/hog/1"))
    queued = [server.connect() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        endings = pool.map(lambda client: secure.connect(server, client).ask(), queued)
        assert [end.status for end in endings] == [200] * 3
    assert_clean(server)


@pytest.mark.contract(4)
def test_idle_connections_are_closed_at_the_end_of_the_delay(secure, keeper):
    server = secure(keeper, delay=0.4)
    clients = [secure.connect(server) for _ in range(5)]
    assert not any(client.ask().closes for client in clients)
    over = server.terminate() + 0.4
    endings = ends(clients)
    assert [end.kind for end in endings] == ["eof"] * 5
    assert_within(0.1, max(end.at for end in endings), over, "the last end of file")
    assert_within(server.exit_bound, server.wait_gone(), over, "gone after the delay")


@pytest.mark.contract(5)
def test_who_shakes_hands_and_says_nothing_counts_as_silent(secure, worker):
    server = secure(worker, delay=0.3, env={"GRACEFUL_FIRST_BYTE": "0.5"})
    bare = server.connect()
    server.terminate()
    shaken = secure.connect(server)
    over = server.wait_draining().at
    assert [end.kind for end in ends([shaken, bare])] == ["eof"] * 2
    assert_within(0.8, server.wait_gone(), over, "gone")
    assert_clean(server)


@pytest.mark.contract(5, 6)
def test_do_handshake_on_connect_changes_nothing_of_that(secure, worker):
    options = ("--do-handshake-on-connect",)
    server = secure(worker, delay=0.3, env={"GRACEFUL_FIRST_BYTE": "0.5"}, options=options)
    noisy = server.connect()
    noisy.send(request())  # no handshake
    assert noisy.end().kind in ("eof", "reset")
    shaken, bare = secure.connect(server), server.connect()
    server.terminate()
    over = server.wait_draining().at
    assert [end.kind for end in ends([shaken, bare])] == ["eof"] * 2
    assert_within(0.8, server.wait_gone(), over, "gone")
    assert_clean(server)
    assert not server.grep("AttributeError")


COUNTED = """
def ssl_context(conf, default):
    print("a context", flush=True)
    return default()
"""


def test_as_many_contexts_as_on_stock(secure, worker):
    """sync makes one for each connection, at the price of a request."""
    found = []
    for name in (worker, stock_of(worker)):
        server = secure(name, config=COUNTED)
        for _ in range(3):
            with contextlib.closing(secure.connect(server)) as client:
                assert client.ask().status == 200
        found.append(len(server.grep("^a context")))
    assert found[0] == found[1]


@pytest.mark.contract(5)
def test_who_speaks_some_time_after_the_handshake_is_served(secure, worker):
    server = secure(worker, delay=0.2)
    client = secure.connect(server)
    server.terminate()
    server.wait_draining()
    end = client.ask()
    assert end.status == 200 and end.closes
    client.close()
    assert_clean(server)


@pytest.mark.contract(5)
def test_the_silent_do_not_keep_the_turn_of_sync(secure):
    server = secure("gracefulworker.sync", delay=0.5, env={"GRACEFUL_FIRST_BYTE": "5"})
    silent = [secure.connect(server), server.connect()]  # the first has the turn
    other = server.connect()
    began = server.terminate()
    end = secure.connect(server, other).ask()
    assert end.status == 200
    assert_within(0.5, end.at, began, "an answer")
    server.wait_draining()
    late = silent[0].ask()
    assert late.status == 200 and late.closes
    for client in silent:
        client.close()
    assert_clean(server)


@pytest.mark.control(5)
def test_control_the_silent_keep_the_turn_of_stock_sync(secure):
    server = secure("sync", options=("--graceful-timeout", "1"))
    silent = secure.connect(server)
    other = server.connect()
    server.signal(signal.SIGTERM)
    with pytest.raises(OSError, match=r"reset|EOF"):
        secure.connect(server, other)
    assert silent.ending().kind in ("eof", "reset")


@pytest.mark.contract(5)
@pytest.mark.parametrize("part", (10, 80), ids=("half a head", "half a body"))
def test_half_a_request_is_finished(secure, worker, part):
    server = secure(worker, delay=0.2)
    client = secure.connect(server)
    whole = request("/upload", "POST", body=100 * b"x")
    client.send(whole[:part])
    server.terminate()
    server.wait_draining()
    client.send(whole[part:])
    end = client.ending()
    assert (end.status, len(end.body), end.closes) == (200, 100, True)
    assert_clean(server)


def hello(server, context):
    """Half a handshake: a connection that has sent its ClientHello, or half of it."""
    come, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(come, sent, server_hostname="localhost").do_handshake()
    client = server.connect()
    data = sent.read()
    client.send(data)
    half = server.connect()
    half.send(data[:20])
    return [client, half]


@pytest.mark.contract(5, 6)
@pytest.mark.parametrize("option", ((), ("--do-handshake-on-connect",)), ids=("", "on connect"))
def test_half_a_handshake_holds_neither_a_thread_nor_the_exit(secure, keeper, option):
    env = {"GRACEFUL_FIRST_BYTE": "0.5"}
    server = secure(keeper, delay=0.3, threads=2, env=env, options=option)
    crowd = [client for _ in range(3) for client in hello(server, secure.context)]
    with contextlib.closing(secure.connect(server)) as client:
        end = client.ask()
        assert end.status == 200
        assert_within(1.0, end.at, client.opened, "an answer")
    server.terminate()
    crowd += hello(server, secure.context)
    over = server.wait_draining().at
    assert_within(0.8, server.wait_gone(), over, "gone")
    assert {client.end().kind for client in crowd} == {"eof"}
    assert_clean(server)


@pytest.mark.control(5)
def test_control_half_a_handshake_holds_a_thread_of_stock(secure):
    server = secure("gthread", threads=2)
    crowd = [client for _ in range(3) for client in hello(server, secure.context)]
    client = server.connect()
    client.socket.settimeout(2.0)
    with pytest.raises(TimeoutError):
        secure.connect(server, client)
    for one in crowd:
        one.close()


@pytest.mark.contract(12)
def test_the_silent_are_kept_as_long_as_on_stock(secure):
    """gunicorn 25.3 on closes who has not sent a byte for 5 s and keep-alive; else nobody."""
    options = ("--keep-alive", "1")
    clients = []
    for name in ("gthread", "gracefulworker.gthread"):
        server = secure(name, options=options)
        clients += [server.connect(), secure.connect(server)]
    bare, our_bare = (client.end(timeout=8.0).kind for client in clients[::2])
    shaken, our_shaken = (client.end(timeout=0.5).kind for client in clients[1::2])
    assert (our_bare, our_shaken) == (bare, shaken)
    assert shaken == "timeout"


@pytest.mark.contract(5, 12)
def test_a_pipelined_request_in_the_same_record_is_answered_from_sigterm_on(secure, keeper):
    """All the TLS layer has deciphered of it is nothing that the socket would tell."""
    server = secure(keeper, delay=5)
    client = secure.connect(server)
    client.send(request("/stream/first") + 400 * request())  # more than is read at once
    held = server.gate.entered("first")
    server.terminate()
    held.release()
    assert client.ending().body == b"piece 0;piece 1;"
    last = client.ending()
    assert (last.body, last.closes) == (b"fast", True)


@pytest.mark.contract(8)
def test_recycling_loses_nobody(secure, worker):
    server = secure(worker, options=("--max-requests", "15"))

    until = now() + CEILING

    def ask(_) -> set[int]:
        statuses = set()
        while len(server.worker_pids) < 4 and now() < until:
            with contextlib.closing(secure.connect(server)) as client:
                statuses.add(client.ask().status)
        return statuses

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(ask, range(4))
        server.signal(signal.SIGHUP)
        assert set.union(*answers) == {200}
    assert len(server.worker_pids) >= 4
    server.terminate()
    assert_clean(server)


@pytest.mark.contract(7)
def test_at_the_deadline_whoever_waits_for_a_handshake_sees_a_clean_end(secure, worker):
    server = secure(worker, delay=0.2, env={"GRACEFUL_KILL_AFTER": "2"}, **FULL)
    busy = [secure.connect(server) for _ in range(1 if "sync" in worker else 2)]
    for n, client in enumerate(busy):
        client.send(request(f"/gated/stuck{n}"))
        server.gate.entered(f"stuck{n}")
    server.terminate()
    queued = server.connect()
    with ThreadPoolExecutor(1) as pool:
        shaken = pool.submit(secure.connect, server, queued)
        if "gevent" in worker or "uvicorn" in worker:
            assert shaken.result().ask().status == 200  # it has no limit from the delay's end on
        else:
            # The latter is what some Pythons say of an end of file in a handshake (3.11.2 does).
            with pytest.raises((ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                shaken.result()
    assert {client.ending().status for client in busy} == {503}
    server.wait_gone()
    assert server.status == 5


@pytest.mark.contract(7)
def test_the_deadline_speaks_tls(secure, worker):
    server = secure(worker, delay=0.2, env={"GRACEFUL_KILL_AFTER": "2"})
    client = secure.connect(server)
    client.send(b"GET /gated/stuck HTTP/1.1\r\nHost: test\r\n\r\n")
    server.gate.entered("stuck")
    server.terminate()
    end = client.ending()
    assert end.status == 503 and end.closes
    server.wait_gone()
    assert server.status == 5


@pytest.mark.contract(11)
def test_a_body_that_nobody_reads_destroys_no_response(secure, worker):
    server = secure(worker, delay=0.2)
    client = secure.connect(server)
    whole = request("/early/it", "POST", ("Connection: close",), 1_000_000 * b"x")
    client.send(whole[:1000])
    server.gate.entered("it").release()
    client.send(whole[1000:])
    end = client.ending()
    assert (end.status, len(end.body)) == (413, 400_000), str(end)
    server.terminate()
    assert_clean(server)


@pytest.mark.contract(11)
def test_a_client_that_never_closes_delays_nobody(secure, worker):
    server = secure(worker, delay=0.2)
    assert secure.connect(server).ask(headers=("Connection: close",)).closes
    began = now()
    end = secure.connect(server).ask()
    assert end.status == 200
    assert_within(1.0, end.at, began, "another client's answer")


@pytest.mark.wsgi
@pytest.mark.contract(5, 6)
@pytest.mark.parametrize("path", ("/websocket", "/websocket-thread"))
def test_a_websocket_is_told_at_the_end_of_the_delay(secure, worker, path):
    server = secure(worker, delay=0.3)
    client = secure.connect(server)
    client.send(request(path, headers=WEBSOCKET))
    assert client._until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    server.terminate()
    client.send(b"lame duck")
    assert client._take(9) == b"lame duck"
    assert client._take(len(GOING_AWAY)) == GOING_AWAY
    # Behind that end of file its own OpenSSL sends an alert, for want of a close_notify.
    assert [end.kind for end in ends([client])] == ["eof"]
    assert_clean(server)
    assert summary(server)["websockets"] == 1
