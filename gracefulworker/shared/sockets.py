"""What may be asked of any socket, in the arbiter and in its workers.

What may be changed here: nothing may wait, and nothing may yield under gevent.
"""

from __future__ import annotations

import errno
import fcntl
import select
import sys
import termios

from gracefulworker.seam import Listener

#: accept() has nothing: not yet, or not any more. A Unix listener that was gated says EINVAL when
#: its queue is empty. (ECONNABORTED is no end of the queue: one in it has left.)
NOBODY_WAITS = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINVAL)

#: accept() found no room: patience, a descriptor will be free again.
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

#: Bound before the gevent worker patches `select`, after the fork: this must not yield.
poll = select.poll


def nobody_waits(listener: Listener, error: OSError) -> bool:
    """Whether accept() failed since the queue is empty.

    Linux looks for a descriptor first, so it says EMFILE of an empty queue, too.
    """
    if error.errno in NO_ROOM:
        return not readable([listener.fileno()])
    return error.errno in NOBODY_WAITS


def unread(fd: int) -> int:
    """Bytes that a connection's client has sent and nobody has read; its end of file is none."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def readable(fds: list[int]) -> set[int]:
    """Those of `fds` that have bytes, an end of file or an error to tell, without waiting.

    :param fds: -1 (a socket that the application has closed or taken) has nothing to tell.
    """
    ready = poll()
    for fd in fds:
        if fd >= 0:
            ready.register(fd, select.POLLIN)
    return {fd for fd, _ in ready.poll(0)}
