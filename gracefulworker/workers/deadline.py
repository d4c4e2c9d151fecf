"""The deadline, at which what is still in flight is answered or cut, and named.

The deadline comes from outside: nothing is raised into the application, and a signal would not be
heard, for gunicorn lets SIGTERM interrupt no system call. A native thread, started
with the worker, answers 503 where no response has begun, names what is left in the log
(method, path, age, where its code stands) and ends the process; the arbiter's SIGKILL,
`phases.KILL_MARGIN` later, is only for code that holds the interpreter so that no thread can run.
All are answered before the first is named, and the log is written in a thread of its own: a handler
that hangs costs nobody's answer.

Who answers a request, the application or the deadline, is decided by one atomic claim
(the worker's `claims`). A response that has begun is cut and never given a false end, and one that
is complete ends cleanly.

What may be changed here: what is said and done at the deadline.
"""

from __future__ import annotations

import _socket  # the real sockets: gevent patches `socket`
import os
import select
import ssl
import struct
import sys
import time
import traceback
from _thread import get_ident  # bound before gevent patches it: the native one
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from gracefulworker.phases import KILL_MARGIN, SECOND
from gracefulworker.seam import Config, Log, Request, Response
from gracefulworker.shared.leaving import Leaving
from gracefulworker.shared.page import Broadcast, Nudge, Slot
from gracefulworker.shared.unpatched import original, start_native, start_thread
from gracefulworker.workers import requests
from gracefulworker.workers.websockets import WebSockets

#: Calls of a cut request's stack that are logged, the innermost.
CALLS = 10

#: Kinds of cut requests that are named, the most frequent: thousands may be in flight.
KINDS = 20

#: Characters of a path that are logged.
PATH_MAX = 200

#: Seconds between two looks at the deadline.
STEP = 0.5

#: The same in DRAINING, where WebSockets may have been opened meanwhile.
DRAIN_STEP = 0.1

#: Seconds in which the last words are read by their clients before the process ends.
LAST_MOMENT = 0.1

#: Seconds of DRAINING in which a worker with nothing in flight leaves by itself, also when the
#: deadline (graceful_timeout = 0) comes before; less than `KILL_MARGIN`.
LEAVING = 0.4

#: Seconds between two looks whether it has something in flight meanwhile.
LEAVING_STEP = 0.01

#: Seconds beyond `LAST_MOMENT` that are given to the log's handlers.
LOG_PATIENCE = KILL_MARGIN / 4

#: A request whose client has its response; only its code is cut.
AFTER = "after its response"

_BODY = b"The server is shutting down.\n"

#: RFC 9110 section 15.6.4: another instance, or the next one, may answer a moment later.
_HEAD = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"Connection: close\r\n"
    b"Retry-After: 1\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n"
)

#: To a request in flight; HEAD gets the head alone (RFC 9110 section 9.3.2).
TO_HEAD = _HEAD % len(_BODY)
LAST_WORDS = TO_HEAD + _BODY

#: To a request that waits: nobody has read its method, so there is no body.
TO_WAITING = _HEAD % 0


class DeadlineWorker(Protocol):
    """What is asked here of the worker."""

    cfg: Config
    log: Log
    pid: int
    broadcast: Broadcast
    slot: Slot
    leaving: Leaving
    in_flight: dict[Request, requests.InFlight]
    claims: dict[Request, Response | Deadline | BaseException]
    gauge: Callable[[int], None]
    websockets: WebSockets

    def holds_requests(self) -> bool: ...
    def tell_websockets(self) -> None: ...
    def is_draining(self) -> bool: ...
    def drain_began(self) -> int: ...
    def deadline(self) -> int: ...
    def turn_away(self, speak: Callable[[Any], bool]) -> int: ...


#: Where code stands: file, line and function of each call, the innermost last.
Stack = tuple[tuple[str, int, str], ...]


class Left(NamedTuple):
    """A request that was in flight at the deadline, before it is named."""

    ending: str  #: what was done to it
    request: str  #: its method and path
    began: float  #: monotonic seconds
    handler: Any  #: who handles it, of whom `Deadline.stack` tells where his code stands


@dataclass(frozen=True)
class Cut:
    """A request that was in flight at the deadline.

    :param ending: what was done to it.
    :param request: its method and path.
    :param age: seconds.
    :param stack: where its code stood.
    """

    ending: str
    request: str
    age: float
    stack: Stack


def name(cuts: list[Cut]) -> Iterator[str]:
    """What is said of them: one line and one stack for all that are alike."""
    kinds: dict[tuple[str, str, Stack], list[float]] = {}
    for cut in cuts:
        kinds.setdefault((cut.ending, cut.request, cut.stack), []).append(cut.age)
    by_number = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    for (ending, request, stack), ages in by_number[:KINDS]:
        after = f"{min(ages):.1f}"
        if len(ages) > 1:
            request = f"{len(ages)} times {request}"
            after += f" to {max(ages):.1f}"
        yield f"cut at the deadline ({ending}): {request} after {after} s, at:\n{show(stack)}"
    if more := sum(len(ages) for _, ages in by_number[KINDS:]):
        yield f"cut at the deadline: {more} more, which are not named here"


def show(stack: Stack) -> str:
    """As a traceback has it; the sources are read only here, for the few that are named."""
    if not stack:
        return "  (it has ended meanwhile)"
    calls = [traceback.FrameSummary(*call, lookup_line=False) for call in stack]
    return "".join(traceback.format_list(calls)).rstrip("\n")


def printable(text: str) -> str:
    """What a client sent, for the log: no control character of it reaches a terminal."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text[:PATH_MAX]
    )
    return shown + "..." * (len(text) > PATH_MAX)


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
        if self._comes(over) and not self.leaves_now(over):
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
                worker.tell_websockets()
                # In steps: the deadline of a worker that retires moves when SIGTERM comes.
                step = min(left, DRAIN_STEP)
            worker.leaving.look(deadline)
            for fd, _ in poll.poll(step * 1000):
                if fd == over.fd:
                    return False
                poll.unregister(bell)  # heard for good, also if it was the arbiter's death

    def cut(self) -> None:
        """Answer or cut what is left, then name it."""
        worker = self.worker
        left = self.answer()
        turned_away = worker.turn_away(self.speak)
        cut = sum(one.ending != AFTER for one in left) + turned_away
        worker.slot.cut = max(worker.slot.cut + cut, 1)
        # They have been counted, and the arbiter counts what a worker leaves behind in flight.
        worker.gauge = lambda number: None
        worker.slot.in_flight = 0
        now = time.monotonic()
        cuts = [
            Cut(one.ending, one.request, now - one.began, self.stack(one.handler)) for one in left
        ]
        lines = list(name(cuts))
        if turned_away:
            lines.append(f"cut at the deadline (503): {turned_away} waiting requests")
        if not lines and not worker.leaving.has_begun():
            lines.append(f"cut at the deadline: {self.rest()}")
        said = original("_thread", "allocate_lock")()
        said.acquire()
        start_native(self.say, lines, said.release)
        self.part()
        worker.slot.in_flight = 0  # a request was just being gauged
        said.acquire(timeout=LOG_PATIENCE)

    def answer(self) -> list[Left]:
        """End each request in flight as its client can best tell."""
        return [
            Left(
                self.end(request, entry),
                f"{printable(request.method)} {printable(request.path)}",
                entry.began,
                entry.handler,
            )
            for request, entry in list(self.worker.in_flight.items())
        ]

    def rest(self) -> str:
        """What is cut where no request is: connections in the middle of a request's head."""
        return f"worker {self.worker.pid}, which is at:\n{show(self.stack(self._main))}"

    def leaves_now(self, over: Nudge) -> bool:
        """Whether a worker that has just begun to drain, with nothing in flight, ends by itself."""
        poll = original("select", "poll")()
        poll.register(over.fd, select.POLLIN)
        until = self.worker.drain_began() + round(LEAVING * SECOND)
        while not self.worker.holds_requests() and time.monotonic_ns() < until:
            if poll.poll(LEAVING_STEP * 1000):
                return True
        return False

    def say(self, lines: list[str], said: Callable[[], None]) -> None:
        try:
            for line in lines:
                self.worker.log.warning("%s", line)
            if self.worker.leaving.has_begun():
                self.worker.leaving.name_holders()
        finally:
            said()

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
        connection = request.unreader.sock
        if response is None or not response.headers_sent:
            answers = self.worker.claims.setdefault(request, self)
            if isinstance(answers, Deadline):
                if isinstance(connection, ssl.SSLSocket) and self.is_in_tls(entry.handler):
                    return "closed"  # OpenSSL is not to be entered twice at once
                words = TO_HEAD if request.method == "HEAD" else LAST_WORDS
                return "503" if self.speak(connection, words) else "closed"
            if isinstance(answers, BaseException):
                return AFTER  # gunicorn answers with an error
            response = answers
        if requests.is_answered(response) and not self.is_writing(entry.handler):
            self._half_close(self._raw(connection))
            return AFTER
        if not (response.chunked or response.response_length is not None):
            # This body ends where the connection does: only a reset tells that it was cut.
            raw = self._raw(connection)
            raw.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "in the middle of its response"

    def speak(self, connection: Any, words: bytes = TO_WAITING) -> bool:
        """Send the 503 without waiting; whether it could be sent."""
        try:
            raw = self._raw(connection)
            is_heard = True
            if isinstance(connection, ssl.SSLSocket):
                connection._sslobj.write(words)  # type: ignore[attr-defined]
            elif self.worker.cfg.is_ssl:
                is_heard = False  # there was no handshake: a clean end of file is all we can say
            else:
                raw.send(words, _socket.MSG_DONTWAIT)
            self._half_close(raw)
        except (OSError, ValueError):
            return False  # the client is gone, or does not read
        return is_heard

    def _half_close(self, raw: Any) -> None:
        raw.shutdown(_socket.SHUT_WR)
        self._spoken.append(raw)

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

    def stack(self, who: Any) -> Stack:
        """Where the application's code stands."""
        calls: list[tuple[str, int, str]] = []
        for frame in self._frames(who):
            code = frame.f_code
            if code.co_filename == requests.__file__ or len(calls) == CALLS:
                break
            calls.insert(0, (code.co_filename, frame.f_lineno or 0, code.co_name))
        return tuple(calls)

    def is_in_tls(self, who: Any) -> bool:
        frames = self._frames(who)
        return any(frame.f_globals.get("__name__") in ("ssl", "gevent.ssl") for frame in frames)

    def is_writing(self, who: Any) -> bool:
        """Whether what a response counts as sent is still being handed to the kernel."""
        return any(frame.f_code in requests.WRITING for frame in self._frames(who))

    def _frames(self, who: Any) -> Iterator[Any]:
        """The calls that it is in, the innermost first."""
        frame = self._frame(who)
        while frame is not None:
            yield frame
            frame = frame.f_back

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
