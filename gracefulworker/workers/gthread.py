"""The threaded worker: connections wait in a poller, requests run in a pool of threads.

gunicorn gives each new connection a thread that waits for its first byte; here a connection is
polled first (`silent`), so a silent one holds no thread. Behind TLS a thread takes the handshake
only as far as it can without waiting (`shaking`), and so until the request's first byte. Idle
keep-alive connections wait in gunicorn's own `keepalived_conns`. Closed connections linger in
`lingerer`, where gunicorn 26 on blocks its main thread for up to two seconds each.

What may be changed here: which connection waits where. Only the main thread touches the poller.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.sock import ssl_wrap_socket
from gunicorn.workers import gthread
from gunicorn.workers.base import Worker

from gracefulworker import seam
from gracefulworker.phases import KILL_MARGIN, SECOND, ListenerState, Phase
from gracefulworker.shared import sockets
from gracefulworker.workers import accepting, lingering
from gracefulworker.workers.base import PASS, SETTLE_PASS, GracefulWorker

#: Seconds that a connection which has not sent a byte is kept before SIGTERM, beyond `keepalive`;
#: None: for ever, as a thread waits for it in stock before gunicorn 25.3.
FIRST_BYTE_PATIENCE: float | None = getattr(gthread, "DEFAULT_WORKER_DATA_TIMEOUT", None)

#: The same, should the worker be full because of such ones.
FULL_PATIENCE = 5.0


class LazyContext:
    """What the ssl_context setting gives: the user's context, for connections not yet behind TLS.

    TConn.init calls sock.ssl_wrap_socket, which asks a context for no more than this. Ours has
    been behind TLS, and has shaken hands, when it comes there.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make

    def wrap_socket(self, client: socket.socket, **options: Any) -> ssl.SSLSocket:
        if isinstance(client, ssl.SSLSocket):
            return client
        options["do_handshake_on_connect"] = False  # `shake_hands` does it, at once
        return self._make().wrap_socket(client, **options)


class ThreadConnection(gthread.TConn):  # type: ignore[misc]
    """gunicorn's connection, handed to the lingerer when it is closed."""

    # TConn's own, which is untyped.
    cfg: seam.Config
    sock: Any  #: a socket.socket, or an ssl.SSLSocket once there is a parser
    parser: seam.RequestParser
    initialized: bool
    is_http2 = False  #: 25 on

    lingerer: lingering.Lingerer
    proxy_header = b""  #: it was read ahead, for it is not yet a request
    #: ns since when its client is waited for: its accept, the begin of the handshake, or its end
    since: int
    awaited = 0  #: what the poller is to wait for, behind TLS, before there is a request

    def init(self) -> None:
        """TConn.init; a TLS connection waits in the poller for whatever it needs from its client.

        :raises StopIteration: which ThreadWorker.handle takes for the end; see finish_request.
        """
        if self.initialized or not self.cfg.is_ssl:
            fresh = not self.initialized
            super().init()
            if fresh and self.proxy_header:
                self.parser.unreader.unread(self.proxy_header)
            return
        self.shake_hands()
        self.since = time.monotonic_ns()
        super().init()
        if not self.is_http2 and not self.has_spoken():
            self.wait_for(selectors.EVENT_READ)

    def shake_hands(self) -> None:
        """Go on with the handshake as far as it goes without waiting.

        :raises StopIteration: as above.
        """
        self.sock.setblocking(False)
        if not isinstance(self.sock, ssl.SSLSocket):
            self.sock = ssl_wrap_socket(self.sock, self.cfg)
            self.since = time.monotonic_ns()
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            self.wait_for(selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self.wait_for(selectors.EVENT_WRITE)

    def wait_for(self, events: int) -> None:
        self.awaited = events
        raise StopIteration("it waits for its client")

    def has_spoken(self) -> bool:
        return bool(self.sock.pending() or sockets.readable([self.sock.fileno()]))

    def takes_proxy_header(self) -> bool:
        """Read it ahead, if that is all that has come; whether it was."""
        if self.proxy_header:
            return False
        self.proxy_header = accepting.take_proxy_header(self.sock)
        return bool(self.proxy_header)

    def close(self, graceful: bool = False) -> None:
        """TConn.close; `graceful` (26 on) blocks the main thread there."""
        self.lingerer.add(self.sock)


class ThreadWorker(GracefulWorker, gthread.ThreadWorker):  # type: ignore[misc]
    """`gunicorn -k gracefulworker.gthread`."""

    request_argument = 0

    # gthread.ThreadWorker's own, which is untyped.
    tpool: ThreadPoolExecutor
    poller: selectors.BaseSelector
    method_queue: seam.CallbackQueue
    #: idle ones; finish_request adds, on_client_socket_readable and murder_keepalived take away
    keepalived_conns: deque[ThreadConnection]
    nr_conns: int  #: all that have been accepted and not closed
    _accepting: bool

    @classmethod
    def check_config(cls, cfg: seam.Config, log: seam.Log) -> None:
        """:raises RuntimeError: on gunicorn 23."""
        seam.check_gthread()
        super().check_config(cfg, log)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: those that have not sent a byte, oldest first
        self.silent: dict[ThreadConnection, None] = {}
        #: those in the middle of their TLS handshake, or behind it and silent; stock's threads wait
        #: for them for ever
        self.shaking: dict[ThreadConnection, None] = {}
        self.pause = accepting.Pause(self)
        self.has_looked_ahead = False
        self._speak: Callable[[Any], bool] | None = None
        self.turned_away = 0

    def handle_quit(self, number: int, frame: Any) -> None:
        """ThreadWorker.handle_quit without its tpool.shutdown, whose lock submit() may hold.

        The interpreter's exit does it: what the pool holds is answered, as in stock.
        """
        if self.supervisor is None:
            super().handle_quit(number, frame)
            return
        self._running = False
        self.end_http2()  # else a thread waits for its client's next stream
        Worker.handle_quit(self, number, frame)

    def run(self) -> None:
        """ThreadWorker.run with our descriptors in its poller."""
        if self.supervisor is not None:
            self.lingerer = lingering.Lingerer()
            self.proxied = accepting.expects_proxy_header(self.cfg) and not self.cfg.is_ssl
            read = selectors.EVENT_READ
            self.poller.register(self.PIPE[0], read, lambda _: self.hush())
            self.poller.register(self.broadcast.lame_duck.fd, read, self.poller.unregister)
            self.poller.register(self.broadcast.draining.fd, read, self.on_bell)
            if self.cfg.is_ssl:
                make = self.cfg.ssl_context
                self.cfg.set(
                    "ssl_context",
                    lambda cfg, make_default: LazyContext(partial(make, cfg, make_default)),
                )
            self.names = {listener: listener.getsockname() for listener in self.sockets}
        super().run()

    # Accepting

    def set_accept_enabled(self, enabled: bool) -> None:
        """ThreadWorker.set_accept_enabled: called in each pass with the limit's verdict."""
        if self.supervisor is not None:
            if self.pause.until and self.pause.lasts():
                enabled = False
            elif self.is_draining():
                enabled = bool(self.sockets)  # the queue is emptied, whatever the limit
        super().set_accept_enabled(enabled)

    def accept(self, listener: seam.Listener) -> None:
        """ThreadWorker.accept submits the connection to the pool; here its first byte does."""
        if self.supervisor is None:
            super().accept(listener)
            return
        self.accept_one(listener)

    def accept_one(self, listener: seam.Listener) -> bool:
        """Whether a connection came."""
        try:
            accepted = accepting.accept_next(listener, listener.accept, self.lingerer)
        except OSError as error:
            if error.errno not in sockets.NO_ROOM:
                raise
            self.pause.begin(holds=self.nr_conns > 0)
            self.set_accept_enabled(False)
            return False
        if accepted is None:
            return False
        client, address = accepted
        self.pause.since = 0.0
        if self.lingerer:
            self.lingerer.make_room(client.fileno())
        accepted_at = self.count_accepted()
        self.nr_conns += 1
        conn = ThreadConnection(self.cfg, client, address, self.names[listener])
        conn.lingerer, conn.since = self.lingerer, accepted_at
        conn.data_ready = True  # ThreadWorker.handle (25.3 on) is not called before
        try:
            # Most clients speak at once: this saves them a pass of the loop.
            client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.wait_for_first_byte(conn)
        except OSError:
            self.enqueue_req(conn)  # reset: reported there, like any other
        else:
            if self.proxied and conn.takes_proxy_header():
                self.wait_for_first_byte(conn)
            else:
                self.enqueue_req(conn)
        return True

    def wait_for_first_byte(self, conn: ThreadConnection) -> None:
        conn.sock.setblocking(False)
        self.silent[conn] = None
        self.wait_for_client(conn, selectors.EVENT_READ)

    def wait_for_client(self, conn: ThreadConnection, events: int) -> None:
        self.poller.register(conn.sock, events, partial(self.on_client, conn))

    def on_client(self, conn: ThreadConnection, client: socket.socket) -> None:
        if self.proxied and conn in self.silent and conn.takes_proxy_header():
            return
        self.poller.unregister(client)
        self.forget(conn)
        self.enqueue_req(conn)

    def forget(self, conn: ThreadConnection) -> None:
        """It is no longer waited for."""
        self.silent.pop(conn, None)
        self.shaking.pop(conn, None)

    def on_bell(self, fd: int) -> None:
        self.poller.unregister(fd)
        self.hear(Phase.DRAINING)

    # The loop

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """ThreadWorker.wait_for_and_dispatch_events: once in each pass of its loop."""
        if self.supervisor is None:
            super().wait_for_and_dispatch_events(timeout)
            return
        if self.pause.until or self.stopping():
            timeout = self.until_due()
        if self.lingerer.receiving:
            timeout = min(timeout, lingering.LINGER_PASS)
        super().wait_for_and_dispatch_events(timeout)
        self.look()
        if self.lingerer:
            self.lingerer.sweep()
        if self.stopping() and not self.has_looked_ahead:
            self.look_ahead()
        if self.is_draining():
            self.drain()
        elif not self._accepting:
            self.close_waiting([*self.silent, *self.shaking], self.patience(FULL_PATIENCE))
        elif self.silent and FIRST_BYTE_PATIENCE is not None:
            self.close_silent(self.patience(FIRST_BYTE_PATIENCE))

    def until_due(self) -> float:
        """Seconds until the next pass is needed, if nothing happens before."""
        if self.pause.until:
            return accepting.NO_ROOM_PAUSE
        if self.phase < Phase.DRAINING:
            return PASS
        if self.sockets or not self.nr_conns:
            return SETTLE_PASS  # waiting for the seal, or for closed connections to linger
        dues = [self.idle_expiry()] if self.keepalived_conns else []
        dues += [self.first_byte_expiry(conn.since) for conn in (*self.silent, *self.shaking)]
        return self.until(dues)

    def enqueue_req(self, conn: ThreadConnection) -> None:
        """ThreadWorker.enqueue_req; a pool that the deadline has shut down leaves only the 503."""
        try:
            super().enqueue_req(conn)
        except RuntimeError:
            if self.supervisor is None or self._speak is None:
                raise
            self.turned_away += self._speak(conn.sock)
            self.nr_conns -= 1

    def finish_request(self, conn: ThreadConnection, fs: Future[Any]) -> None:
        """ThreadWorker.finish_request: the request is over, on the main thread."""
        if self.supervisor is None:
            super().finish_request(conn, fs)
            return
        if self.stopping():
            if fs.cancelled() and self._speak is not None:
                self.turned_away += self._speak(conn.sock)
            elif keeps_alive(fs) and has_read_ahead(conn):
                self.enqueue_req(conn)
                return
        if conn.awaited:
            self.shaking[conn] = None
            self.wait_for_client(conn, conn.awaited)
            conn.awaited = 0
            return
        try:
            super().finish_request(conn, fs)
        except SystemExit as stop:
            if self.supervisor is None or fs.cancelled() or stop is not fs.exception():
                raise  # a signal's
            self.end_by_exit(conn, stop)

    def end_by_exit(self, conn: ThreadConnection, stop: SystemExit) -> None:
        """A request has called sys.exit(), which ends stock's worker, and all that it holds."""
        self.log.error("a request has called sys.exit(%r): the worker retires", stop.code)
        self.nr_conns -= 1
        conn.close()
        self.ask_to_retire()

    def look_ahead(self) -> None:
        """Once, after SIGTERM: answer what was read before it, and lies unseen."""
        self.has_looked_ahead = True
        for conn in list(self.keepalived_conns):
            if has_read_ahead(conn):
                self.on_client_socket_readable(conn, conn.sock)

    # Draining

    def drain(self) -> None:
        self.end_http2()
        self.close_listeners()
        self.close_idle()
        if self.silent or self.shaking:
            self.close_waiting([*self.silent, *self.shaking], self.first_byte_expiry)
        if self.sockets or self.nr_conns:
            return
        self.finish_when_lingered()

    def keep_open(self, connection: Any) -> None:
        """From a thread of the pool: finish_request comes after it."""
        self.method_queue.defer(super().keep_open, connection)

    def turn_away(self, speak: Callable[[Any], bool]) -> int:
        """Those that wait for a thread: the main thread finds their futures cancelled."""
        self._speak = speak
        self.tpool.shutdown(wait=False, cancel_futures=True)
        told = threading.Event()
        self.method_queue.defer(told.set)  # after all of them
        told.wait(KILL_MARGIN / 4)
        return self.turned_away

    def close_listeners(self) -> None:
        if not self.sockets:
            return
        state = self.listeners_state
        if state == ListenerState.LEFT:
            self.stop_accepting()
        elif state == ListenerState.SEALED:
            self.empty_queues()
        else:
            self.set_accept_enabled(True)

    def empty_queues(self) -> None:
        """Accept what waits; out of descriptors, in a later pass."""
        for listener in self.sockets:
            while self.accept_one(listener):
                continue
        if not self.pause.lasts():
            self.stop_accepting()
            self.slot.drained = 1

    def stop_accepting(self) -> None:
        super().set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()
        self.sockets = []

    def close_idle(self) -> None:
        """Close the idle keep-alive connections, after a last look for bytes."""
        if not self.keepalived_conns or time.monotonic_ns() < self.idle_expiry():
            return
        conns = {conn.sock: conn for conn in self.keepalived_conns}
        self.keepalived_conns.clear()
        for client in lingering.still_idle(list(conns)):
            self.poller.unregister(client)
            self.close_silently(conns.pop(client))
        for client, conn in conns.items():
            self.poller.unregister(client)
            self.enqueue_req(conn)

    def patience(self, seconds: float) -> Callable[[int], int]:
        """When a connection's time is over before SIGTERM, by when it began."""
        allowed = round((seconds + self.cfg.keepalive) * SECOND)
        return lambda since: since + allowed

    def close_silent(self, expiry: Callable[[int], int]) -> None:
        """Close the connections that have not sent a byte in their time; cheap if none is due."""
        if time.monotonic_ns() >= expiry(next(iter(self.silent)).since):
            self.close_waiting(list(self.silent), expiry)

    def close_waiting(self, conns: list[ThreadConnection], expiry: Callable[[int], int]) -> None:
        """Close those of `conns` whose clients have not done their part in their time."""
        now = time.monotonic_ns()
        for conn in conns:
            if now < expiry(conn.since) or sockets.readable([conn.sock.fileno()]):
                continue  # if it is readable its event is on the way
            self.poller.unregister(conn.sock)
            self.forget(conn)
            self.close_silently(conn)

    def close_silently(self, conn: ThreadConnection) -> None:
        self.nr_conns -= 1
        conn.close()
        self.count_idle()


def keeps_alive(fs: Future[Any]) -> bool:
    """What ThreadWorker.handle has returned."""
    return bool(not fs.cancelled() and not fs.exception() and fs.result())


def has_read_ahead(conn: ThreadConnection) -> bool:
    """Whether the next, pipelined request has been read with the last one, which is over.

    Before gunicorn 27 such bytes lie unseen until more come, and in all of it those that the TLS
    layer holds.
    """
    return bool(conn.parser.unreader.buf.tell() or (conn.cfg.is_ssl and conn.sock.pending()))
