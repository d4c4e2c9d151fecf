"""HTTP/2 over TLS and in cleartext: the end is told by GOAWAY, in two steps.

gthread and gevent have gunicorn's, and uvicorn its own.
"""

from __future__ import annotations

import signal
import ssl

import pytest
import trustme
from gunicorn import config
from harness import Server, assert_clean, assert_within, now

pytest.importorskip("h2", reason="the package h2 is not installed")
pytest.importorskip("gunicorn.http2", reason="gunicorn has HTTP/2 since 25")

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

#: The GOAWAY that excludes no stream.
NO_MORE = 2**31 - 1

CLEARTEXT = any(setting.name == "http2_cleartext" for setting in config.KNOWN_SETTINGS)


class Heeding(H2Connection):
    """h2, which takes any GOAWAY for the end; RFC 9113 section 6.8 has open streams go on."""

    def _receive_goaway_frame(self, frame):
        event = events.ConnectionTerminated()
        event.last_stream_id, event.error_code = frame.last_stream_id, frame.error_code
        return [], [event]


class Talk:
    """A client's HTTP/2 connection. It answers a PING when it next reads, and not before.

    ``window`` is how many bytes of each stream's it has room for.
    """

    def __init__(
        self, server: Server, tls: ssl.SSLContext | None, window: int | None = None
    ) -> None:
        client = server.connect()
        if tls is not None:
            client.socket = tls.wrap_socket(client.socket, server_hostname="localhost")
        self.socket = client.socket
        self.goaways: list[int | None] = []
        self.seen: dict[int, list] = {}  # stream -> its events
        self.ended = ""  # "eof" or "reset"
        self.ended_at = 0.0
        self.h2 = Heeding(H2Configuration(client_side=True, header_encoding="utf-8"))
        if window is not None:
            room = {SettingCodes.INITIAL_WINDOW_SIZE: window}
            self.h2.local_settings = Settings(client=True, initial_values=room)
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def send(self, path: str, body: bool = False) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.seen[stream] = []
        fields = {":method": "POST" if body else "GET", ":path": path}
        fields |= {":scheme": "https", ":authority": "localhost"}
        self.h2.send_headers(stream, list(fields.items()), end_stream=not body)
        self.flush()
        return stream

    def read(self) -> None:
        """One read, and the answer to what needs one."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data, self.ended = b"", "reset"
        if not data:
            self.ended, self.ended_at = self.ended or "eof", now()
            return
        for event in self.h2.receive_data(data):
            if isinstance(event, events.ConnectionTerminated):
                assert event.error_code == 0
                self.goaways.append(event.last_stream_id)
            elif stream := getattr(event, "stream_id", None):
                self.seen[stream].append(event)
            if isinstance(event, events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        try:
            self.flush()
        except ConnectionError:
            pass  # recv tells the rest

    def is_answered(self, stream: int) -> bool:
        return any(isinstance(event, events.StreamEnded) for event in self.seen[stream])

    def answer(self, stream: int) -> bytes:
        """The whole response's body."""
        while not self.is_answered(stream):
            assert not self.ended, f"{self.ended} before the response's end"
            self.read()
        data = [e.data for e in self.seen[stream] if isinstance(e, events.DataReceived)]
        return b"".join(data)

    def ask(self, path: str) -> bytes:
        return self.answer(self.send(path))

    def finish(self) -> None:
        """Read to the end of the connection."""
        while not self.ended:
            self.read()
        assert self.ended == "eof"


@pytest.fixture(params=("tls", "cleartext"))
def serve_http2(serve, request, tmp_path):
    """Starts a server that speaks HTTP/2; `server.talk()` opens a connection."""
    tls = None
    options = ["--keep-alive", "75"]
    gunicorns = ["--http-protocols", "h2,h1"]  # uvicorn takes none of it
    if request.param == "tls":
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
        tls = ssl.create_default_context()
        tls.set_alpn_protocols(["h2"])
        authority.configure_trust(tls)
        options += ["--certfile", str(tmp_path / "server.pem")]
    else:
        gunicorns += ["--http2-cleartext", "prior-knowledge"]

    def start(worker, more=(), **rest):
        if "uvicorn" in worker:
            worker, more = "asgi_workers.Http2", [*options, *more]
        elif tls is None and not CLEARTEXT:
            pytest.skip("gunicorn has h2c since 26.2")
        else:
            more = [*gunicorns, *options, *more]
        server = serve(worker, ready=False, options=more, **rest)
        server.talk = lambda **how: Talk(server, tls, **how)
        server.wait_log("^app imported")
        assert server.talk().ask("/fast") == b"fast"
        return server

    return start


@pytest.mark.contract(3)
def test_a_stream_in_flight_is_finished_and_named_by_the_goaway(serve_http2, keeper):
    server = serve_http2(keeper, delay=0.3)
    talk = server.talk()
    stream = talk.send("/gated/it")
    held = server.gate.entered("it")
    server.terminate()
    server.wait_draining()
    held.release()
    assert talk.answer(stream) == b"gated"
    talk.finish()
    assert talk.goaways == [NO_MORE, stream]
    assert_clean(server)


@pytest.mark.contract(1, 4, 6)
def test_streams_are_served_during_the_delay_and_idle_connections_end_with_it(serve_http2, keeper):
    server = serve_http2(keeper, delay=0.5)
    reads, sleeps = server.talk(), server.talk()
    assert (reads.ask("/fast"), sleeps.ask("/fast")) == (b"fast", b"fast")
    over = server.terminate() + 0.5
    assert reads.ask("/fast") == b"fast"
    assert server.talk().ask("/fast") == b"fast"
    assert reads.goaways == []
    reads.finish()
    assert reads.goaways == [NO_MORE, 3]
    assert_within(0.1, reads.ended_at, over, "the end of an idle connection")
    gone = server.wait_gone()
    assert_within(server.exit_bound, gone, over, "gone, with a client that does not read")
    sleeps.finish()
    assert sleeps.goaways == [NO_MORE, 1]
    assert_clean(server)


@pytest.mark.control(4)
@pytest.mark.parametrize("stock", ("gthread", "gevent"))
def test_control_stock_waits_for_idle_connections(serve_http2, stock):
    server = serve_http2(stock, more=["--graceful-timeout", "2"])
    talk = server.talk()
    assert talk.ask("/fast") == b"fast"
    assert server.talk().ask("/fast") == b"fast"  # meanwhile the first has become idle
    at = server.signal(signal.SIGTERM)
    talk.finish()
    assert talk.ended_at - at > 1.5


@pytest.mark.contract(4)
def test_every_stream_that_the_end_meets_is_served_or_named_as_not_processed(serve_http2, keeper):
    server = serve_http2(keeper, delay=0.3, threads=8)
    server.talk().send("/gated/it")
    held = server.gate.entered("it")  # the worker does not leave: closed connections linger
    talks = [server.talk() for _ in range(3)]
    server.terminate()
    for talk in talks:  # the second and the third do not hear before the end has come
        while not talk.goaways:
            stream = talk.send("/fast")
            while not (talk.is_answered(stream) or talk.ended):
                talk.read()
        if not talk.ended:
            talk.send("/fast")  # as if it had not been told yet
        talk.finish()
        assert talk.goaways[0] == NO_MORE and len(talk.goaways) == 2
        for stream in talk.seen:
            assert talk.is_answered(stream) == (stream <= talk.goaways[-1])
    assert talks[0].is_answered(3)
    held.release()
    assert_clean(server)


@pytest.mark.contract(5)
def test_who_opens_no_stream_counts_as_silent_and_who_opens_one_late_is_served(serve_http2, keeper):
    server = serve_http2(keeper, delay=0.2, env={"GRACEFUL_FIRST_BYTE": "0.5"})
    silent, late = server.talk(), server.talk()
    server.terminate()
    over = server.wait_draining().at
    stream = late.send("/fast")
    assert late.answer(stream) == b"fast"
    late.finish()
    assert late.goaways == [NO_MORE, stream]
    silent.finish()
    assert silent.goaways == [0]
    assert_within(0.5 + server.exit_bound, server.wait_gone(), over, "gone")
    assert_clean(server)


@pytest.mark.contract(5)
def test_an_upload_is_finished(serve_http2, keeper):
    server = serve_http2(keeper, delay=0.2)
    talk = server.talk()
    stream = talk.send("/upload", body=True)
    talk.h2.send_data(stream, b"half and ")
    talk.flush()
    server.terminate()
    server.wait_draining()
    talk.h2.send_data(stream, b"half", end_stream=True)
    talk.flush()
    assert talk.answer(stream) == b"half and half"
    talk.finish()
    assert talk.goaways == [NO_MORE, stream]
    assert_clean(server)


@pytest.mark.contract(6)
def test_a_response_that_waits_for_its_client_to_read_is_sent_to_its_end(serve_http2, keeper):
    server = serve_http2(keeper, delay=0.2)
    talk = server.talk(window=1)
    stream = talk.send("/gated/it")
    server.gate.entered("it").release()
    server.terminate()
    server.wait_draining()
    assert talk.answer(stream) == b"gated"
    talk.finish()
    assert talk.goaways == [NO_MORE, stream]
    assert_clean(server)


@pytest.mark.contract(7)
def test_one_that_its_client_does_not_read_is_cut_and_named(serve_http2, keeper):
    env = {"GRACEFUL_KILL_AFTER": "3"}
    server = serve_http2(keeper, more=["--keep-alive", "1"], delay=0.2, env=env)
    server.talk(window=1).send("/gated/it")
    server.gate.entered("it").release()
    server.terminate()
    server.wait_log(r"^cut at the deadline \(its HTTP/2 stream\): GET /gated/it after")
    server.wait_gone()
    assert server.status == 5


@pytest.mark.contract(7)
def test_the_deadline_cuts_an_open_stream_and_names_it(serve_http2, keeper):
    server = serve_http2(keeper, delay=0.2, env={"GRACEFUL_KILL_AFTER": "2"})
    talk = server.talk()
    talk.send("/gated/stuck")
    server.gate.entered("stuck")
    at = server.terminate()
    assert_within(2.0, server.wait_gone(), at, "gone")
    server.wait_log(r"^cut at the deadline \(its HTTP/2 stream\): GET /gated/stuck after")
    assert server.status == 5


@pytest.mark.contract(8)
@pytest.mark.parametrize("how", ("max_requests", "HUP"))
def test_a_recycled_worker_tells_its_connections_to_go(serve_http2, keeper, how):
    server = serve_http2(keeper, more=["--max-requests", "20"] if how == "max_requests" else [])
    talk = server.talk()
    first = talk.ask("/pid")
    if how == "HUP":
        server.signal(signal.SIGHUP)
    else:
        for _ in range(20):
            talk.ask("/pid")
    # Not thousands of streams until then: zttp has only 4096 for a connection.
    server.wait_log("^app imported", count=2)
    served = max(talk.seen)
    while not talk.goaways:
        stream = talk.send("/pid")
        while not (talk.is_answered(stream) or talk.ended):
            talk.read()
        if talk.is_answered(stream):
            assert talk.answer(stream) == first
            served = stream
    talk.finish()
    # One that has crossed the last GOAWAY may be sent again elsewhere (RFC 9113 section 6.8).
    assert talk.goaways == [NO_MORE, served]
    assert server.talk().ask("/pid") != first
    server.terminate()
    assert_clean(server)
