"""Taking connections from an accept queue: what is the same in each engine.

Each engine makes connections of its own class of what `accept_next` gives. None of them may lose
what waits in a queue: when the process has run out of descriptors they wait for a `Pause`, and at
the deadline `accept_all` takes who is left, to be told so.

What may be changed here: what the end of a queue, or of the room for its connections, means.
"""

from __future__ import annotations

import _socket
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol, TypeVar

from gracefulworker.seam import Address, Config, Listener, Log
from gracefulworker.shared import sockets
from gracefulworker.workers.lingering import Lingerer

Accepted = TypeVar("Accepted")


class PausingWorker(Protocol):
    """A worker, as a `Pause` sees it."""

    log: Log
    pid: int

    def ask_to_retire(self) -> None: ...


#: Seconds without accepting after the process ran out of descriptors.
NO_ROOM_PAUSE = 0.05

#: Seconds after which a worker that has no connection and no descriptor for one gives way to
#: another: the application has lost track of its files. gunicorn's sync and gthread end at once.
NO_ROOM_PATIENCE = 5.0


class Pause:
    """A moment without accepting, for the process has run out of descriptors: one will be free.

    `until` is the monotonic second of its end. It is kept until somebody asks whether the pause
    `lasts`, so that a loop which has stopped listening sees that it is to begin again.
    """

    until = 0.0  #: 0.0: there is none
    since = 0.0  #: of the first one after a connection could be accepted; reset by who accepts

    def __init__(self, worker: PausingWorker) -> None:
        self._worker = worker

    def begin(self, holds: bool) -> None:
        """No descriptor is free.

        :param holds: whether the worker has connections, whose descriptors will be.
        """
        now = monotonic()
        if not self.since:
            self.since = now
            self._worker.log.warning("no descriptor is free (see ulimit -n): connections wait")
        elif not holds and now - self.since >= NO_ROOM_PATIENCE:
            self.since = now
            self._worker.log.error(
                "no descriptor is free for %g s, and no connection has one: this worker gives way"
                " to another (pid: %s)",
                NO_ROOM_PATIENCE,
                self._worker.pid,
            )
            self._worker.ask_to_retire()
        self.until = now + NO_ROOM_PAUSE

    def lasts(self) -> bool:
        if self.until and monotonic() >= self.until:
            self.until = 0.0
        return self.until > 0.0


def accept_next(
    listener: Listener, accept: Callable[[], Accepted], lingerer: Lingerer
) -> Accepted | None:
    """What `accept` gives for the next connection in the queue; None when nobody waits.

    :param accept: the listener's own method.
    :raises OSError: no descriptor is free (its errno is in `sockets.NO_ROOM`), nor is one that
        lingers; or the listener is broken.
    """
    while True:
        try:
            return accept()
        except ConnectionAbortedError:
            continue  # it has left, others may wait
        except OSError as error:
            if sockets.nobody_waits(listener, error):
                return None
            if error.errno not in sockets.NO_ROOM or not lingerer.thin():
                raise


def accept_all(listener: Listener) -> list[_socket.socket]:
    """The connections that wait in a listener's queue, as bare sockets (at the deadline).

    Native calls on the descriptor, for this runs in a thread beside gevent's hub.
    """
    if listener.fileno() < 0:
        return []
    raw = _socket.socket(fileno=listener.fileno())
    raw.settimeout(0)  # the application may have set a default
    waiting = []
    try:
        while True:
            fd, _ = raw._accept()  # type: ignore[attr-defined]
            waiting.append(_socket.socket(fileno=fd))
    except OSError:
        return waiting  # the end of the queue, or no descriptor is left
    finally:
        raw.detach()


#: Bytes that are looked at for a PROXY header. Some have more, with TLVs: those count as requests.
PROXY_HEADER_MAX = 4096

_PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"


def expects_proxy_header(cfg: Config) -> bool:
    """Whether balancers say first on whose behalf they connect; many do so before any request."""
    return cfg.proxy_protocol not in (False, "off")  # the former in gunicorn 23


def is_proxy_header(data: bytes) -> bool:
    """Whether that is a whole PROXY header, and no byte of a request behind it.

    In one piece, as its sender has to send it:
    https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2.
    """
    if data.startswith(_PROXY_V2):
        return len(data) == 16 + int.from_bytes(data[14:16], "big")
    return data.startswith(b"PROXY ") and data.find(b"\r\n") == len(data) - 2


def take_proxy_header(connection: _socket.socket) -> bytes:
    """Read a PROXY header if that is all that has come; nothing otherwise, and without waiting."""
    flags = _socket.MSG_PEEK | _socket.MSG_DONTWAIT
    try:
        # Not the method: the sync worker's own gives out what has been read here.
        seen = _socket.socket.recv(connection, PROXY_HEADER_MAX, flags)
    except OSError:
        return b""  # whoever reads next will meet it, too
    return _socket.socket.recv(connection, len(seen)) if is_proxy_header(seen) else b""


class ListenerName:
    """Stands for a listener in gunicorn's handlers: its name is asked for after it is closed."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._name = listener.getsockname()

    def getsockname(self) -> Address:
        return self._name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)
