"""HTTP/2: the end of the delay is told by GOAWAY, and open streams are finished.

gunicorn serves a connection's streams one after the other in a thread (or greenlet) that blocks
in a read between them. A connection is brought to its end in the two steps of RFC 9113 section
6.8, between two streams and in its own thread: PING with a GOAWAY that excludes nothing yet ("open
no more streams"), and as soon as the PING is answered, so that no stream can still be on the wire,
the GOAWAY that names the last stream. A client that answers no PING has `ROUND_TRIP`; what it sends
later is above that last stream, which it may send again elsewhere, whatever the method.

The first GOAWAY comes at the end of the delay and not at SIGTERM: the endpoints are not yet told
then, so clients would only come back to us, and widely used ones (httpcore 1.0, under httpx) take
any GOAWAY that does not exclude their stream for its failure. During the delay streams are served.

What may be changed here: when the two GOAWAYs are sent. The module is imported only where HTTP/2
is on, for gunicorn has it since 25.
"""

from __future__ import annotations

import os
import select
import ssl
import time
from typing import Any, Protocol

from gunicorn.http2 import connection
from gunicorn.http2.connection import HTTP2ServerConnection
from h2.events import PingAckReceived
from hyperframe.frame import GoAwayFrame

from gracefulworker.phases import SECOND

#: Seconds between the two GOAWAYs at the most, where no PING is answered.
ROUND_TRIP = 0.03

#: The last stream that there can be, with NO_ERROR.
NO_MORE_STREAMS = GoAwayFrame(last_stream_id=2**31 - 1).serialize()


class HTTP2Worker(Protocol):
    """What is asked here of the worker."""

    def is_draining(self) -> bool: ...
    def first_byte_expiry(self, accepted_at: int) -> int: ...
    def count_idle(self) -> None: ...


class Call:
    """Ends the wait of all connections of a worker, once and for good.

    A byte that nobody reads, since an end of file might not come: processes that the application
    forks hold the write end, too.
    """

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe()
        self._given = False

    def give(self) -> None:
        if not self._given:
            self._given = True
            os.write(self._write_fd, b".")


class HTTP2Connection(HTTP2ServerConnection):  # type: ignore[misc]
    """gunicorn's connection (25 on), which waits for frames where it can be called."""

    worker: HTTP2Worker
    call: Call
    idle_timeout: float | None = None  # gunicorn 27's; before, an idle connection stays

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.began = time.monotonic_ns()
        self.announced_at = 0  #: ns of the first GOAWAY
        self.acknowledged = False  #: the client has seen it
        # Under gevent its own, for this module is imported after gevent has patched `select`.
        self._poll = select.poll()
        self._poll.register(self.sock, select.POLLIN)
        self._poll.register(self.call.fd, select.POLLIN)

    def receive_data(self, data: bytes | None = None) -> list[Any]:
        """HTTP2ServerConnection.receive_data: called between streams, reads for the next ones.

        By handle_http2, which both AsyncWorker and ThreadWorker have.
        """
        if data is None and not self.is_busy() and not self.frames_come():
            return []  # it has been closed
        return super().receive_data(data)  # type: ignore[no-any-return]

    def is_busy(self) -> bool:
        """Whether what has been read is not yet dealt with.

        A stream is open here while its upload is not complete (before gunicorn 27); requests and
        events are set aside (27, 26) when they come in the course of another stream.
        """
        return bool(
            self.streams
            or getattr(self, "pending_requests", None)
            or getattr(self, "_deferred_events", None)
        )

    def frames_come(self) -> bool:
        """Wait for them; False when none came in time and the connection has been closed."""
        if not self.worker.is_draining():
            ready = self.wait(self.idle_timeout, self._poll)
            if self.sock.fileno() in ready:
                return True
            if not ready:
                self.close()  # as gunicorn 27 does then
                return False
        if self.h2_conn.highest_inbound_stream_id:
            self.announce()
            until = self.announced_at + round(ROUND_TRIP * SECOND)
        else:
            until = self.worker.first_byte_expiry(self.began)
        if not self.acknowledged:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            if self.wait(max(until - time.monotonic_ns(), 0) / SECOND, poll):
                return True
        self.finish()
        self.worker.count_idle()
        return False

    def wait(self, seconds: float | None, poll: Any) -> set[int]:
        """The descriptors that have something to read within this time; None: whenever."""
        if isinstance(self.sock, ssl.SSLSocket) and self.sock.pending():
            return {self.sock.fileno()}
        return {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)}

    def announce(self) -> None:
        """The first of the two GOAWAYs.

        Written past h2, which would end its connection with it; between two streams nothing of
        h2's is left half sent. The PING is first, for clients whose h2 ends with any GOAWAY.
        """
        if not self.announced_at:
            self.announced_at = time.monotonic_ns()
            self.h2_conn.ping(b"draining")
            self._send_pending_data()
            self.sock.sendall(NO_MORE_STREAMS)

    def _handle_event(self, event: Any) -> Any:
        """HTTP2ServerConnection._handle_event; the only PING to be answered is `announce`'s."""
        if isinstance(event, PingAckReceived):
            self.acknowledged = True
        return super()._handle_event(event)

    def finish(self) -> None:
        """The GOAWAY that names the last stream. gunicorn closes the socket."""
        self.close(last_stream_id=self.h2_conn.highest_inbound_stream_id)


def use_our_connections(worker: HTTP2Worker) -> Call:
    """Have this process make connections of our class, and return what calls them to their end.

    http.get_parser (25 on) looks the class up in its module for each connection.
    """
    call = Call()
    connection.HTTP2ServerConnection = type(
        "HTTP2Connection", (HTTP2Connection,), {"worker": worker, "call": call}
    )
    return call


def use_stock_connections() -> None:
    """This process is about to end: gunicorn's module leads to no worker any more."""
    connection.HTTP2ServerConnection = HTTP2ServerConnection
