"""The sync worker: one connection at a time, no keep-alive.

gunicorn's loop accepts a connection and reads it to its end. Before SIGTERM so do we. From SIGTERM
on a connection that has not sent a byte is set aside (`silent`), so that it does not take the turn
of those that have; connections are still accepted one by one, for other workers want some too.
Behind TLS that byte is the request's, not the handshake's.
Closed connections linger in `lingerer`, not in the way of the next one.

What may be changed here: the order in which connections get their turn.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from gunicorn.sock import ssl_context
from gunicorn.workers import sync

from gracefulworker.phases import ListenerState, Phase
from gracefulworker.seam import Address, Config, Listener, Log
from gracefulworker.shared import sockets
from gracefulworker.workers import accepting, lingering
from gracefulworker.workers.base import PASS, SETTLE_PASS, GracefulWorker

#: Closed connections that linger before a busy worker looks at them.
SWEEP_BATCH = 8


class LingeringSocket:
    """Hands a client's connection to the lingerer when gunicorn closes it.

    util.close_graceful (gunicorn 26 on) would block the only thread until the client closes, and
    util.close (before) resets what was left unread. Mixed in before a class of sockets.
    """

    lingerer: lingering.Lingerer

    def shutdown(self, how: int) -> None:
        """The first step of either close; afterwards there is nothing left to wait for."""
        if how == socket.SHUT_WR:
            self.lingerer.add(self)  # type: ignore[arg-type]
        else:
            super().shutdown(how)  # type: ignore[misc]

    def close(self) -> None:
        if self.fileno() >= 0:  # type: ignore[attr-defined]
            self.lingerer.add(self)  # type: ignore[arg-type]
        super().close()  # type: ignore[misc]


class SyncConnection(LingeringSocket, socket.socket):
    """A client's connection."""

    def speaks(self) -> bool:
        """Whether its being readable is a request's first byte."""
        return True


class SyncProxiedConnection(SyncConnection):
    """The same, where a PROXY header comes first: it is not yet a request."""

    _header = b""  #: it was read, and is still to be given out

    def speaks(self) -> bool:
        self._header = self._header or accepting.take_proxy_header(self)
        return not self._header or bool(sockets.readable([self.fileno()]))

    def recv(self, *args: Any) -> bytes:
        header, self._header = self._header, b""
        return header or super().recv(*args)


class SyncTLSConnection(LingeringSocket, ssl.SSLSocket):
    """The same behind TLS, which takes the turn when a byte has been deciphered."""

    _first = b""  #: it was read to see whether there is one, and is still to be given out
    _failure: OSError | None = None  #: the same

    def speaks(self) -> bool:
        """Go on with the handshake, and look for a byte behind it; without waiting."""
        try:
            self._first = super().recv(1)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLWantWriteError:
            pass  # the certificates exceed the socket's buffer: gunicorn's read waits for that
        except OSError as error:
            self._failure = error  # gunicorn reports it
        return True

    def recv(self, *args: Any) -> bytes:
        if self._failure is not None:
            raise self._failure
        first, self._first = self._first, b""
        return first or super().recv(*args)


class Secured:
    """Stands for the context of a connection that is behind TLS already.

    SyncWorker.handle calls sock.ssl_wrap_socket, which asks the context for no more than this.
    """

    @staticmethod
    def wrap_socket(connection: SyncTLSConnection, **_: object) -> SyncTLSConnection:
        return connection


class SyncWorker(GracefulWorker, sync.SyncWorker):  # type: ignore[misc]
    """`gunicorn -k gracefulworker.sync`."""

    @classmethod
    def check_config(cls, cfg: Config, log: Log) -> None:
        """:raises RuntimeError: with `threads`, which this class cannot have."""
        if cfg.threads > 1:
            raise RuntimeError(
                f"threads = {cfg.threads} needs another worker class than gracefulworker.sync:"
                " use -k gracefulworker.gthread, or remove --threads"
            )
        super().check_config(cfg, log)

    is_secured = False  #: the connection whose turn it is

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: accepted and not yet spoken: connection -> (listener, address, accepted at ns)
        self.silent: dict[SyncConnection | SyncTLSConnection, tuple[Listener, Address, int]] = {}

    def run(self) -> None:
        """SyncWorker.run with our waiting prepared."""
        if self.supervisor is not None:
            self.lingerer = LingeringSocket.lingerer = lingering.Lingerer()
            self.plain = not self.cfg.is_ssl
            proxied = self.plain and accepting.expects_proxy_header(self.cfg)
            self.connection_class = SyncProxiedConnection if proxied else SyncConnection
            if not self.plain:
                self.make_context = self.cfg.ssl_context
                self.cfg.set("ssl_context", self.context_for_turn)
            self.pause = accepting.Pause(self)
            self.names = {listener: accepting.ListenerName(listener) for listener in self.sockets}
            self.kinds = {s: (s.family, s.type, s.proto) for s in self.sockets}
            # What ends the wait for a connection's first byte, beside that byte.
            self.turn = select.poll()
            self.turn.register(self.broadcast.lame_duck.fd, select.POLLIN)
            self.turn.register(self.PIPE[0], select.POLLIN)
        super().run()

    # The turn

    def accept(self, listener: Listener) -> None:
        """SyncWorker.accept: called by run_for_one and run_for_multiple, once per connection.

        The descriptor comes from `_accept`, the half of socket.accept that makes no object, for
        the object is to be a `SyncConnection`.

        :raises BlockingIOError: nobody waits; the loop calls `wait`.
        """
        if self.supervisor is None:
            super().accept(listener)
            return
        self.look()
        crowded = len(self.lingerer) >= SWEEP_BATCH
        if crowded:
            self.lingerer.sweep()
        stopping = self.stopping()
        if stopping and self.silent and self.serve_one_of_the_silent():
            return
        try:
            fd, address = self.accept_from(listener) if stopping else listener._accept()
        except OSError as error:
            if error.errno not in sockets.NO_ROOM:
                raise
            if not sockets.nobody_waits(listener, error):
                if not self.lingerer.thin() and not self.thin_silent():
                    self.pause.begin(holds=False)
            raise BlockingIOError(errno.EAGAIN, "no descriptor is free") from error
        self.pause.since = 0.0
        if (crowded or self.silent) and self.lingerer.make_room(fd):
            self.thin_silent()
        accepted_at = self.count_accepted()
        accepted = self.connection_class(*self.kinds[listener], fd)
        accepted.setblocking(self.plain)
        connection = accepted if self.plain else self.secure(accepted)
        if not self.plain and connection.fileno() < 0:
            return  # the client has left
        if self.has_spoken(connection):
            self.serve(listener, connection, address)
        else:
            self.silent[connection] = (listener, address, accepted_at)

    def accept_from(self, listener: Listener) -> tuple[int, Address]:
        """What is done to the listener in the worker's phase.

        :raises BlockingIOError: nobody waits.
        :raises OSError: no descriptor is free, for one.
        """
        state = self.listeners_state if self.phase >= Phase.DRAINING else ListenerState.OPEN
        if state == ListenerState.LEFT:
            self.close_listeners(list(self.sockets))
        if listener not in self.sockets or self.pause.lasts():
            raise BlockingIOError(errno.EAGAIN, "this listener is closed, or pauses")
        try:
            return listener._accept()
        except OSError as error:
            if not sockets.nobody_waits(listener, error):
                raise
            if state == ListenerState.SEALED:
                self.close_listeners([listener])
                if not self.sockets:
                    self.slot.drained = 1
            raise BlockingIOError(errno.EAGAIN, "nobody waits") from error

    def close_listeners(self, listeners: list[Listener]) -> None:
        for listener in listeners:
            self.sockets.remove(listener)
            listener.close()

    def secure(self, connection: SyncConnection) -> SyncConnection | SyncTLSConnection:
        """Behind TLS, before the handshake; where that fails, gunicorn tries again and reports."""
        self.is_secured = False
        try:
            return ssl_context(self.cfg).wrap_socket(  # type: ignore[no-any-return]
                connection,
                server_side=True,
                suppress_ragged_eofs=self.cfg.suppress_ragged_eofs,
                do_handshake_on_connect=False,  # `speaks` goes through it, as far as it can
            )
        except Exception as error:
            self.log.debug("Error before the handshake: %s", error)
            return connection

    def context_for_turn(
        self, config: Config, default: Callable[[], ssl.SSLContext]
    ) -> ssl.SSLContext | type[Secured]:
        """The ssl_context setting, with connections that linger.

        gunicorn makes a context for each connection. Ours has had one when its turn comes.
        """
        if self.is_secured:
            return Secured
        context = self.make_context(config, default)
        context.sslsocket_class = SyncTLSConnection
        return context

    def has_spoken(self, connection: SyncConnection | SyncTLSConnection) -> bool:
        """Whether the first byte is there; before SIGTERM wait for it, as gunicorn does."""
        fd = connection.fileno()
        self.turn.register(fd, select.POLLIN)
        try:
            while not self.stopping():
                timeout = lingering.LINGER_PASS if self.lingerer.receiving else PASS
                ready = dict(self.turn.poll(timeout * 1000))
                if fd in ready and connection.speaks():
                    return True
                self.attend(ready)
                self.look()
                self.lingerer.sweep()
        finally:
            self.turn.unregister(fd)
        return bool(sockets.readable([fd])) and connection.speaks()

    def serve_one_of_the_silent(self) -> bool:
        """Serve one that has spoken meanwhile, and close those whose time is over."""
        fds = sockets.readable([connection.fileno() for connection in self.silent])
        for connection, (listener, address, _) in list(self.silent.items()):
            if connection.fileno() in fds and connection.speaks():
                if self.silent.pop(connection, None) is None:
                    continue  # the deadline has come, and speaks to it
                self.serve(listener, connection, address)
                return True
        if self.phase >= Phase.DRAINING:
            now = time.monotonic_ns()
            for connection, (_, _, accepted_at) in list(self.silent.items()):
                if now >= self.first_byte_expiry(accepted_at):
                    if self.silent.pop(connection, None) is None:
                        continue
                    connection.close()
                    self.count_idle()
        return False

    def thin_silent(self) -> bool:
        """Close the one that has been silent for longest; False when there is none.

        For a descriptor of its own, so it does not linger.
        """
        for connection in lingering.still_idle(list(self.silent)):
            del self.silent[connection]
            connection.close()
            self.count_idle()
            return self.lingerer.thin()
        return False

    def serve(
        self,
        listener: Listener,
        connection: SyncConnection | SyncTLSConnection,
        address: Address,
    ) -> None:
        if not self.plain:
            connection.setblocking(True)
            self.is_secured = isinstance(connection, SyncTLSConnection)
        self.handle(self.names[listener], connection, address)

    def turn_away(self, speak: Callable[[Any], bool]) -> int:
        """Those in the accept queue and the silent that have spoken; the main thread is busy."""
        silent = list(self.silent)
        # Should it be free just now, it serves those that it takes out first.
        return self.turn_away_queue(speak, [c for c in silent if self.silent.pop(c, None)])

    # The wait

    def wait(self, timeout: float) -> list[Listener] | list[None]:
        """SyncWorker.wait: called by run_for_one and run_for_multiple when nobody waits.

        :raises sync.StopWaiting: the worker has drained.
        """
        if self.supervisor is None:
            return super().wait(timeout)  # type: ignore[no-any-return]
        self.notify()
        self.look()
        self.lingerer.sweep()
        timeout = min(timeout, PASS)
        wakers: list[Any] = [self.PIPE[0], *self.silent]
        if self.phase == Phase.SERVING:
            wakers.append(self.broadcast.lame_duck.fd)
        if self.phase < Phase.DRAINING:
            wakers.append(self.broadcast.draining.fd)
            if self.pause.until and self.pause.lasts():
                timeout = accepting.NO_ROOM_PAUSE
            else:
                wakers += self.sockets
        elif self.sockets:
            timeout = SETTLE_PASS  # a gated Unix listener is readable all the time: just try
        elif not self.silent:
            if self.finish_when_lingered():
                raise sync.StopWaiting
            timeout = SETTLE_PASS
        else:
            timeout = self.until([self.first_byte_expiry(at) for _, _, at in self.silent.values()])
        poll = select.poll()
        for waker in wakers:
            poll.register(waker, select.POLLIN)
        if self.lingerer.receiving:
            timeout = min(timeout, lingering.LINGER_PASS)
        ready = dict(poll.poll(timeout * 1000))
        self.attend(ready)
        if self.phase == Phase.SERVING:
            return [listener for listener in self.sockets if listener.fileno() in ready]
        # `accept` has the silent to look after, too.
        return list(self.sockets) or [None]

    def attend(self, ready: dict[int, int]) -> None:
        """To descriptors that are no connection's."""
        if self.PIPE[0] in ready:
            self.hush()
        if self.broadcast.lame_duck.fd in ready:
            self.hear(Phase.LAME_DUCK)
        if self.broadcast.draining.fd in ready:
            self.hear(Phase.DRAINING)
