"""uvicorn's newest parser, zttp, and the HTTP/2 that it has with it (uvicorn 0.53 on).

An HTTP/2 connection is brought to its end in the two steps of RFC 9113 section 6.8, as in `http2`:
at the end of the delay PING with a GOAWAY that excludes nothing yet, and as soon as the PING is
answered the GOAWAY that names the last stream. Whatever streams are in flight are finished, and
what is above the last one is not begun: its client may send it again elsewhere.

What may be changed here: how it is found whether a request has begun, and when the two GOAWAYs are
sent. zttp itself is imported only where it has read something.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from gracefulworker.phases import SECOND
from gracefulworker.workers.uvicorn_protocols import (
    Connection,
    Places,
    ProtocolWorker,
    cycle_class,
    ours,
)

#: Seconds between the two GOAWAYs at the most, where no PING is answered.
ROUND_TRIP = 0.03

#: The last stream that there can be.
NO_MORE_STREAMS = 2**31 - 1

#: A frame of 8 bytes, type 6, no flags, no stream (RFC 9113 section 6.7).
PING = b"\0\0\x08\x06\0\0\0\0\0draining"


class Http2Worker(ProtocolWorker, Protocol):
    """What is asked here of the worker."""

    changed: asyncio.Event


class ZttpConnection(Connection):
    """HTTP/1. zttp does not tell what it has read and not used yet, so the last piece is kept."""

    #: The last piece, and of which request the response had been made when it came; nothing where
    #: it was the rest of an upload.
    piece: tuple[Any, bytes] | None = None

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        self.piece = None if cycle is not None and cycle.more_body else (cycle, data)
        super().data_received(data)  # type: ignore[misc]

    def has_begun(self) -> bool:
        """What is piped behind the end of an upload of several pieces is not seen."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            return True
        if self.piece is None or (cycle is not None and cycle.more_body):
            return False
        before, data = self.piece
        return before is cycle or ends_in_a_request(data)


def ends_in_a_request(data: bytes) -> bool:
    """Whether a request follows the whole ones in `data`, and its end does not."""
    import zttp

    if not data.strip(b"\r\n"):
        return False  # the last bytes of a head
    parser = zttp.Connection(zttp.SERVER)
    event: Any
    try:
        event = parser.receive_event(data)
        while event is not zttp.NEED_DATA:
            if isinstance(event, zttp.EndOfMessage) or getattr(event, "end_stream", False):
                parser.send_response(204)
                parser.end_message()
                parser.start_next_cycle()
            event = parser.next_event()
        parser.receive_data(b"")
    except zttp.ProtocolError:
        return False  # it begins within a request, or is the last one of its connection
    try:
        parser.next_event()
    except zttp.RemoteProtocolError:
        return True
    return False


class Streams(Connection):
    """HTTP/2: a request is a stream, and its connection has none of its own."""

    worker: Http2Worker
    # uvicorn's: zttp's parser, the streams whose responses are not complete, and what sends
    conn: Any
    cycles: dict[int, Any]
    flush: Callable[[], None]

    cycle = None
    has_cycle = False  #: whether there has been a stream
    announced_at = 0  #: ns of the first GOAWAY
    acknowledged = False  #: the client has seen it
    is_over = False  #: the second one has been sent
    complete: Sequence[Any] = ()  #: cycles, of which `unsent` tells more

    def has_begun(self) -> bool:
        """Or a complete response waits until the client has room for the rest of it."""
        return bool(self.cycles or self.conn.has_pending_send())

    def expiry(self) -> int:
        """ns at which it is closed if it has not begun."""
        return 0 if self.is_over else self.announced_at + round(ROUND_TRIP * SECOND)

    def on_response_complete(self, stream_id: int) -> None:
        """ZttpH2Protocol.on_response_complete forgets a stream that may have more to be sent."""
        self.complete = [*self.unsent(), self.cycles.get(stream_id)]
        super().on_response_complete(stream_id)  # type: ignore[misc]

    def unsent(self) -> list[Any]:
        """The cycles of complete responses that are not sent to their end."""
        buffered = self.transport.get_write_buffer_size()
        return [one for one in self.complete if one and (buffered or one.stream.pending_bytes)]

    def approach_end(self) -> None:
        """Send the GOAWAY that is due."""
        if not self.has_cycle or self.transport.is_closing():
            return
        if not self.announced_at:
            self.announced_at = time.monotonic_ns()
            # PING first, for clients whose h2 ends with any GOAWAY.
            self.transport.write(PING)
            self.conn.close(0, NO_MORE_STREAMS)
            self.flush()
        elif self.acknowledged or time.monotonic_ns() >= self.expiry():
            self.name_last_stream()

    def name_last_stream(self) -> None:
        if not self.is_over:
            self.is_over = True
            self.conn.close()
            self.flush()

    def events(self) -> Iterator[Any]:
        """ZttpH2Protocol.events; the only PING to be answered is `approach_end`'s."""
        for event in super().events():  # type: ignore[misc]
            if getattr(event, "ack", False):
                self.acknowledged = True
                self.worker.changed.set()
            yield event

    def handle_request(self, event: Any) -> None:
        """ZttpH2Protocol.handle_request, for each stream; it ignores what it has no cycle for."""
        if not self.is_over:
            self.has_cycle = True
            super().handle_request(event)  # type: ignore[misc]

    def timeout_keep_alive_handler(self) -> None:
        """ZttpH2Protocol.timeout_keep_alive_handler takes what `unsent` has for nothing."""
        if not (self.announced_at and self.has_begun()):
            super().timeout_keep_alive_handler()  # type: ignore[misc]

    def shutdown(self) -> None:
        """ZttpH2Protocol.shutdown, once there is nothing in flight."""
        self.name_last_stream()
        self.transport.close()


class Unread(Connection):
    """In cleartext: whether it is HTTP/2 is seen in its first bytes, of which `buffer` has some."""

    buffer: bytes  #: uvicorn's
    cycle = None

    def has_begun(self) -> bool:
        return bool(self.buffer)


class HandedOn(Connection):
    """A connection that is counted, which another protocol goes on with."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.accepted_at = time.monotonic_ns()
        super(Connection, self).connection_made(transport)  # type: ignore[misc]


#: By uvicorn's module.
MIXINS: dict[str, type[Connection]] = {
    "uvicorn.protocols.http.auto_zttp_impl": Unread,
    "uvicorn.protocols.http.zttp_impl": ZttpConnection,
    "uvicorn.protocols.http.zttp_h2_impl": Streams,
}


def ours_in(places: Places, stock: Any, worker: Any, *mixins: type) -> Any:
    """Have uvicorn make requests of our classes, and return the class for connections of HTTP.

    :param stock: a protocol class of uvicorn's, or a subclass of one.
    :raises LookupError: it makes no requests.
    """
    for cls in stock.__mro__:
        module = sys.modules[cls.__module__]
        mixin = MIXINS.get(module.__name__, Connection)
        if mixin is Unread:
            for name in ("ZttpProtocol", "ZttpH2Protocol"):
                either = ours_in(places, getattr(module, name), worker, HandedOn)
                places.put(module, name, either)
        elif hasattr(module, "RequestResponseCycle"):
            name = "RequestResponseCycle"
            places.put(module, name, cycle_class(getattr(module, name), worker))
        else:
            continue
        return ours(stock, worker, *mixins, mixin)
    raise LookupError(stock)
