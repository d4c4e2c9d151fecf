"""A network with a round trip: two namespaces, a TUN device in each, and packets that are late.

The namespaces have no names: they live as long as somebody holds them, so nothing is left behind
by a test that dies. `Network.clients` and `Network.servers` take the calling thread to one side;
the threads and processes that it starts there stay there. The forwarder is a process of its own
(this file, run as a script), because the clients' threads would hold it up.

What may be changed here: the delay, or what else the forwarder does to packets. Linux and root.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

CLIENT, SERVER = "10.98.76.1", "10.98.76.2"
ONE_WAY = 0.02  # seconds

DEVICE = "roundtrip"
PACKET = 65536  # bytes at most

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: int) -> None:
    if getattr(_libc, name)(*args):
        raise OSError(ctypes.get_errno(), name)


class Side:
    """A namespace with its end of the way.

    :raises OSError: not root, or no TUN device here.
    """

    def __init__(self, address: str) -> None:
        self.error: Exception | None = None
        maker = threading.Thread(target=self._make, args=(address,))
        maker.start()
        maker.join()
        if self.error:
            raise self.error

    def _make(self, address: str) -> None:
        """In a thread of its own, which ends in the namespace that it has made."""
        try:
            _call("unshare", _CLONE_NEWNET)
            self.namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            self.tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            name = struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(self.tun, _TUNSETIFF, name)
            for words in (
                "link set lo up",
                f"link set {DEVICE} up txqueuelen 10000",
                f"address add {address}/24 dev {DEVICE}",
            ):
                subprocess.run(["ip", *words.split()], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.error = OSError(str(error))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _call("setns", self.namespace, _CLONE_NEWNET)
            yield
        finally:
            _call("setns", before, _CLONE_NEWNET)
            os.close(before)

    def close(self) -> None:
        os.close(self.namespace)
        os.close(self.tun)


class Network:
    """Both sides, and the forwarder between them."""

    def __enter__(self) -> Network:
        with contextlib.ExitStack() as stack:
            self._clients, self._servers = Side(CLIENT), Side(SERVER)
            for side in (self._clients, self._servers):
                stack.callback(side.close)
            tuns = self._clients.tun, self._servers.tun
            forwarder = subprocess.Popen(
                [sys.executable, __file__, *map(str, tuns)], stdin=subprocess.PIPE, pass_fds=tuns
            )
            stack.callback(forwarder.__exit__, None, None, None)  # the end of its input ends it
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def clients(self) -> contextlib.AbstractContextManager[None]:
        return self._clients.entered()

    def servers(self) -> contextlib.AbstractContextManager[None]:
        return self._servers.entered()


def forward(here: int, there: int) -> None:
    """Take packets from each device to the other, late; until the end of the standard input."""
    other = {here: there, there: here}
    under_way: collections.deque[tuple[float, int, bytes]] = collections.deque()
    poll = select.poll()
    for fd in (0, here, there):
        poll.register(fd, select.POLLIN)
    while True:
        wait = None if not under_way else max(under_way[0][0] - time.monotonic(), 0) * 1000
        for fd, _ in poll.poll(wait):
            if fd == 0:
                return
            with contextlib.suppress(BlockingIOError):
                while packet := os.read(fd, PACKET):
                    under_way.append((time.monotonic() + ONE_WAY, other[fd], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, fd, packet = under_way.popleft()
            os.write(fd, packet)


if __name__ == "__main__":
    forward(*map(int, sys.argv[1:]))
