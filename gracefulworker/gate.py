"""Closing without losing anybody: listeners are gated, connections are half-closed and linger.

**Listeners.** Closing a listening socket resets every connection in its accept queue, and
accepting until EAGAIN before the close still loses those that complete in between. What is wanted
is "refuse newcomers, keep the queue":

- TCP on Linux 5.7+: SO_BINDTOIFINDEX with an interface that does not exist, on the *listening*
  socket. The lookup for a new SYN no longer finds it, so the kernel answers RST (ECONNREFUSED) at
  once; what is queued, and handshakes already begun, still reach the queue. It needs no privilege
  and acts on the socket that all processes share. It cannot be undone without privilege, so it is
  never done to a listener that outlives us.
- Unix: shutdown(SHUT_RD) on the listener; exact, also for abstract names.

One exception is known: with SYN cookies (a full SYN queue) the kernel remembers nothing of a
handshake under way, and it is reset as it would be by a close.

**Connections.** close() with unread bytes in the receive buffer, or bytes that arrive after it,
sends RST, which can destroy a response on its way. So: FIN first (RFC 9112 section 9.6), then
read on until the client closes its side too, for a bounded time and in nobody's way.

What may be changed here: how the kernel is asked. Who is closed when, the workers decide.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

#: Linux's socket option (include/uapi/asm-generic/socket.h, since 5.1), not in Python's socket.
SO_BINDTOIFINDEX = 62

#: No interface ever has this index.
NO_SUCH_INTERFACE = 0x7FFFFFFF

#: Seconds after the gate in which a handshake may still complete, at least and at most.
SETTLE_MIN = 0.05
SETTLE_MAX = 1.0

#: The same where the kernel does not tell whether one is under way: most round trips are shorter.
SETTLE_BLIND = 0.25

#: Seconds without a byte that a closed connection is read on for (2 s in all is what gunicorn's
#: util.close_graceful allows), and at the most (nginx's lingering_time).
LINGER = 2.0
LINGER_MAX = 30.0

#: Seconds between two looks at closed connections while one of their clients is still sending, and
#: how long after its last bytes that is believed: longer than most round trips.
LINGER_PASS = 0.005
LINGER_PAUSE = 0.2

#: Idle connections that are looked at at once before they are closed.
LOOK_BATCH = 32

#: Bytes that are thrown away at once.
WASTE = 262144

#: accept() has nothing: not yet, or not any more. A Unix listener that was gated says EINVAL when
#: its queue is empty. (ECONNABORTED is no end of the queue: one in it has left.)
NOBODY_WAITS = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINVAL)

#: accept() found no room: patience, a descriptor will be free again.
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

#: Bound before the gevent worker patches `select`, after the fork: this must not yield.
_poll = select.poll

# linux/netlink.h, linux/sock_diag.h; TCP_SYN_RECV and TCP_NEW_SYN_RECV as bits (net/tcp_states.h).
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_SYN_RECV = 1 << 3 | 1 << 12


def shut(listener: Any) -> bool:
    """Refuse newcomers and keep the queue; False where the kernel does not know how."""
    try:
        if listener.family == socket.AF_UNIX:
            listener.shutdown(socket.SHUT_RD)
        else:
            listener.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, NO_SUCH_INTERFACE)
    except OSError:
        return False
    return True


def ports(listeners: list[Any]) -> frozenset[int]:
    """The TCP ports among `listeners`."""
    return frozenset(
        listener.getsockname()[1] for listener in listeners if listener.family != socket.AF_UNIX
    )


def handshakes_under_way(port: int) -> bool | None:
    """Whether a client of `port` has sent SYN and not yet its last ACK; None where nobody tells.

    Asked by sock_diag(7), which filters in the kernel: /proc/net/tcp lists 20,000 connections in
    TIME_WAIT as well, and takes longer than all the rest of an exit.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
                diag.settimeout(SETTLE_BLIND)
                diag.send(_diag_request(family, port))
                kind = struct.unpack_from("=IH", diag.recv(65536))[1]
        except (AttributeError, OSError):
            return None  # not Linux, or not allowed
        if kind == _NLMSG_ERROR:
            return None
        if kind != _NLMSG_DONE:
            return True
    return False


def _diag_request(family: int, port: int) -> bytes:
    """A dump request: struct inet_diag_req_v2 (linux/inet_diag.h) behind a struct nlmsghdr."""
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _SYN_RECV)
    body += struct.pack("!HH", port, 0) + bytes(32)  # any address
    body += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # any interface, no cookie
    return struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, 0x301, 1, 0) + body


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


class UnixPaths:
    """The file system names of Unix listeners, to be removed by whoever made them."""

    def __init__(self) -> None:
        self._identity: dict[str, tuple[int, int]] = {}

    def remember(self, listeners: list[Any]) -> None:
        """Note which files are these listeners', while nobody can have replaced them yet."""
        for listener in listeners:
            name = listener.getsockname()
            # An abstract name (a leading NUL) has no file.
            if (
                listener.family == socket.AF_UNIX
                and isinstance(name, str)
                and name
                and name not in self._identity
            ):
                try:
                    self._identity[name] = _identity(name)
                except OSError:
                    continue  # somebody removed it already

    def unlink(self) -> None:
        """Remove each name, unless another process has put its own socket there since."""
        for name, identity in self._identity.items():
            try:
                if _identity(name) == identity:
                    os.unlink(name)
            except OSError:
                continue  # it has gone, or its directory has: nothing depends on it
        self._identity.clear()


def _identity(name: str) -> tuple[int, int]:
    status = os.stat(name)
    return status.st_dev, status.st_ino


def readable(fds: list[int]) -> set[int]:
    """Those of `fds` that have bytes, an end of file or an error to tell, without waiting."""
    poll = _poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(0)}


def still_idle(connections: list[Any]) -> Iterator[Any]:
    """Those of idle `connections` that have nothing to tell, for a FIN right after this last look.

    What comes in between has come too late, and closing thousands takes tens of milliseconds. So
    there is a look for a few of them at a time.
    """
    for start in range(0, len(connections), LOOK_BATCH):
        batch = connections[start : start + LOOK_BATCH]
        speaking = readable([connection.fileno() for connection in batch])
        for connection in batch:
            if connection.fileno() not in speaking:
                yield connection


class Lingerer:
    """Connections that have sent FIN and are read on until the client closes its side too.

    Not thread-safe: the main loop owns it and calls `sweep` in each pass. Nobody waits on it, as
    nobody but the client can hurry it.
    """

    def __init__(self) -> None:
        self._poll = _poll()
        #: descriptor -> monotonic seconds of its end, unless bytes come, and in any case
        self._ends: dict[int, tuple[float, float]] = {}
        # Its pages cost no memory before they are written to.
        self._waste = (mmap.mmap(-1, WASTE),)
        self.last_fin = 0.0  #: monotonic seconds
        #: until when (monotonic seconds) a client is believed to be sending; 0.0: none is. The
        #: next sweep is due within `LINGER_PASS` then.
        self.receiving = 0.0

    def __len__(self) -> int:
        return len(self._ends)

    def half_close(self, connection: Any) -> None:
        """Send FIN; reading goes on, behind TLS too, where `shutdown` would forget the session.

        :raises OSError: the client is gone already.
        """
        # Not the method: the sync worker's own leads here.
        socket.socket.shutdown(connection, socket.SHUT_WR)
        self.last_fin = time.monotonic()

    def add(self, connection: socket.socket, half_closed: bool = False) -> None:
        """Half-close `connection` and take its descriptor, to be closed here and only here.

        :param half_closed: it has been, at its time.
        """
        try:
            if not half_closed:
                self.half_close(connection)
        except OSError:
            socket.socket.close(connection)  # the client is gone already
            return
        fd = connection.detach()
        self._poll.register(fd, select.POLLIN)
        now = time.monotonic()
        self._ends[fd] = now + LINGER, now + LINGER_MAX

    def discard(self, fds: list[int]) -> None:
        """Read once what has come at descriptors of others, which are about to be closed."""
        for fd in readable(fds):
            with contextlib.suppress(OSError):  # reset by the client
                os.readv(fd, self._waste)

    def sweep(self) -> None:
        """Read what has come, close what has ended or had its time."""
        now = time.monotonic()
        if now > self.receiving:
            self.receiving = 0.0
        for fd, _ in self._poll.poll(0):
            try:
                received = os.readv(fd, self._waste)
            except OSError:
                received = 0  # reset by the client
            if received:
                self.receiving = now + LINGER_PAUSE
                last = self._ends.pop(fd)[1]
                self._ends[fd] = min(now + LINGER, last), last
            else:
                self._close(fd)
        for fd, (end, _) in list(self._ends.items()):
            if end > now:
                break
            self._close(fd)

    def close(self) -> None:
        """Close every connection."""
        for fd in list(self._ends):
            self._close(fd)

    def _close(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._ends[fd]
        os.close(fd)
        if not self._ends:
            self.receiving = 0.0
