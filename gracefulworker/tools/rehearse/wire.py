"""One HTTP/1.1 connection of a client, on which no ending looks like another.

What may be changed here: nothing that hides an ending. There are no retries, and the client's own
side is closed only after a whole answer or a loss. h11 judges the framing; the transport tells FIN
from RST.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import h11

from gracefulworker.tools.rehearse.journal import Close, Ending, Exchange, Journal, Track
from gracefulworker.tools.rehearse.plan import Header

#: A host refuses, or the network says that there is none.
NOBODY_THERE = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)


@dataclass(frozen=True)
class Tls:
    """How a connection is encrypted, and whose certificate is expected."""

    context: ssl.SSLContext
    host: str


class Service(Protocol):
    """What a client sees of a Service."""

    address: tuple[str, int]
    tls: Tls | None

    def refused(self, port: int) -> bool:
        """Whether the pod that was chosen for the client on `port` refused the connection."""


@dataclass
class Direct:
    """A server without a Service in front of it, or behind one that is not ours."""

    address: tuple[str, int]
    tls: Tls | None = None

    def refused(self, port: int) -> bool:
        return False  # the kernel refuses what is refused


@dataclass(frozen=True)
class Request:
    """What is sent, in pieces that are `pause` seconds apart; no answer is awaited between them."""

    method: str
    path: str
    body: bytes = b""
    headers: tuple[Header, ...] = ()  #: beside ours, or in their place
    body_pieces: int = 1
    head_pieces: int = 1
    pause: float = 0.0
    silence: float = 0.0  #: seconds between the connection and its first byte

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def duration(self) -> float:
        """Seconds that it takes to be sent."""
        return self.silence + self.pause * (self.head_pieces + self.body_pieces)

    def fields(self) -> list[Header]:
        """All header fields."""
        ours = {"Host": "localhost", "User-Agent": "gracefulworker-rehearse"}
        if self.body:
            ours["Content-Type"] = content_type(self.body)
            ours["Content-Length"] = str(len(self.body))
        theirs = [h for h in self.headers if self.body or h[0].lower() != "content-type"]
        names = {name.lower() for name, _ in theirs}
        return [*((n, v) for n, v in ours.items() if n.lower() not in names), *theirs]


def content_type(body: bytes) -> str:
    """The type that a body looks like: JSON, a form, or just bytes."""
    try:
        text = body.decode()
        if isinstance(json.loads(text), (dict, list)):
            return "application/json"
    except ValueError:
        pass
    if re.fullmatch(rb"[\w.\[\]%+-]+=[^\s&]*(&[\w.\[\]%+-]+=[^\s&]*)*", body):
        return "application/x-www-form-urlencoded"
    return "application/octet-stream"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    location: str = ""  #: where it redirects to

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class Lost(Exception):
    """The request had no whole answer."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.value)
        self.ending = ending


class Connection(asyncio.Protocol):
    """A connection that is open, from the client's side; `open` makes it."""

    transport: asyncio.Transport

    def __init__(self, track: Track, journal: Journal, service: Service) -> None:
        self.track, self.journal, self.service = track, journal, service
        self._http = h11.Connection(h11.CLIENT)
        self._change = asyncio.Event()
        self._location = ""
        self._answered = False  # a byte of the present answer has come
        self._reused = False
        self._reset = False
        self.gone = False  # the server has ended its side
        self.reusable = False  # idle, and nothing was said against another request

    @classmethod
    async def open(cls, journal: Journal, service: Service, track: Track) -> Connection:
        """Connect to the Service.

        :raises Lost: refused, or reset while connecting.
        :raises OSError: this machine has no room for it, which is nobody's loss.
        """
        loop = asyncio.get_running_loop()
        tls = service.tls
        try:
            _, connection = await loop.create_connection(
                lambda: cls(track, journal, service),
                *service.address,
                ssl=tls.context if tls else None,
                server_hostname=tls.host if tls else None,
            )
        except ssl.SSLCertVerificationError:
            raise
        except ssl.SSLError:
            raise Lost(Ending.CLOSED_FRESH) from None  # in the handshake
        except ConnectionResetError:
            raise Lost(Ending.RESET_FRESH) from None
        except TimeoutError:
            raise Lost(Ending.TIMEOUT) from None
        except OSError as error:
            if error.errno not in NOBODY_THERE:
                raise
            raise Lost(Ending.REFUSED) from None
        return connection

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.track.port = self.transport.get_extra_info("sockname")[1]

    def data_received(self, data: bytes) -> None:
        self._answered = True
        self._http.receive_data(data)
        self._change.set()

    def eof_received(self) -> bool:
        self.gone = True
        self._http.receive_data(b"")
        self._ended(Close.UNANNOUNCED)
        # What is being sent is not cut short; TLS ends both ways at once.
        return self.service.tls is None

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self._reset = self._reset or error is not None
        self._ended(Close.RESET)

    def _ended(self, idle_close: Close) -> None:
        if self.reusable:
            self.track.end(self.journal.now(), idle_close)
        self.reusable = False
        self._change.set()

    # What the client does

    def close(self, how: Close = Close.CLIENT) -> None:
        self.reusable = False
        self.track.end(self.journal.now(), how)
        self.transport.close()

    async def ask(self, request: Request, exchange: Exchange) -> Answer:
        """One request and its whole answer; the connection is closed unless it may be reused.

        :raises Lost: with the ending, which is noted in `exchange` by the caller.
        """
        await self.begin(request, exchange)
        return await self.finish(exchange)

    async def begin(self, request: Request, exchange: Exchange) -> None:
        """Send a request, and wait for the head of its answer.

        :raises Lost: as `ask`.
        """
        self.track.idle_since = None
        self.reusable = self._answered = False
        with self._closing():
            await self._send(request)
            while not exchange.status:
                event = await self._event()
                if isinstance(event, h11.Response):
                    exchange.status = event.status_code
                    self._location = dict(event.headers).get(b"location", b"").decode("latin-1")

    async def finish(self, exchange: Exchange) -> Answer:
        """Read the rest of the answer.

        :raises Lost: as `ask`.
        """
        body = []
        with self._closing():
            while not isinstance(event := await self._event(), h11.EndOfMessage):
                if isinstance(event, h11.Data):
                    body.append(bytes(event.data))
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._reused = True
            self.track.idle_since = self.journal.now()
            self.reusable = not self.gone
            if self.gone:
                self.track.end(self.journal.now(), Close.UNANNOUNCED)
        else:
            self.close(Close.ANNOUNCED)
        return Answer(exchange.status, b"".join(body), self._location)

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        """A connection whose request is lost, or given up, is of no more use."""
        try:
            yield
        except (Lost, asyncio.CancelledError):
            self.close(Close.LOST)
            raise

    async def _send(self, request: Request) -> None:
        if request.silence:
            await asyncio.sleep(request.silence)
        headers = [(name.encode(), value.encode()) for name, value in request.fields()]
        head = self._out(h11.Request(method=request.method, target=request.path, headers=headers))
        pieces = _cut(head, request.head_pieces)
        if request.body:
            pieces += _cut(self._out(h11.Data(data=request.body)), request.body_pieces)
        self._out(h11.EndOfMessage())
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(request.pause)
            if self.gone:
                return  # why, `_event` finds out
            self.transport.write(piece)

    def _out(self, event: Any) -> bytes:
        return self._http.send(event) or b""

    async def _event(self) -> Any:
        """What comes next of the answer.

        :raises Lost: nothing that could follow.
        """
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError:  # no HTTP, or less than a whole answer
                raise self._unanswered() if self.gone else Lost(Ending.WRONG) from None
            if event is not h11.NEED_DATA:
                return event
            if self.gone:
                raise self._unanswered()
            self._change.clear()
            await self._change.wait()

    def _unanswered(self) -> Lost:
        if self._answered:
            return Lost(Ending.TRUNCATED)
        if self.service.refused(self.track.port):
            return Lost(Ending.REFUSED)
        if self._reset:
            return Lost(Ending.RESET_REUSED if self._reused else Ending.RESET_FRESH)
        return Lost(Ending.CLOSED_REUSED if self._reused else Ending.CLOSED_FRESH)


def _cut(data: bytes, pieces: int) -> list[bytes]:
    size = -(-len(data) // pieces)
    return [data[at : at + size] for at in range(0, len(data), size)]
