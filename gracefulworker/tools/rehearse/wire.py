"""One HTTP/1.1 connection of a client, on which no ending looks like another.

What may be changed here: nothing that hides an ending. There are no retries, and the client's own
side is closed only after a whole answer or a loss. h11 judges the framing; the transport tells FIN
from RST.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from typing import Any, Protocol, cast

import h11

from gracefulworker.tools.rehearse.journal import Close, Ending, Exchange, Journal, Track

#: A host refuses, or the network says that there is none.
NOBODY_THERE = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Service(Protocol):
    """What a client sees of a Service."""

    address: tuple[str, int]

    def refused(self, port: int) -> bool:
        """Whether the pod that was chosen for the client on `port` refused the connection."""


@dataclass
class Direct:
    """A server without a Service in front of it."""

    address: tuple[str, int]

    def refused(self, port: int) -> bool:
        return False  # the kernel refuses what is refused


@dataclass(frozen=True)
class Request:
    """What is sent, in pieces that are `pause` seconds apart; no answer is awaited between them."""

    method: str
    path: str
    body: bytes = b""
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


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes


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
        try:
            _, connection = await loop.create_connection(
                lambda: cls(track, journal, service), *service.address
            )
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
        return True  # what is being sent is not cut short

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
        self.track.idle_since = None
        self.reusable = self._answered = False
        try:
            await self._send(request)
            answer = await self._receive(exchange)
        except (Lost, asyncio.CancelledError):
            self.close(Close.LOST)
            raise
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._reused = True
            self.track.idle_since = self.journal.now()
            self.reusable = not self.gone
            if self.gone:
                self.track.end(self.journal.now(), Close.UNANNOUNCED)
        else:
            self.close(Close.ANNOUNCED)
        return answer

    async def _send(self, request: Request) -> None:
        if request.silence:
            await asyncio.sleep(request.silence)
        headers = [("Host", "rehearsal"), ("User-Agent", "gracefulworker-rehearse")]
        if request.body:
            headers += [
                ("Content-Type", "application/octet-stream"),
                ("Content-Length", str(len(request.body))),
            ]
        head = self._out(h11.Request(method=request.method, target=request.path, headers=headers))
        pieces = _cut(head, request.head_pieces)
        if request.body:
            pieces += _cut(self._out(h11.Data(data=request.body)), request.body_pieces)
        self._out(h11.EndOfMessage())
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(request.pause)
            if self.gone:
                return  # why, `_receive` finds out
            self.transport.write(piece)

    def _out(self, event: Any) -> bytes:
        return self._http.send(event) or b""

    async def _receive(self, exchange: Exchange) -> Answer:
        body = []
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError:  # no HTTP, or less than a whole answer
                raise self._unanswered() if self.gone else Lost(Ending.WRONG) from None
            if event is h11.NEED_DATA:
                if self.gone:
                    raise self._unanswered()
                self._change.clear()
                await self._change.wait()
            elif isinstance(event, h11.Response):
                exchange.status = event.status_code
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return Answer(exchange.status, b"".join(body))

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
