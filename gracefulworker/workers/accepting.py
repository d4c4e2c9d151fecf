"""Taking connections from an accept queue."""

from __future__ import annotations

import _socket
from typing import Any


def accept_all(listener: Any) -> list[Any]:
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


class ListenerName:
    """Stands for a listener in gunicorn's handlers: its name is asked for after it is closed."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._name = listener.getsockname()

    def getsockname(self) -> Any:
        return self._name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)
