"""WebSockets that the application holds open: told at the end of the delay, so that they end.

A WebSocket has no end of its own, so one alone would hold the exit up to the deadline. What its
handler understands, whichever library it uses, is that its client has gone: shutdown(SHUT_RD) gives
it an end of file, in its next read or in the one that it waits in (recv, poll, TLS, gevent alike).
What has been sent by the client before is still read first, and writing goes on.

Linux answers bytes that cross a FIN after SHUT_RD with RST, which destroys what the client has not
received yet (measured: 3.8 of 3.9 MB). So no FIN follows at once: the library's own close is put
off, and once the handler has ended, when nothing of it can be half sent, the client is sent a close
frame and given a moment to answer.

What may be changed here: which requests are WebSockets, and how both sides are told.
"""

from __future__ import annotations

import _socket  # gevent patches `socket`
import ssl
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from gracefulworker.seam import Config, Request
from gracefulworker.shared.page import Page, Slot
from gracefulworker.shared.unpatched import original
from gracefulworker.workers import requests

#: RFC 6455 section 5.5.1: a close frame with the status 1001 (section 7.4.1), "going away".
GOING_AWAY = b"\x88\x02\x03\xe9"


class WebSocketWorker(Protocol):
    """What is asked here of the worker."""

    page: Page
    slot: Slot
    in_flight: dict[Request, requests.InFlight]

    def keep_open(self, connection: Any) -> None: ...


class Held:
    """Mixed in before a connection's class while its handler is to end."""

    __slots__ = ()

    def close(self) -> None:
        """Not yet: the worker does so when the handler has ended."""


@cache
def held(kind: Any) -> Any:
    """The class `kind`, held; a connection's `__class__` may become it and be `kind` again."""
    return type(kind.__name__, (Held, kind), {"__slots__": ()})


class WebSockets:
    """Those of a worker that have been told, until their handlers end."""

    def __init__(self, worker: WebSocketWorker) -> None:
        self.worker = worker
        #: request -> the class of its connection, or None if it could not be told
        self.told: dict[Request, Any] = {}
        # Native, also under gevent, for a native thread tells: a handler that ends waits for that.
        self._lock = original("_thread", "allocate_lock")()

    def tell(self) -> None:
        """In DRAINING, now and again: those that are new, too. In the deadline's thread."""
        for request, entry in list(self.worker.in_flight.items()):
            if request not in self.told and is_open(request, entry):
                with self._lock:
                    self._tell(request)

    def _tell(self, request: Request) -> None:
        connection = request.unreader.sock
        kind = connection.__class__
        self.told[request] = kind  # from here on its handler's end waits for the lock
        if request not in self.worker.in_flight:
            del self.told[request]
            return
        connection.__class__ = held(kind)
        try:
            # Not its own method, which would forget the TLS session. gevent's has a `_sock`.
            raw = getattr(connection, "_sock", connection)
            _socket.socket.shutdown(raw, _socket.SHUT_RD)
        except OSError:  # the client has gone, or the application has taken the descriptor
            connection.__class__ = kind
            self.told[request] = None
            return
        if not self.worker.page.is_serving():
            self.worker.slot.count("websockets_told")

    def was_told(self, request: Request) -> bool:
        return self.told.get(request) is not None

    def part(self, request: Request, entry: requests.InFlight) -> None:
        """Its handler has ended without a response: tell its client, too, and read on."""
        with self._lock:
            is_due = self.was_told(request) and entry.response is None
        if is_due and say_goodbye(request.unreader.sock):
            del self.told[request]  # held for good: the library's thread may be late
            self.worker.keep_open(request.unreader.sock)

    def forget(self, request: Request) -> None:
        """Its handler has ended: its connection is closed as any other is."""
        with self._lock:
            kind = self.told.pop(request, None)
            if kind is not None:
                request.unreader.sock.__class__ = kind


def is_open(request: Request, entry: requests.InFlight) -> bool:
    """Whether the application holds a WebSocket, or is about to open one (RFC 6455 section 4.2.1).

    An ordinary response that has begun to such a request is none.
    """
    return (
        entry.response is None
        and hasattr(request, "unreader")
        and request.method == "GET"
        and requests.is_websocket(request)
        and any(name == "SEC-WEBSOCKET-KEY" for name, _ in request.headers)
    )


def spare_alerts(cfg: Config) -> None:
    """Have OpenSSL 3 take an end of file without a close_notify for one with it.

    It would answer ours (SHUT_RD) with a fatal alert, behind which no close frame can be sent. The
    application sees what it has seen before (gunicorn's suppress_ragged_eofs).
    """
    make_context = cfg.ssl_context

    def ssl_context(config: Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        """The ssl_context setting; sync's is no context when a connection has had one."""
        context = make_context(config, default)
        if isinstance(context, ssl.SSLContext):
            context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        return context

    cfg.set("ssl_context", ssl_context)


def say_goodbye(connection: Any) -> bool:
    """Send the close frame without waiting; False if the client does not read, or has gone."""
    if getattr(connection, "_sslobj", connection) is None:
        return False  # the application has ended TLS
    try:
        connection.settimeout(0)
        return int(connection.send(GOING_AWAY)) == len(GOING_AWAY)
    except (OSError, ValueError):
        return False
