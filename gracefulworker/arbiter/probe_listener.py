"""`graceful_probe_bind`: probes on an address of their own, answered by the arbiter.

Behind the workers' listeners a probe waits for its turn with everybody else, and a pod that is
only busy is restarted. Here a thread of the arbiter accepts, and another one for each connection
answers: workers may be busy, and the arbiter's main loop may block (HUP's reload, a hook). A
thread and not a process: it sees the workers' heartbeats where the arbiter itself does, it ends
with the arbiter whatever happens to that, and there is nobody to be watched, reaped or signalled.

Clients that are slow keep nobody out: past `VISITORS` the one that has been here longest goes.

Threads of a process that forks must hold nothing which a child would miss. They take no lock but
each visitor's own, which a child lets be, and `_checking`, around the user's check, which the
arbiter takes for each fork. (Python 3.12 on warns of any thread at a fork, where warnings are
shown.) They are native ones on native sockets, for a config file can have gevent patch the arbiter.

What may be changed here: how an HTTP request is read and answered. What probes are told is
`gracefulworker.shared.probes`' part.
"""

from __future__ import annotations

import _socket  # the real sockets: gevent patches `socket`
import contextlib
import errno
import os
import time
from typing import Any

from gracefulworker import seam
from gracefulworker.arbiter.crew import Crew
from gracefulworker.phases import Phase
from gracefulworker.settings import HostPort, Settings
from gracefulworker.shared import probes, sockets
from gracefulworker.shared.forks import at_fork
from gracefulworker.shared.unpatched import original, start_native

#: Seconds that a client may take to send its request, and then to close.
PATIENCE = 2.0

#: Seconds that a probe, or a fork, waits for a user's check that runs already.
CHECK_PATIENCE = 1.0

#: Connections at once, and bytes of a request at the most.
VISITORS = 64
HEAD_LIMIT = 8192

#: Threads at once, with those of visitors that were sent away a moment ago.
THREADS = 2 * VISITORS

#: Seconds before the next accept when there are too many threads, or no descriptors.
FULL_PAUSE = 0.05


class Visitor:
    """A connection: its own thread closes it, and the one that accepts may send it away."""

    def __init__(self, fd: int) -> None:
        self.socket = _socket.socket(fileno=fd)
        self.stays = True
        self._closing = original("_thread", "allocate_lock")()

    def send_away(self) -> None:
        """End whatever its thread waits for."""
        self.stays = False
        with self._closing, contextlib.suppress(OSError):  # it has gone
            self.socket.shutdown(_socket.SHUT_RDWR)

    def close(self) -> None:
        with self._closing:  # else its descriptor could be another's when it is sent away
            self.socket.close()


class ProbeListener:
    """Answers probes about one arbiter."""

    def __init__(self, crew: Crew, log: seam.Log) -> None:
        self.crew = crew
        self.log = log
        self.pid = os.getpid()
        self.settings: Settings | None = None
        self._address: HostPort | None = None
        self._listener: Any = None
        self._visitors: dict[Visitor, None] = {}  # the oldest first
        self._checking = original("_thread", "allocate_lock")()
        self._fork_holds = False
        at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork,
            after_in_child=self._close_in_child,
        )

    def follow(self, settings: Settings) -> None:
        """Answer as these settings say, and where; on an error things are as before.

        :raises OSError, TypeError, ValueError: the address cannot be listened on.
        """
        if settings.probe_bind == self._address:
            self.settings = settings
            return
        listener = None if settings.probe_bind is None else _listen(settings.probe_bind)
        if self._listener is not None:
            with contextlib.suppress(OSError):  # ENOTCONN outside Linux
                self._listener.shutdown(_socket.SHUT_RDWR)  # ends its thread, which closes it
        self.settings, self._address, self._listener = settings, settings.probe_bind, listener
        if listener is not None:
            at = HostPort(*listener.getsockname()[:2])
            self.log.info("probes at http://%s%s and %s", at, *settings.probe_paths)
            start_native(self._accept, listener)

    # In the threads

    def _accept(self, listener: Any) -> None:
        sleep = original("time", "sleep")
        with contextlib.closing(listener):
            while True:
                try:
                    fd, _ = listener._accept()
                except OSError as error:
                    if error.errno in sockets.NO_ROOM:
                        self._send_one_away()
                        sleep(FULL_PAUSE)
                        continue
                    if error.errno == errno.ECONNABORTED:
                        continue
                    return  # it was shut down
                self._receive(Visitor(fd))
                while len(self._visitors) >= THREADS:
                    sleep(FULL_PAUSE)

    def _receive(self, visitor: Visitor) -> None:
        if self._is_full():
            self._send_one_away()
        self._visitors[visitor] = None
        try:
            start_native(self._attend, visitor)
        except RuntimeError:  # no more threads: it will ask again
            self._leave(visitor)

    def _is_full(self) -> bool:
        return sum(visitor.stays for visitor in list(self._visitors)) >= VISITORS

    def _send_one_away(self) -> None:
        for visitor in list(self._visitors):
            if visitor.stays:
                visitor.send_away()
                return

    def _leave(self, visitor: Visitor) -> None:
        self._visitors.pop(visitor, None)
        visitor.close()

    def _attend(self, visitor: Visitor) -> None:
        client = visitor.socket
        try:
            words = _read_request(client).split()
            if len(words) == 3:
                client.sendall(self._respond(*words[:2]))
            # FIN first; unread bytes would make it a reset. See `gate`.
            client.shutdown(_socket.SHUT_WR)
            _read_to_end(client)
        except OSError:
            pass  # the client has gone, or is too slow: it will ask again
        finally:
            self._leave(visitor)

    def _respond(self, method: str, target: str) -> bytes:
        answer = self._answer(method, target.partition("?")[0])
        lines = [f"HTTP/1.1 {answer.status}", *(f"{k}: {v}" for k, v in answer.headers)]
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + answer.body

    def _answer(self, method: str, path: str) -> probes.Answer:
        settings = self.settings
        assert settings is not None
        state = self.crew.state()
        ready, live = settings.probe_paths
        if path == live:
            reason = None
            if state.phase < Phase.DRAINING and not self.crew.has_heartbeat():
                reason = "no worker has a heartbeat"
            return probes.answer(method, state, reason, "alive")
        if path == ready:
            reason = probes.unready_reason(state, settings.unready)
            if reason is None and settings.readiness_check and method in probes.METHODS:
                reason = self._check(settings)
            return probes.answer(method, state, reason, "ready")
        return probes.NOT_FOUND

    def _check(self, settings: Settings) -> str | None:
        # With a full house nobody waits: it could not be sent away.
        if not self._checking.acquire(timeout=0 if self._is_full() else CHECK_PATIENCE):
            return "graceful_readiness_check has not come back"
        try:
            assert settings.readiness_check is not None
            return probes.objection(settings.readiness_check, self.log)
        finally:
            self._checking.release()

    # Around each fork of the arbiter, in its main thread

    def _before_fork(self) -> None:
        """A check may hold locks, its own or a library's, which the child would find locked."""
        if os.getpid() == self.pid:
            self._fork_holds = self._checking.acquire(timeout=CHECK_PATIENCE)

    def _after_fork(self) -> None:
        if os.getpid() == self.pid and self._fork_holds:
            self._checking.release()

    def _close_in_child(self) -> None:
        """Else clients would hang at the listener of an arbiter that is gone."""
        for one in (self._listener, *(visitor.socket for visitor in self._visitors)):
            if one is not None:
                one.close()
        self._listener = None
        self._visitors = {}


def _listen(address: HostPort) -> Any:
    """:raises OSError, TypeError, ValueError: nobody may listen there, somebody does; no name."""
    family = _socket.AF_INET6 if ":" in address.host else _socket.AF_INET
    listener = _socket.socket(family, _socket.SOCK_STREAM)
    listener.settimeout(None)  # the user's code may have set a default
    try:
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(VISITORS)
    except (OSError, TypeError, ValueError):
        listener.close()
        raise
    return listener


def _read_request(visitor: Any) -> str:
    """The request line, once the whole head is there; "" when none comes.

    :raises OSError: the client is too slow, or has gone.
    """
    until = time.monotonic() + PATIENCE
    head = b""
    while b"\r\n\r\n" not in head and len(head) < HEAD_LIMIT:
        visitor.settimeout(max(until - time.monotonic(), 0.001))
        data = visitor.recv(4096)
        if not data:
            return ""
        head += data
    return head.partition(b"\r\n")[0].decode("latin-1")


def _read_to_end(visitor: Any) -> None:
    """:raises OSError: the client does not close, or has reset the connection."""
    until = time.monotonic() + PATIENCE
    while (left := until - time.monotonic()) > 0:
        visitor.settimeout(left)
        if not visitor.recv(4096):
            return
