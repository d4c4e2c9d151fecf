"""The same over TLS, where the handshake is not yet a request: gthread and gevent."""

from __future__ import annotations

import contextlib
import ssl

import pytest
import trustme
from harness import Client, assert_clean, assert_within, ends, now, request

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

    def connect(server) -> Client:
        client = server.connect()
        client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
        return client

    def start(worker, **more):
        server = serve(worker, ready=False, options=options, **more)
        server.wait_log("^app imported")
        with contextlib.closing(connect(server)) as client:
            assert client.ask().status == 200
        return server

    start.connect = connect
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


@pytest.mark.contract(4)
def test_idle_connections_are_closed_at_the_end_of_the_delay(secure, keeper):
    server = secure(keeper, delay=0.4)
    clients = [secure.connect(server) for _ in range(5)]
    assert not any(client.ask().closes for client in clients)
    over = server.terminate() + 0.4
    endings = ends(clients)
    assert [end.kind for end in endings] == ["eof"] * 5
    assert_within(0.1, max(end.at for end in endings), over, "the last end of file")
    assert_within(0.3, server.wait_gone(), over, "gone after the delay")


@pytest.mark.contract(5)
def test_who_shakes_hands_and_says_nothing_counts_as_silent(secure, keeper):
    server = secure(keeper, delay=0.3, env={"GRACEFUL_FIRST_BYTE": "0.5"})
    shaken, bare = secure.connect(server), server.connect()
    server.terminate()
    over = server.wait_draining().at
    assert [end.kind for end in ends([shaken, bare])] == ["eof"] * 2
    assert_within(0.8, server.wait_gone(), over, "gone")
    assert_clean(server)


@pytest.mark.contract(5)
def test_who_speaks_some_time_after_the_handshake_is_served(secure, keeper):
    server = secure(keeper, delay=0.2)
    client = secure.connect(server)
    server.terminate()
    server.wait_draining()
    end = client.ask()
    assert end.status == 200 and end.closes
    client.close()
    assert_clean(server)


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
