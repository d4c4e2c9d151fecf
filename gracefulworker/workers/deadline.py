"""The deadline, at which what is still in flight is answered or cut, and named.

The deadline comes from outside: nothing is raised into the application, and a signal would not be
heard, for gunicorn lets SIGTERM interrupt no system call. A native thread, started
with the worker, answers 503 where no response has begun, names what is left in the log
(method, path, age, where its code stands) and ends the process; the arbiter's SIGKILL,
`phases.KILL_MARGIN` later, is only for code that holds the interpreter so that no thread can run.

Who answers a request, the application or the deadline, is decided by one atomic claim
(the worker's `claims`). A response that has begun is cut and never given a false end.

What may be changed here: what is said and done at the deadline.
"""

from __future__ import annotations

import _socket  # the real sockets: gevent patches `socket`
import os
import select
import signal
import ssl
import struct
import sys
import time
import traceback
from _thread import get_ident  # bound before gevent patches it: the native one
from collections.abc import Callable
from typing import Any, Protocol

from gracefulworker.phases import SECOND
from gracefulworker.seam import Config, Log, Request, Response
from gracefulworker.shared.leaving import Leaving
from gracefulworker.shared.page import Broadcast, Nudge, Slot
from gracefulworker.shared.unpatched import original, start_thread
from gracefulworker.workers import requests
from gracefulworker.workers.websockets import WebSockets

#: Lines of a cut request's stack that are logged, the innermost.
STACK_LINES = 20

#: Seconds between two looks at the deadline.
STEP = 0.5

#: The same in DRAINING, where WebSockets may have been opened meanwhile.
DRAIN_STEP = 0.1

#: Seconds in which the last words are read by their clients before the process ends.
LAST_MOMENT = 0.1

#: A request whose client has its response; only its code is cut.
AFTER = "after its response"

_BODY = b"The server is shutting down.\n"

#: RFC 9110 section 15.6.4: another instance, or the next one, may answer a moment later.
LAST_WORDS = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Connection: close\r\n"
    b"Retry-After: 1\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class DeadlineWorker(Protocol):
    """What is asked here of the worker."""

    SIGNALS: list[signal.Signals]
    cfg: Config
    log: Log
    pid: int
    broadcast: Broadcast
    slot: Slot
    leaving: Leaving
    in_flight: dict[Request, requests.InFlight]
    claims: dict[Request, Response | Deadline]
    websockets: WebSockets

    def is_draining(self) -> bool: ...
    def deadline(self) -> int: ...
    def turn_away(self, speak: Callable[[Any], bool]) -> int: ...


class Deadline:
    """A thread that waits for the worker's deadline and then ends its process."""

    def __init__(self, worker: DeadlineWorker) -> None:
        self.worker = worker
        self._over: Nudge | None = None  # as long as it has not been started
        self._spoken: list[Any] = []
        self._kept: list[Any] = []

    def start(self) -> None:
        self._main = get_ident()
        over = Nudge()
        self._join = start_thread(lambda: self._wait(over))
        self._over = over

    def stop(self) -> None:
        """The process ends by itself; never returns when the deadline is over, and ends it."""
        if self._over is not None:
            self._over.give()
            self._join()

    def _wait(self, over: Nudge) -> None:
        # A second signal in a moment would come here, and not end the main thread's system call.
        signal.pthread_sigmask(signal.SIG_BLOCK, self.worker.SIGNALS)
        if self._comes(over):
            try:
                self.cut()
            finally:
                os._exit(0)

    def _comes(self, over: Nudge) -> bool:
        """Wait for the deadline; False when the process has come to its end before."""
        worker, bell = self.worker, self.worker.broadcast.draining.fd
        poll = original("select", "poll")()
        poll.register(over.fd, select.POLLIN)
        poll.register(bell, select.POLLIN)
        while True:
            step, deadline = STEP, 0
            if worker.is_draining():
                deadline = worker.deadline()
                left = (deadline - time.monotonic_ns()) / SECOND
                if left <= 0:
                    return True
                worker.websockets.tell()
                # In steps: the deadline of a worker that retires moves when SIGTERM comes.
                step = min(left, DRAIN_STEP)
            worker.leaving.look(deadline)
            for fd, _ in poll.poll(step * 1000):
                if fd == over.fd:
                    return False
                poll.unregister(bell)  # heard for good, also if it was the arbiter's death

    def cut(self) -> None:
        """Answer or cut what is left, and name it."""
        worker = self.worker
        left = list(worker.in_flight.items())
        endings = [(self.end(request, entry), request, entry) for request, entry in left]
        worker.slot.cut += sum(ending != AFTER for ending, _, _ in endings)
        worker.slot.in_flight = 0
        for ending, request, entry in endings:
            worker.log.warning(
                "cut at the deadline (%s): %s %s after %.1f s, at:\n%s",
                ending,
                request.method,
                request.path,
                time.monotonic() - entry.began,
                self.stack(entry.handler),
            )
        turned_away = worker.turn_away(self.speak)
        worker.slot.cut += turned_away
        if turned_away:
            worker.log.warning("cut at the deadline (503): %d waiting requests", turned_away)
        if worker.leaving.has_begun():
            worker.leaving.name_holders()
        elif not endings and not turned_away:
            # Connections in the middle of a request's head.
            worker.log.warning(
                "cut at the deadline: worker %s, which is at:\n%s",
                worker.pid,
                self.stack(self._main),
            )
        worker.slot.cut = max(worker.slot.cut, 1)
        self.part()

    def end(self, request: Request, entry: requests.InFlight) -> str:
        """End one request's connection as its client can best tell; what was done."""
        try:
            return self._end(request, entry)
        except (OSError, ValueError):
            return "closed"  # by the client, or by the application

    def _end(self, request: Request, entry: requests.InFlight) -> str:
        response = entry.response
        if not hasattr(request, "unreader"):
            return "its HTTP/2 stream"  # its frames are its own thread's to write
        if requests.is_websocket(request):
            if self.worker.websockets.was_told(request):
                return "its WebSocket, which was told to end"
            return "its WebSocket"  # a 503 in the midst of its frames would be noise
        if requests.is_answered(response):
            return AFTER
        connection = request.unreader.sock
        if response is None or not response.headers_sent:
            answers = self.worker.claims.setdefault(request, self)
            if isinstance(answers, Deadline):
                if isinstance(connection, ssl.SSLSocket) and self.is_in_tls(entry.handler):
                    return "closed"  # OpenSSL is not to be entered twice at once
                return "503" if self.speak(connection) else "closed"
            response = answers
        if not (response.chunked or response.response_length is not None):
            # This body ends where the connection does: only a reset tells that it was cut.
            raw = self._raw(connection)
            raw.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "in the middle of its response"

    def speak(self, connection: Any) -> bool:
        """Send the 503 without waiting; whether it could be sent."""
        try:
            raw = self._raw(connection)
            is_heard = True
            if isinstance(connection, ssl.SSLSocket):
                connection._sslobj.write(LAST_WORDS)  # type: ignore[attr-defined]
            elif self.worker.cfg.is_ssl:
                is_heard = False  # there was no handshake: a clean end of file is all we can say
            else:
                raw.send(LAST_WORDS, _socket.MSG_DONTWAIT)
            raw.shutdown(_socket.SHUT_WR)
        except (OSError, ValueError):
            return False  # the client is gone, or does not read
        self._spoken.append(raw)
        return is_heard

    def part(self) -> None:
        """Read on for a moment: unread bytes would turn the end into a reset (see `lingering`)."""
        until = time.monotonic() + LAST_MOMENT
        poll = original("select", "poll")()
        listening = {raw.fileno(): raw for raw in self._spoken}
        for fd in listening:
            poll.register(fd, select.POLLIN)
        while listening and (left := until - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                try:
                    if listening[fd].recv(65536):
                        continue
                except OSError:
                    pass  # reset: it will not say more
                poll.unregister(fd)
                del listening[fd]

    def stack(self, who: Any) -> str:
        """Where the application's code stands, innermost call last."""
        frame = self._frame(who)
        if frame is None:
            return "  (it has ended meanwhile)"
        calls = traceback.extract_stack(frame)
        entrances = [n for n, call in enumerate(calls, 1) if call.filename == requests.__file__]
        del calls[: max(entrances, default=0)]
        return "\n".join("".join(calls.format()).splitlines()[-STACK_LINES:])

    def is_in_tls(self, who: Any) -> bool:
        frame = self._frame(who)
        while frame is not None:
            if frame.f_globals.get("__name__") in ("ssl", "gevent.ssl"):
                return True
            frame = frame.f_back
        return False

    def _frame(self, who: Any) -> Any:
        if isinstance(who, int):
            return sys._current_frames().get(who)
        # A greenlet that runs now has no frame of its own: it is the main thread's.
        return who.gr_frame or sys._current_frames().get(self._main)

    def _raw(self, connection: Any) -> Any:
        """The connection's socket as the kernel has it; there may be no descriptor to dup."""
        raw = _socket.socket(fileno=connection.fileno())
        raw.settimeout(0)  # the application may have set a default
        self._kept.append(raw)  # never closed: the process ends
        return raw
