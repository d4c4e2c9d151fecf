"""The threaded worker: connections wait in a poller, requests run in a pool of threads.

gunicorn gives each new connection a thread that waits for its first byte; here a connection is
polled first (`silent`), so a silent one holds no thread. Idle keep-alive connections wait in
gunicorn's own `keepalived_conns`. Closed connections linger in `lingerer`, where gunicorn 26 on
blocks its main thread for up to two seconds each.

What may be changed here: which connection waits where. Only the main thread touches the poller.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.workers import gthread
from gunicorn.workers.base import Worker

from gracefulworker import seam
from gracefulworker.phases import KILL_MARGIN, SECOND, ListenerState, Phase
from gracefulworker.shared import sockets
from gracefulworker.workers import accepting, lingering
from gracefulworker.workers.base import PASS, SETTLE_PASS, GracefulWorker

#: Seconds that a silent connection is kept before SIGTERM, beyond `keepalive`: gunicorn's own
#: DEFAULT_WORKER_DATA_TIMEOUT (25.3 on; before, a thread waited for ever).
FIRST_BYTE_PATIENCE = 5.0


class ThreadConnection(gthread.TConn):  # type: ignore[misc]
    """gunicorn's connection, handed to the lingerer when it is closed."""

    # TConn's own, which is untyped.
    cfg: seam.Config
    sock: Any  #: a socket.socket, or an ssl.SSLSocket once there is a parser
    parser: seam.RequestParser
    initialized: bool
    is_http2: bool  #: 25 on

    lingerer: lingering.Lingerer
    still_silent = False  #: it has shaken hands and said nothing yet

    def init(self) -> None:
        """TConn.init; a TLS connection waits for its first byte in the poller once more.

        :raises StopIteration: which ThreadWorker.handle takes for the end; see finish_request.
        """
        fresh = not self.initialized
        super().init()
        if fresh and self.cfg.is_ssl and not self.is_http2:
            if not self.sock.pending() and not sockets.readable([self.sock.fileno()]):
                self.still_silent = True
                raise StopIteration("the handshake is done")

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

    @classmethod
    def check_config(cls, cfg: seam.Config, log: seam.Log) -> None:
        """:raises RuntimeError: on gunicorn 23."""
        seam.check_gthread()
        super().check_config(cfg, log)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: not yet spoken, oldest first: connection -> since when, in ns
        self.silent: dict[ThreadConnection, int] = {}
        self.pause = accepting.Pause()
        self._speak: Callable[[Any], bool] | None = None
        self.turned_away = 0

    def handle_quit(self, number: int, frame: Any) -> None:
        """ThreadWorker.handle_quit without its tpool.shutdown, whose lock submit() may hold.

        The pool's threads are not joined: see `gracefulworker.arbiter.leaving`.
        """
        if self.supervisor is None:
            super().handle_quit(number, frame)
            return
        self._running = False
        Worker.handle_quit(self, number, frame)

    def run(self) -> None:
        """ThreadWorker.run with our descriptors in its poller."""
        if self.supervisor is not None:
            self.lingerer = lingering.Lingerer()
            read = selectors.EVENT_READ
            self.poller.register(self.PIPE[0], read, lambda _: self.hush())
            self.poller.register(self.broadcast.draining.fd, read, self.on_bell)
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
            client, address = listener.accept()
        except ConnectionAbortedError:
            return True  # it has left, others may wait
        except OSError as error:
            if error.errno in sockets.NO_ROOM:
                self.pause.begin()
                self.set_accept_enabled(False)
            elif error.errno not in sockets.NOBODY_WAITS:
                raise
            return False
        self.count_accepted()
        self.nr_conns += 1
        conn = ThreadConnection(self.cfg, client, address, self.names[listener])
        conn.lingerer = self.lingerer
        conn.data_ready = True  # ThreadWorker.handle (25.3 on) is not called before
        try:
            # Most clients speak at once: this saves them a pass of the loop.
            client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.wait_for_first_byte(conn)
        except OSError:
            self.enqueue_req(conn)  # reset: reported there, like any other
        else:
            self.enqueue_req(conn)
        return True

    def wait_for_first_byte(self, conn: ThreadConnection) -> None:
        conn.sock.setblocking(False)
        self.silent[conn] = time.monotonic_ns()
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_first_byte, conn))

    def on_first_byte(self, conn: ThreadConnection, client: socket.socket) -> None:
        self.poller.unregister(client)
        del self.silent[conn]
        self.enqueue_req(conn)

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
        if self.is_draining():
            self.drain()
        elif self.silent:
            self.close_silent(
                lambda at: at + round((FIRST_BYTE_PATIENCE + self.cfg.keepalive) * SECOND)
            )

    def until_due(self) -> float:
        """Seconds until the next pass is needed, if nothing happens before."""
        if self.pause.until:
            return accepting.NO_ROOM_PAUSE
        if self.phase < Phase.DRAINING:
            return PASS
        if self.sockets or not self.nr_conns:
            return SETTLE_PASS  # waiting for the seal, or for closed connections to linger
        dues = [self.idle_expiry()] if self.keepalived_conns else []
        if self.silent:
            dues.append(self.first_byte_expiry(next(iter(self.silent.values()))))
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
            elif has_read_ahead(conn, fs):
                self.enqueue_req(conn)
                return
        if conn.still_silent:
            conn.still_silent = False
            self.wait_for_first_byte(conn)
            return
        super().finish_request(conn, fs)

    # Draining

    def drain(self) -> None:
        self.end_http2()
        self.close_listeners()
        self.close_idle()
        if self.silent:
            self.close_silent(self.first_byte_expiry)
        if self.sockets or self.nr_conns:
            return
        self.finish_when_lingered()

    def turn_away(self, speak: Callable[[Any], bool]) -> int:
        """Those that wait for a thread: the main thread finds their futures cancelled."""
        self._speak = speak
        self.tpool.shutdown(wait=False, cancel_futures=True)
        told = threading.Event()
        self.method_queue.defer(told.set)  # after all of them
        told.wait(KILL_MARGIN / 2)
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

    def close_silent(self, expiry: Callable[[int], int]) -> None:
        """Close the connections that have not sent a byte in their time."""
        now = time.monotonic_ns()
        for conn, accepted_at in list(self.silent.items()):
            if now < expiry(accepted_at):
                break
            if sockets.readable([conn.sock.fileno()]):
                continue  # its event is on the way
            self.poller.unregister(conn.sock)
            del self.silent[conn]
            self.close_silently(conn)

    def close_silently(self, conn: ThreadConnection) -> None:
        self.nr_conns -= 1
        conn.close()
        self.count_idle()


def has_read_ahead(conn: ThreadConnection, fs: Future[Any]) -> bool:
    """Whether the next, pipelined request has been read with the last one, which is over.

    Before gunicorn 27 such bytes lie unseen until more come.
    """
    keeps = not fs.cancelled() and not fs.exception() and fs.result()
    return bool(keeps and conn.parser.unreader.buf.tell())
