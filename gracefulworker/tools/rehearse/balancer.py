"""A Service in user space: a TCP balancer that works anywhere, without root.

It does what kube-proxy's rules do, as far as a process can: a pod is chosen at random for each new
connection, and an established connection stays with its pod, whether or not that is still among
the endpoints. The end of the one side is passed on to the other as it is: FIN as FIN, RST as RST.
A process cannot refuse a connection that its kernel has completed, so one that the pod refuses is
reset, and `refused` tells the client what that reset stands for.

What may be changed here: the choice of the pod. Nothing may be retried or held back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys
from collections.abc import Coroutine

from gracefulworker.tools.rehearse.pods import Place, Pod
from gracefulworker.tools.rehearse.wire import Tls

#: SO_LINGER on, for 0 s: close() sends RST (socket(7)).
_LINGER_RESET = struct.pack("ii", 1, 0)


class Balancer:
    """The Service; `address` is where clients connect to."""

    address: tuple[str, int]
    tls: Tls | None = None

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"{seed}/balancer")
        self._endpoints: list[Pod] = []
        self._pods: dict[int, str] = {}  # the client's port -> its pod
        self._refused: set[int] = set()  # the same ports
        self._tasks: set[asyncio.Task[None]] = set()
        self._reserved: list[socket.socket] = []

    async def __aenter__(self) -> Balancer:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()
        self._begin(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        for reserved in self._reserved:
            reserved.close()

    async def place(self, number: int) -> Place:
        """A port of loopback for one more pod; it is bound here, so that nobody else takes it."""
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        probes = self._reserve()
        return Place(
            listener.getsockname(),
            f"fd://{listener.fileno()}",
            listener=listener,
            probes=probes,
            probe_bind=f"{probes[0]}:{probes[1]}",
        )

    def _reserve(self) -> tuple[str, int]:
        """A port for a pod's probes, which binds it itself.

        On Linux it is kept bound here: with SO_REUSEADDR on both sides that hinders the pod no
        more than it lets others in, as long as nobody listens.
        """
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        address: tuple[str, int] = reserved.getsockname()
        if sys.platform == "linux":
            self._reserved.append(reserved)
        else:
            reserved.close()
        return address

    async def add(self, pod: Pod) -> None:
        self._endpoints.append(pod)

    async def remove(self, pod: Pod) -> None:
        self._endpoints.remove(pod)

    def refused(self, port: int) -> bool:
        return port in self._refused

    def pods_by_port(self) -> dict[int, str]:
        return self._pods

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            client, (_, port) = await asyncio.get_running_loop().sock_accept(self._listener)
            self._begin(self._serve(client, port))

    async def _serve(self, client: socket.socket, port: int) -> None:
        """Connect the client on `port` to a pod, until both have ended; or reset it."""
        self._refused.discard(port)
        with contextlib.closing(client), contextlib.closing(socket.socket()) as upstream:
            for sock in (client, upstream):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                if not self._endpoints:
                    raise ConnectionRefusedError("no endpoints")
                pod = self._random.choice(self._endpoints)
                self._pods[port] = pod.name
                await asyncio.get_running_loop().sock_connect(upstream, pod.place.address)
            except OSError:
                self._refused.add(port)
                _reset_at_close(client)
            else:
                await _relay(client, upstream)


async def _relay(client: socket.socket, pod: socket.socket) -> None:
    """Pass on bytes and FIN both ways; a RST on one side becomes one on the other."""
    broken: set[socket.socket] = set()
    pumps = {
        asyncio.ensure_future(_pump(client, pod, broken)),
        asyncio.ensure_future(_pump(pod, client, broken)),
    }
    try:
        done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        if any(pump.exception() for pump in done):
            _reset_at_close(client)
            _reset_at_close(pod)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(source: socket.socket, sink: socket.socket, broken: set[socket.socket]) -> None:
    """Pass on what comes from `source`, up to its FIN.

    :raises OSError: `source` was reset, and all that came before is passed on.
    """
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, 65536):
        try:
            await loop.sock_sendall(sink, data)
        except OSError:
            broken.add(sink)  # the other pump reads what came before the reset
            return
    if source in broken:
        raise ConnectionResetError
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)  # the other pump notices a reset


def _reset_at_close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # macOS: it is reset already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
