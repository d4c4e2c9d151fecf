"""The gevent worker: a greenlet for each connection.

A connection waits in its greenlet's recv, which nothing in gunicorn ends but the keep-alive
timeout; so each knows whether its current request has `begun`, and one that has not is hung up:
its greenlet finds an end of file. gunicorn's loop sleeps a second
at a time; `oversee` is a greenlet that looks when there is something to see, and ends that sleep.

What may be changed here: how greenlets are told. Under gevent nothing here may block the hub.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
import gevent.ssl
from gevent import select, socket
from gevent.server import StreamServer
from gunicorn.workers import ggevent

from gracefulworker.phases import ListenerState, Phase
from gracefulworker.seam import Address, Config, Listener, Log, Request
from gracefulworker.shared import sockets
from gracefulworker.workers import accepting, lingering
from gracefulworker.workers.base import PASS, SETTLE_PASS, GracefulWorker, is_supervised

#: Seconds between two looks at closed connections whose clients have not closed yet.
SWEEP_PASS = 0.05


class HungUp(Exception):
    """Thrown into a greenlet that waits for a request which is not to come."""


class Drained(BaseException):
    """Thrown into gunicorn's loop, which would sleep on."""


class Hearing:
    """What a connection's socket knows of its requests; mixed in before gevent's socket classes."""

    worker: GeventWorker
    accepted_at = 0  #: ns
    proxied = False  #: a PROXY header comes first, which is not yet a request
    begun = False  #: a byte of the current request has been read
    used = False  #: it has had a request before the current one
    hung_up = False
    read_up = False  #: nothing that its client sends is left unread

    def recv(self, *args: Any) -> bytes:
        """socket.recv; once hung up nothing is read, as if the client had closed its side."""
        try:
            data: bytes = b"" if self.hung_up else super().recv(*args)  # type: ignore[misc]
        except HungUp:
            data = b""
        if data:
            if not (self.begun or (self.proxied and accepting.is_proxy_header(data))):
                self.begun = True  # before the look at hung_up: see `turn_away`
        else:
            self.read_up = True
        if self.hung_up:
            return b""  # a request that has crossed our FIN would be done for nobody
        return data

    def hang_up(self) -> None:
        """Half-close, and end its greenlet's wait for a request.

        The greenlet's turn comes when all have been hung up. shutdown(SHUT_RD) would end its wait,
        too, but Linux answers bytes that cross our FIN with RST then (RFC 1122 section 4.2.2.13).
        """
        self.hung_up = True
        self.worker.connections.discard(self)
        self.worker.parting.add(self)
        with contextlib.suppress(OSError):  # the client has gone
            self.worker.lingerer.half_close(self)
        self.hub.cancel_wait(self._read_event, HungUp)  # type: ignore[attr-defined]

    def close(self) -> None:
        """util.close, at the end of AsyncWorker.handle: where bytes may be left, linger."""
        lingers = (not self.read_up or self.worker.stopping()) and not self.worker.resigned
        if lingers and self.fileno() >= 0:  # type: ignore[attr-defined]
            self.worker.linger(self)
        super().close()  # type: ignore[misc]


class GeventConnection(Hearing, socket.socket):  # type: ignore[misc]
    """A client's connection."""


class GeventTLSConnection(Hearing, gevent.ssl.SSLSocket):  # type: ignore[misc]
    """The same behind TLS; the handshake is not yet a request."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except HungUp:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "hung up in the handshake") from None


class Server(StreamServer):  # type: ignore[misc]
    """gevent's server whose connections are ours."""

    worker: GeventWorker

    def do_read(self) -> tuple[GeventConnection, Address] | None:
        """StreamServer.do_read (gevent 1.3 on): accept one, None when nobody waits."""
        listener = self.socket
        # Should it raise, _do_read tries again later.
        accepted = accepting.accept_next(listener, listener._accept, self.worker.lingerer)
        if accepted is None:
            return None
        fd, address = accepted
        if self.worker.lingerer:
            self.worker.lingerer.make_room(fd)
        client = GeventConnection(listener.family, listener.type, listener.proto, fileno=fd)
        client.worker = self.worker
        client.accepted_at = self.worker.count_accepted()
        self.worker.connections.add(client)
        return client, address

    def do_close(self, client: GeventConnection, *args: Any) -> None:
        """StreamServer.do_close: what do_read returned is over, whatever became of it."""
        super().do_close(client, *args)
        self.worker.forget(client)

    def close(self) -> None:
        """BaseServer.close, which drops `handle`.

        wrap_socket_and_handle asks for it as late as in the greenlets of those accepted before.
        """
        handle = self.__dict__.get("handle")
        super().close()
        self.handle = handle

    def ignore_limit(self) -> None:
        """Accept on, whatever worker_connections says."""
        self.full = bool  # False, as without a pool (BaseServer.set_spawn)
        self._spawn = gevent.spawn
        if self.started:
            self.start_accepting()

    def empty_queue(self) -> bool:
        """Accept all that wait; False when there was no room for some of them."""
        self.ignore_limit()
        try:
            while accepted := self.do_read():
                self.do_handle(*accepted)
        except OSError as error:
            if error.errno not in sockets.NO_ROOM:
                raise
            return False
        return True


class GeventWorker(GracefulWorker, ggevent.GeventWorker):  # type: ignore[misc]
    """`gunicorn -k gracefulworker.gevent`."""

    whoami = staticmethod(gevent.getcurrent)

    server_class: Any  # GeventWorker's own, which is untyped

    @classmethod
    def check_config(cls, cfg: Config, log: Log) -> None:
        """:raises RuntimeError: with a server that does not call this class to handle a request."""
        if cls.server_class is not None or cls.wsgi_handler is not None:
            raise RuntimeError(
                f"{cls.__name__} has a server_class or a wsgi_handler, whose requests"
                " gracefulworker.gevent does not see and would cut: remove them, or derive"
                f" {cls.__name__} from gunicorn.workers.ggevent.GeventWorker and start it with"
                " -c python:gracefulworker.hooks"
            )
        super().check_config(cfg, log)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: from accept to close, also before its greenlet has run
        self.connections: set[Any] = set()
        self.parting: set[Any] = set()  #: hung up: their greenlets end next
        self.servers: list[Server] = []

    def notify(self) -> None:
        """GeventWorker.notify leaves at once when orphaned; `look` lets it finish first."""
        if self.supervisor is None:
            super().notify()
        elif not self.resigned:
            super(ggevent.GeventWorker, self).notify()

    def handle_quit(self, number: int, frame: Any) -> None:
        """GeventWorker.handle_quit: a greenlet ends the process, after worker_int and a moment."""
        super(GracefulWorker, self).handle_quit(number, frame)

    def make_server(self, listener: Listener, spawn: Any, **kwargs: Any) -> StreamServer:
        """GeventWorker.run makes its servers with `server_class`, if it is not None."""
        ssl_args = {name: kwargs[name] for name in ("ssl_context",) if name in kwargs}
        if ssl_args:
            # AsyncWorker.handle does so, when the connection is known here.
            ssl_args["do_handshake_on_connect"] = False
            self.cfg.set("do_handshake_on_connect", False)
            if isinstance(ssl_args["ssl_context"], gevent.ssl.SSLContext):
                ssl_args["ssl_context"].sslsocket_class = GeventTLSConnection
        handle = partial(self.handle, accepting.ListenerName(listener))
        server = Server(listener, handle=handle, spawn=spawn, **ssl_args)
        server.worker = self
        if self.cfg.workers > 1:
            server.max_accept = 1  # as GeventWorker.run does: leave some to the others
        self.servers.append(server)
        return server

    def run(self) -> None:
        """GeventWorker.run, whose sleep `oversee` ends."""
        if not is_supervised(self):
            super().run()
            return
        self.lingerer = lingering.Lingerer()
        Hearing.proxied = accepting.expects_proxy_header(self.cfg)
        self.sockets = [cooperative(listener) for listener in self.sockets]
        if self.server_class is None:
            self.server_class = self.make_server
        self.sweep_at = 0.0  # monotonic seconds
        overseer = gevent.spawn(self.oversee, gevent.getcurrent())
        try:
            super().run()
        except Drained:
            return
        finally:
            overseer.kill()  # what a greenlet holds that has not ended is never finalized

    # Connections

    def handle(self, listener: Listener, client: Any, addr: Address) -> None:
        """GeventWorker.handle: a connection's whole life, in its greenlet."""
        if isinstance(client, GeventTLSConnection):
            # The socket that it was accepted as has given up its descriptor.
            client.worker = self
            client.accepted_at = time.monotonic_ns()
            self.connections.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            if isinstance(client, GeventTLSConnection):
                self.forget(client)

    def forget(self, client: Hearing) -> None:
        """The connection has been closed."""
        self.connections.discard(client)
        self.parting.discard(client)
        if self.stopping() and not (self.connections or self.parting):
            self.wake()

    def handle_request(self, *args: Any) -> Any:
        """GeventWorker.handle_request; afterwards the connection is idle again.

        :raises StopIteration: as there, when the connection is to be closed.
        """
        _, request, client, _ = args
        try:
            keep = super().handle_request(*args)
        except StopIteration:
            if isinstance(client, Hearing):
                client.read_up = is_read_up(request)
            raise
        if isinstance(client, Hearing):
            if getattr(request.body.reader, "length", None) != 0:
                self.finish_body(request)
            client.begun = request.unreader.buf.tell() > 0  # it stands at its end
            client.used = True
            if self.stopping() and not client.begun:
                self.wake()  # it announced keep-alive before SIGTERM, and is idle now
        return keep

    def finish_body(self, request: Request) -> None:
        """Read what the application left, as RequestParser.finish_body would do next.

        Here it tells whether bytes that are left belong to the next request.
        """
        # Where the next request starts is unknown after a malformed chunk (gunicorn 27).
        if not getattr(request.body, "failed", False):
            with gevent.Timeout(self.cfg.keepalive, False):
                while request.body.read(8192):
                    continue
                return
        raise StopIteration

    def linger(self, client: Any) -> None:
        """Half-close; `oversee` reads on (see `lingering`).

        No greenlet for each: thousands may be closed at the end of the delay, all at once.
        """
        if not self.lingerer:
            self.wake()
        self.lingerer.add(client, half_closed=client.hung_up)

    def keep_open(self, connection: Any) -> None:
        if not self.lingerer:
            self.wake()
        super().keep_open(connection)

    def sweep_when_due(self) -> None:
        """Not in each pass: with thousands that linger, one takes milliseconds."""
        now = time.monotonic()
        if self.lingerer.receiving or now >= self.sweep_at:
            self.sweep_at = now + SWEEP_PASS
            self.lingerer.sweep()

    # The overseer

    def oversee(self, main: Any) -> None:
        """Look at the page whenever there is something to see; end gunicorn's loop at the end."""
        try:
            while self._running:
                poll = select.poll()
                poll.register(self.PIPE[0], select.POLLIN)
                if self.phase < Phase.DRAINING:
                    poll.register(self.broadcast.draining.fd, select.POLLIN)
                ready = poll.poll(self.until_due() * 1000)
                if self.resigned:
                    return
                for fd, _ in ready:
                    if fd == self.PIPE[0]:
                        self.hush()
                    else:
                        self.hear(Phase.DRAINING)
                self.look()
                self.sweep_when_due()
                if self.phase >= Phase.DRAINING and self.slot.booted:
                    self.drain()
        except gevent.GreenletExit:
            return  # `run` is over already
        except BaseException:
            # gevent reports it; a new worker is better than a deaf one.
            gevent.kill(main, Drained)
            raise
        # It sleeps in GeventWorker.run. Not an instance: it would be kept here, and its traceback.
        gevent.kill(main, Drained)

    def turn_away(self, speak: Callable[[Any], bool]) -> int:
        """Those that wait while something blocks the hub: in the queue, and accepted but unread."""
        waiting: list[Any] = []
        for client in list(self.connections):
            if client.begun or client.hung_up or client.fileno() < 0:
                continue
            client.hung_up = True  # its greenlet reads nothing any more, should its turn come now
            if client.begun:
                client.hung_up = False  # it has come
            else:
                waiting.append(client)
        return self.turn_away_queue(speak, waiting)

    def until_due(self) -> float:
        """Seconds until the next look, if nothing happens before."""
        if self.lingerer.receiving:
            return lingering.LINGER_PASS
        if self.phase < Phase.DRAINING:
            return SWEEP_PASS if self.lingerer else PASS
        if self.servers or not self.has_work():
            return SETTLE_PASS  # waiting for the seal, or for closed connections to end, and linger
        dues = [self.first_byte_expiry(conn.accepted_at) for conn in self.waiting(used=False)]
        dues += [self.idle_expiry()] if self.waiting(used=True) else []
        return min(self.until(dues), SWEEP_PASS)

    def waiting(self, used: bool) -> list[Any]:
        """Connections whose current request has not begun; `used`: it is not their first."""
        return [
            client
            for client in self.connections
            if client.used == used
            and not (client.begun or client.hung_up)
            and client.fileno() >= 0  # else it is wrapped in a GeventTLSConnection, which knows
        ]

    def drain(self) -> None:
        self.end_http2()
        self.close_servers()
        now = time.monotonic_ns()
        idle = self.waiting(used=True) if now >= self.idle_expiry() else []
        for client in self.waiting(used=False):
            if now >= self.first_byte_expiry(client.accepted_at):
                idle.append(client)
        for client in lingering.still_idle(idle):
            client.hang_up()
            self.count_idle()
        if self.servers or self.in_flight or self.connections or self.parting:
            return
        self.lingerer.sweep()
        self.finish_when_lingered()

    def has_work(self) -> bool:
        """Whether any connection has, or may still have, something to be done for it.

        What is wrapped in a GeventTLSConnection has no descriptor of its own.
        """
        return bool(self.in_flight) or any(client.fileno() >= 0 for client in self.connections)

    def close_servers(self) -> None:
        state = self.listeners_state
        for server in list(self.servers):
            if state in (ListenerState.OPEN, ListenerState.GATED):
                server.ignore_limit()
            elif state == ListenerState.LEFT or server.empty_queue():
                self.servers.remove(server)
                server.close()
                if state == ListenerState.SEALED and not self.servers:
                    self.slot.drained = 1


def cooperative(listener: Any) -> Any:
    """The listener as GeventWorker.patch leaves it, where a subclass's own `patch` has not.

    Accepting from another one would block the hub when nobody waits.
    """
    if isinstance(listener, socket.socket):
        return listener
    kind = listener.family, listener.type, listener.proto
    return socket.socket(*kind, fileno=listener.detach())


def is_read_up(request: Request) -> bool:
    """Whether a request's body has been read to its end, and nothing was sent behind it."""
    reader = request.body.reader
    # LengthReader counts down; ChunkedReader gives its parser up at the last chunk.
    left = reader.length if hasattr(reader, "length") else getattr(reader, "parser", None)
    return not left and not request.unreader.buf.tell()
