"""The gate: newcomers are refused at a listener, and who waits in its queue is kept.

Closing a listening socket resets every connection in its accept queue, and
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

When a listener is gated, sealed and closed, `gracefulworker.phases` decides.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

#: Linux's socket option (include/uapi/asm-generic/socket.h, since 5.1), not in Python's socket.
SO_BINDTOIFINDEX = 62

#: No interface ever has this index.
NO_SUCH_INTERFACE = 0x7FFFFFFF

#: Seconds in which the kernel tells whether a handshake is under way, or else does not.
DIAG_PATIENCE = 0.25

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
                diag.settimeout(DIAG_PATIENCE)
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


class UnixPaths:
    """The file system names of Unix listeners, to be removed by whoever made them."""

    def __init__(self) -> None:
        #: by name: whose it is, and which file
        self._files: dict[str, tuple[Any, tuple[int, int]]] = {}

    def remember(self, listeners: list[Any], ours: bool) -> None:
        """Note which files are these listeners', while nobody can have replaced them yet.

        A HUP that changes any bind closes all listeners and makes new ones: a name that has stayed
        is another file then, and of one that has gone gunicorn leaves the file.

        :param ours: whether nobody else serves from listeners that have gone.
        """
        unix = {one.getsockname(): one for one in listeners if one.family == socket.AF_UNIX}
        gone = {name: self._files.pop(name) for name in [*self._files] if name not in unix}
        if ours:
            _unlink(gone)
        for name, listener in unix.items():
            # An abstract name (a leading NUL) has no file.
            if not isinstance(name, str) or not name:
                continue
            if name in self._files and self._files[name][0] is listener:
                continue
            try:
                self._files[name] = listener, _identity(name)
            except OSError:
                self._files.pop(name, None)  # somebody removed it already

    def unlink(self) -> None:
        """Remove each name, unless another process has put its own socket there since."""
        _unlink(self._files)
        self._files.clear()


def _unlink(files: dict[str, tuple[Any, tuple[int, int]]]) -> None:
    for name, (_, identity) in files.items():
        try:
            if _identity(name) == identity:
                os.unlink(name)
        except OSError:
            continue  # it has gone, or its directory has: nothing depends on it


def _identity(name: str) -> tuple[int, int]:
    status = os.stat(name)
    return status.st_dev, status.st_ino
