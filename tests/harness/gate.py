"""The one way in which a request waits: it says that it is there, and stands still."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from harness.clients import CEILING, now


class Held:
    """A request that stands at the gate inside the application."""

    def __init__(self, link: socket.socket, name: str, pid: int) -> None:
        self.link, self.name, self.pid = link, name, pid

    def release(self) -> float:
        """Let it go on; returns the time of it."""
        at = now()
        with contextlib.suppress(OSError):
            self.link.sendall(b"g")
        self.link.close()
        return at


class Gate:
    """Where ``apps.gate(name)`` announces itself and waits (a socket, so that gevent can yield)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(128)
        self._held: list[Held] = []
        self._waiting: list[Held] = []

    def entered(self, name: str, timeout: float = CEILING) -> Held:
        """The next request at the gate with this name, as soon as it is there."""
        limit = now() + timeout
        while True:
            for held in self._waiting:
                if held.name == name:
                    self._waiting.remove(held)
                    return held
            self.listener.settimeout(max(0.01, limit - now()))
            try:
                link, _ = self.listener.accept()
            except TimeoutError:
                raise AssertionError(f"no request {name!r} reached the gate") from None
            with link.makefile("rb") as lines:
                who, pid = lines.readline().split()
            self._held.append(Held(link, who.decode(), int(pid)))
            self._waiting.append(self._held[-1])

    def close(self) -> None:
        for held in self._held:
            held.link.close()
        self.listener.close()
