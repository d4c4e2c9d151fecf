"""Clients, and a name for every way in which a request can end."""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CEILING = 15.0  # seconds; the longest that any single event may take

now = time.monotonic

#: gunicorn's own error pages (util.write_error). Since Python 3.14, whose textwrap.dedent takes the
#: CR of the empty line for blank, their head ends in a bare LF, which RFC 9112 section 2.2 lets a
#: client accept. Nobody else's may, and ours least of all.
OWN_PAGE = rb"HTTP/1\.1 [45]\d\d [^\r\n]*" + (
    rb"\r\nConnection: close\r\nContent-Type: text/html\r\nContent-Length: \d+(?=\r\n\n)"
)

#: A response's head, to its empty line.
HEAD = re.compile(rb"(?P<head>%s|.*?(?=\r\n\r\n))\r\n\r?\n" % OWN_PAGE, re.DOTALL)


# -- endings ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """How one attempt ended, and when.

    ``kind`` is one of: ``response`` (whole), ``truncated`` (a response that stopped short),
    ``eof`` (closed cleanly without a byte: a client may send its request again), ``reset``,
    ``refused``, ``timeout``, and ``connected`` for an attempt that only knocked.
    """

    kind: str
    began: float
    at: float
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def took(self) -> float:
        return self.at - self.began

    @property
    def closes(self) -> bool:
        """The response announces that the connection ends with it."""
        return self.header("connection").lower() == "close"

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def __str__(self) -> str:
        return f"{self.kind} {self.status or ''} {self.body[:40]!r} after {self.took:.3f} s"


class _Stop(Exception):
    """The connection gave no more bytes; the argument is the kind of ending."""


# -- clients ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Address:
    family: int
    target: Any  # what socket.connect() takes for the family

    @property
    def path(self) -> Path:
        return Path(str(self.target))

    @property
    def bind(self) -> str:
        """As gunicorn's option -b has it."""
        if self.family == socket.AF_UNIX:
            return f"unix:{self.target}"
        return "{}:{}".format(*self.target)


def request(
    path: str = "/fast",
    method: str = "GET",
    headers: Iterable[str] = (),
    body: bytes = b"",
    version: str = "1.1",
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: test", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Client:
    """One connection. It is never closed behind the test's back, least of all after a response."""

    def __init__(self, address: Address, timeout: float = CEILING) -> None:
        self.buffer = b""  # what has come and was not asked for yet
        self.raw = b""  # all that ever came
        self.broken = False
        self.opened = now()
        self.socket = socket.socket(address.family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(address.target)
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except (ConnectionResetError, BrokenPipeError):
            self.broken = True  # what came before it may still be read: ending() tells the rest

    def ask(self, path: str = "/fast", method: str = "GET", **parts: Any) -> Ending:
        self.send(request(path, method, **parts))
        return self.ending(method)

    def ending(self, method: str = "GET", timeout: float | None = None) -> Ending:
        """Read one response, or find out why there is none."""
        began, status, body = now(), 0, b""
        headers: tuple[tuple[str, str], ...] = ()
        if timeout is not None:
            self.socket.settimeout(timeout)
        try:
            while status < 200:  # an interim response (100 Continue) is not the answer
                head = self._head()
                first, *rest = head.decode("latin-1").split("\r\n")
                status = int(first.split()[1])
                pairs = (line.split(":", 1) for line in rest if line)
                headers = tuple((name, value.strip()) for name, value in pairs)
            fields = {key.lower(): value for key, value in headers}
            if method == "HEAD" or status in (204, 304):
                pass
            elif fields.get("transfer-encoding", "").lower() == "chunked":
                while size := int(self._until(b"\r\n"), 16):
                    body += self._take(size)
                    self._until(b"\r\n")
                self._until(b"\r\n")
            elif "content-length" in fields:
                body = self._take(int(fields["content-length"]))
            else:
                body, self.buffer = self._rest(), b""
            kind = "response"
        except _Stop as stop:
            kind = str(stop)
            if kind == "eof" and self._was_reset():
                kind = "reset"
            elif kind == "eof" and (status or self.buffer):
                kind = "truncated"
        return Ending(kind, began, now(), status, headers, body)

    def end(self, timeout: float | None = None) -> Ending:
        """Read to the end of the connection: ``eof``, ``reset`` or ``timeout``, and what came."""
        began = now()
        if timeout is not None:
            self.socket.settimeout(timeout)
        try:
            self._rest()
            kind = "reset" if self._was_reset() else "eof"
        except _Stop as stop:
            kind = str(stop)
        body, self.buffer = self.buffer, b""
        return Ending(kind, began, now(), body=body)

    def _was_reset(self) -> bool:
        """A reset that follows a FIN shows in no recv(), which goes on to say end of file."""
        return self.broken or self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def _more(self) -> None:
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            raise _Stop("timeout") from None
        except ConnectionResetError:
            raise _Stop("reset") from None
        if not data:
            raise _Stop("eof")
        self.buffer += data
        self.raw += data

    def _head(self) -> bytes:
        while not (end := HEAD.match(self.buffer)):
            self._more()
        self.buffer = self.buffer[end.end() :]
        return end["head"]

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            self._more()
        part, _, self.buffer = self.buffer.partition(mark)
        return part

    def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        part, self.buffer = self.buffer[:size], self.buffer[size:]
        return part

    def _rest(self) -> bytes:
        try:
            while True:
                self._more()
        except _Stop as stop:
            if str(stop) != "eof":
                raise
        return self.buffer


def knock(address: Address, timeout: float = CEILING) -> Ending:
    """Connect and hang up: ``connected``, ``refused``, ``reset`` or ``timeout``."""
    began = now()
    try:
        Client(address, timeout).close()
        kind = "connected"
    except OSError as error:
        kind = why(error)
    return Ending(kind, began, now())


def fetch(address: Address, path: str = "/fast", timeout: float = CEILING, **parts: Any) -> Ending:
    """One request on a connection of its own, read to the response's end."""
    began = now()
    try:
        client = Client(address, timeout)
    except OSError as error:
        return Ending(why(error), began, now())
    with contextlib.closing(client):
        end = client.ask(path, **parts)
    return Ending(end.kind, began, end.at, end.status, end.headers, end.body)


def why(error: OSError) -> str:
    """The kind of ending for a connection that did not come about."""
    if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):  # the latter: unix path gone
        return "refused"
    if isinstance(error, ConnectionResetError):
        return "reset"
    if isinstance(error, TimeoutError):
        return "timeout"
    raise error


def ends(clients: Sequence[Client], timeout: float = CEILING) -> list[Ending]:
    """Watch many idle connections at once, so that each end carries its own time.

    A connection on which bytes come instead is reported as ``truncated`` with these bytes.
    """
    began = now()
    found: dict[Client, Ending] = {}
    with selectors.DefaultSelector() as poll:
        for client in clients:
            poll.register(client.socket, selectors.EVENT_READ, client)
        while len(found) < len(clients) and (left := began + timeout - now()) > 0:
            for key, _ in poll.select(left):
                client = key.data
                try:
                    data = client.socket.recv(65536)
                    kind = "truncated" if data else "eof"
                except ConnectionResetError:
                    data, kind = b"", "reset"
                found[client] = Ending(kind, began, now(), body=data)
                poll.unregister(key.fileobj)
    return [found.get(client, Ending("timeout", began, now())) for client in clients]
