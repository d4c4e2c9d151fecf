"""Closing connections without losing an answer: half-close, then linger.

close() with unread bytes in the receive buffer, or bytes that arrive after it, sends RST, which can
destroy a response on its way. So: FIN first (RFC 9112 section 9.6), then read on until the client
closes its side too, for a bounded time and in nobody's way. gunicorn 26 on does the same in its
util.close_graceful, where the main thread of sync and gthread waits for one client after another.

Here connections that linger wait in a poller of their own, which costs no more than what is read:
each engine adds what it closes, and calls `Lingerer.sweep` in its loop. They take descriptors, so
whoever accepts a connection has `Lingerer.make_room` thin them. `still_idle` is the last look
before an idle connection is closed.

What may be changed here: how long is read on, of how many, and how often is looked.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from gracefulworker.shared.sockets import poll, readable

#: Seconds without a byte that a closed connection is read on for (2 s in all is what gunicorn's
#: util.close_graceful allows), and at the most (nginx's lingering_time).
LINGER = 2.0
LINGER_MAX = 30.0

#: Closed connections at the most while others come, and the part of the descriptors that a process
#: may have (RLIMIT_NOFILE) which may be taken with their help. The rest is the application's.
LINGERERS = 4096
LINGER_SHARE = 0.75

#: How many of them make room for one that comes: more than one, for the application opens files.
THINNING = 2

#: Seconds between two looks at closed connections while one of their clients is still sending, and
#: how long after its last bytes that is believed: longer than most round trips.
LINGER_PASS = 0.005
LINGER_PAUSE = 0.2

#: Idle connections that are looked at at once before they are closed.
LOOK_BATCH = 32

#: Bytes that are thrown away at once.
WASTE = 262144


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
        self._poll = poll()
        #: descriptor -> monotonic seconds of its end unless bytes come; the most idle one first
        self._idle_ends: dict[int, float] = {}
        #: descriptor -> monotonic seconds of its end in any case; the oldest one first
        self._last_ends: dict[int, float] = {}
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        #: the first descriptor that shows that others are getting scarce
        self._scarce = sys.maxsize
        if allowed != resource.RLIM_INFINITY:
            self._scarce = int(allowed * LINGER_SHARE)
        # Its pages cost no memory before they are written to.
        self._waste = (mmap.mmap(-1, WASTE),)
        self._kept: set[int] = set()  #: descriptors that have not sent FIN
        self.last_fin = 0.0  #: monotonic seconds
        #: until when (monotonic seconds) a client is believed to be sending; 0.0: none is. The
        #: next sweep is due within `LINGER_PASS` then.
        self.receiving = 0.0

    def __len__(self) -> int:
        return len(self._last_ends)

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
        if fd < 0:
            return  # a thread of the application has closed it in between
        self._poll.register(fd, select.POLLIN)
        now = time.monotonic()
        self._idle_ends[fd] = now + LINGER
        self._last_ends[fd] = now + LINGER_MAX

    def make_room(self, newcomer: int) -> bool:
        """Close some where there are too many, the most idle first.

        :param newcomer: the descriptor of a connection that has just been accepted: the lowest
            that was free, so it tells how many are taken.
        :return: whether descriptors are scarce and none lingers.
        """
        over = newcomer - self._scarce
        if over >= 0 or len(self._last_ends) > LINGERERS:
            return not self.thin(max(over, 0) + THINNING) and over >= 0
        return False

    def thin(self, number: int = THINNING) -> bool:
        """Close the most idle ones; False when there is none."""
        thinned = list(itertools.islice(self._idle_ends, number))
        for fd in thinned:
            self._close(fd)
        return bool(thinned)

    def keep(self, connection: Any) -> None:
        """Take a connection that can read no end of file of its client's (SHUT_RD); FIN comes last.

        By then its client, which has been told in its protocol, will have answered.
        """
        fd = connection.detach()
        if fd >= 0:
            self._poll.register(fd, 0)  # a reset
            self._kept.add(fd)
            self.last_fin = now = time.monotonic()
            self._idle_ends[fd] = now + LINGER
            self._last_ends[fd] = now + LINGER_MAX

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
                del self._idle_ends[fd]
                self._idle_ends[fd] = now + LINGER  # at the end: it is the least idle one now
            else:
                self._close(fd)
        for ends in (self._idle_ends, self._last_ends):
            for fd, _ in list(itertools.takewhile(lambda entry: entry[1] <= now, ends.items())):
                self._close(fd)

    def let_go(self) -> None:
        """The process is about to end, which closes them: only those without a FIN need more."""
        for fd in list(self._kept):
            self._close(fd)

    def _close(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._idle_ends[fd], self._last_ends[fd]
        if fd in self._kept:
            self._kept.remove(fd)
            if readable([fd]):  # what is left unread would make its end a reset
                with contextlib.suppress(OSError):  # reset by the client
                    os.readv(fd, self._waste)
        os.close(fd)
        if not self._last_ends:
            self.receiving = 0.0
