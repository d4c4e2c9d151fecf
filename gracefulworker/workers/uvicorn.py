"""The uvicorn worker: an event loop in which uvicorn serves an ASGI application.

uvicorn's server goes on with what it does before SIGTERM: its protocols, its loop, its ticks. What
it does at the end, in `Server.shutdown`, is decided here instead, by a coroutine that looks at the
page whenever there is something to see (`oversee`): who accepts until when, which connections are
idle, and when there is nothing left. Then uvicorn ends, and the lifespan with it.

What may be changed here: who waits, and for what. Whatever blocks here blocks all requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn_worker
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker
from uvicorn import server

from gracefulworker.phases import ListenerState, Phase
from gracefulworker.shared import sockets
from gracefulworker.workers import asgi, lingering, requests
from gracefulworker.workers.base import PASS, SETTLE_PASS, GracefulWorker, is_supervised
from gracefulworker.workers.deadline import Deadline
from gracefulworker.workers.uvicorn_deadline import UvicornDeadline
from gracefulworker.workers.uvicorn_protocols import (
    Closing,
    Connection,
    Cycle,
    Message,
    Task,
    Tasks,
    has_begun,
    is_open,
    module_of_cycles,
    ours,
)
from gracefulworker.workers.warmup import WarmupError

#: Seconds between two looks at closed connections whose clients have not closed yet.
SWEEP_PASS = 0.05

#: Turns of the event loop after which what it has accepted is known: asyncio makes the transport
#: in a task, and calls its protocol in another turn.
TURNS = 4


class Server(server.Server):
    """uvicorn's server, which ends when the worker has drained."""

    def __init__(self, config: Any, worker: UvicornWorker) -> None:
        super().__init__(config)
        self.worker = worker
        self.server_state.tasks = worker.tasks  # type: ignore[assignment]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Server.capture_signals: gunicorn's handlers stay."""
        yield

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Server.startup runs the lifespan's, and listens on no socket; that is done here."""
        self.lifespan.state.update(asgi.STATE)
        await super().startup(sockets=[])
        if self.started:
            await self.worker.open(self)

    async def main_loop(self) -> None:
        """Server.main_loop ticks on, until the worker has drained."""
        ticking = asyncio.create_task(super().main_loop())
        overseeing = asyncio.create_task(self.worker.oversee())
        try:
            await asyncio.wait({ticking, overseeing}, return_when=asyncio.FIRST_COMPLETED)
            if ticking.done():
                ticking.result()
            overseeing.result()
        finally:
            ticking.cancel()
            overseeing.cancel()

    async def on_tick(self, counter: int) -> bool:
        """Server.on_tick: its True (max_requests) asks the arbiter for a turn."""
        if await super().on_tick(counter):
            self.should_exit = False
            self.config.limit_max_requests = None
            self.limit_max_requests = None
            self.worker.ask_to_retire()
        return False

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Server.shutdown, of which the lifespan's is left to be done."""
        await self.lifespan.shutdown()


class StockWorker(uvicorn_worker.UvicornWorker):  # type: ignore[misc]
    """uvicorn's worker with the signal handlers of gunicorn's."""

    supervisor: Any

    def init_signals(self) -> None:
        """UvicornWorker.init_signals gives all but SIGUSR1 up; Worker.init_signals sets them.

        Not SIGABRT, at which a worker that hangs is to end: uvicorn answers with an error what its
        application raises, so an exception of the handler's would end nothing.
        """
        super().init_signals()
        if self.supervisor is not None:
            Worker.init_signals(self)
            signal.signal(signal.SIGABRT, signal.SIG_DFL)


class UvicornWorker(GracefulWorker, StockWorker):
    """`gunicorn -k gracefulworker.uvicorn`."""

    deadline_class: type[Deadline] = UvicornDeadline

    config: Any  #: UvicornWorker's own, which is uvicorn's Config

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.servers: list[Any] = []
        if self.supervisor is not None:
            self.tasks = Tasks(self)

    def wrap(self) -> None:
        """What is put before the application waits for uvicorn to load it: see `_serve`."""

    def unwrap(self) -> None:
        self.cycles.RequestResponseCycle = self.stock_cycle

    # Boot

    async def _serve(self) -> None:
        """UvicornWorker._serve, with our server."""
        if not is_supervised(self):
            await super()._serve()
            return
        self.loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        self.lingerer = lingering.Lingerer()
        self.config.app = self.wsgi
        self.config.load()
        self.use_our_protocols()
        judges = requests.probe_judges(self)
        if judges:
            prefix = self.config.root_path
            paths = {prefix + path: judge for path, judge in judges.items()}
            self.config.loaded_app = asgi.answer_probes(self.config.loaded_app, self, paths)
        self.server = Server(self.config, self)
        await self.server.serve()
        if not self.server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def use_our_protocols(self) -> None:
        """Have uvicorn make connections and requests of our classes."""
        config = self.config
        self.cycles = module_of_cycles(config.http_protocol_class)
        self.stock_cycle = self.cycles.RequestResponseCycle
        self.cycles.RequestResponseCycle = ours(Cycle, self.stock_cycle, self)
        config.http_protocol_class = ours(Connection, config.http_protocol_class, self)
        if config.ws_protocol_class is not None:
            config.ws_protocol_class = ours(Closing, config.ws_protocol_class, self)

    def run(self) -> None:
        """UvicornWorker.run; the boot is over only when the lifespan has started."""
        super(GracefulWorker, self).run()

    async def open(self, server: Server) -> None:
        """The application's startup is over: warm it up, and listen.

        :raises SystemExit: it is not fit to serve.
        """
        state = server.lifespan.state
        if not self.cfg.reload:
            try:
                await asgi.warm_up(self.config.loaded_app, state, self.settings.warmup, self.log)
            except WarmupError as error:
                self.refuse_to_start(error)
        if not self.begin_to_serve():
            self._running = False
            return
        make = partial(
            self.config.http_protocol_class,
            config=self.config,
            server_state=server.server_state,
            app_state=state,
        )
        for listener in self.sockets:
            self.servers.append(
                await self.loop.create_server(
                    make, sock=listener.sock, ssl=self.config.ssl, backlog=self.config.backlog
                )
            )

    # Orders

    def wake(self) -> None:
        super().wake()

    def handle_quit(self, number: int, frame: Any) -> None:
        super().handle_quit(number, frame)

    async def oversee(self) -> None:
        """Look at the page whenever there is something to see, until the worker has drained."""
        self.loop.add_reader(self.PIPE[0], self.on_pipe)
        for bell, phase in (
            (self.broadcast.lame_duck.fd, Phase.LAME_DUCK),
            (self.broadcast.draining.fd, Phase.DRAINING),
        ):
            self.loop.add_reader(bell, self.on_bell, bell, phase)
        while self._running:
            self.changed.clear()
            self.look()
            if self.lingerer:
                self.lingerer.sweep()
            if self.is_draining():
                await self.drain()
            if self._running:
                await self.wait(self.until_due())
        self.loop.remove_reader(self.PIPE[0])

    async def wait(self, seconds: float) -> None:
        """Until `changed` is set, and at the most so long."""
        timer = self.loop.call_later(seconds, self.changed.set)
        await self.changed.wait()
        timer.cancel()

    def on_pipe(self) -> None:
        self.hush()
        self.changed.set()

    def on_bell(self, fd: int, phase: Phase) -> None:
        self.loop.remove_reader(fd)
        if phase == Phase.DRAINING:
            self.hear(phase)
        self.changed.set()

    def until_due(self) -> float:
        """Seconds until the next look, if nothing happens before."""
        if self.lingerer.receiving:
            return lingering.LINGER_PASS
        most = SWEEP_PASS if self.lingerer else PASS
        if not self.is_draining():
            return most
        if self.servers or not self.holds_connections():
            return SETTLE_PASS  # waiting for the seal, or for closed connections to linger
        dues = [self.expiry(one) for one in self.waiting()]
        return min(self.until(dues), most, SWEEP_PASS)

    # Draining

    async def drain(self) -> None:
        if await self.close_servers():
            for _ in range(TURNS):
                await asyncio.sleep(0)
        await self.close_idle()
        self.tell_open_websockets()
        if self.servers or self.holds_connections() or self.tasks:
            return
        self.lingerer.sweep()
        self.finish_when_lingered()

    async def close_servers(self) -> bool:
        """Stop to accept when nobody is left to be; whether that has just been done."""
        if not self.servers:
            return False
        state = self.listeners_state
        if state in (ListenerState.OPEN, ListenerState.GATED):
            return False
        if state == ListenerState.SEALED:
            if sockets.readable([listener.fileno() for listener in self.sockets]):
                return False
            self.slot.drained = 1
        for one in self.servers:
            one.close()
        for listener in self.sockets:
            listener.close()
        self.servers, self.sockets = [], []
        return True

    @property
    def connections(self) -> set[Any]:
        """uvicorn's: all that it has accepted and not closed."""
        return self.server.server_state.connections

    def holds_connections(self) -> bool:
        """Whether any connection has, or may still have, something to be done for it."""
        return bool(self.connections)

    def waiting(self) -> list[Any]:
        """HTTP connections whose next request has not begun."""
        return [
            one
            for one in self.connections
            if isinstance(one, Connection) and not (one.transport.is_closing() or has_begun(one))
        ]

    def expiry(self, connection: Any) -> int:
        """ns at which a connection that is `waiting` is closed."""
        if connection.cycle is not None:
            return self.idle_expiry()
        return self.first_byte_expiry(connection.accepted_at)

    async def close_idle(self) -> None:
        """After a last look for bytes."""
        now = time.monotonic_ns()
        idle = {raw(one): one for one in self.waiting() if now >= self.expiry(one)}
        for number, client in enumerate(lingering.still_idle(list(idle))):
            connection = idle[client]
            if number and number % lingering.LOOK_BATCH == 0:
                await asyncio.sleep(0)  # what has been closed gives its descriptor back
            if connection.transport.is_closing() or has_begun(connection):
                continue
            self.half_close(connection)
            connection.shutdown()
            self.count_idle()

    def half_close(self, connection: Any) -> None:
        """Send FIN at once, where nothing of ours is to be sent before it."""
        transport = connection.transport
        if transport.get_extra_info("sslcontext") or transport.get_write_buffer_size():
            return
        bare = bare_socket(transport)
        try:
            with contextlib.suppress(OSError):  # the client has gone
                self.lingerer.half_close(bare)
                connection.half_closed = True
        finally:
            bare.detach()

    def tell_open_websockets(self) -> None:
        """Protocol.shutdown sends a close frame of 1012 ("service restart"), and closes."""
        for one in list(self.connections):
            if not isinstance(one, Connection) and is_open(one):
                one.told = True
                one.shutdown()
                if not self.page.is_serving():
                    self.slot.count("websockets_told")

    # Connections and requests

    def linger(self, connection: Any) -> None:
        """A connection is being closed: read on if its client may be sending (see `lingering`)."""
        if self.stopping():
            self.changed.set()
        if self.resigned or connection.transport.get_extra_info("sslcontext"):
            return
        fd = raw(connection).fileno()
        if fd < 0 or not (self.stopping() or is_sending(connection, fd)):
            return
        try:
            own = os.dup(fd)
        except OSError:
            if not self.lingerer.thin():
                return
            own = os.dup(fd)
        if not self.lingerer:
            self.changed.set()
        self.lingerer.make_room(own)
        bare = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, own)
        self.lingerer.add(bare, half_closed=connection.half_closed)

    def holds_requests(self) -> bool:
        return bool(self.tasks)

    def tell_websockets(self) -> None:
        """Not from the deadline's thread: see `tell_open_websockets`."""

    def begun(self, task: Task) -> None:
        """From SIGTERM on: a task of uvicorn's has a request."""

    def ended(self, task: Task) -> None:
        """From SIGTERM on."""
        self.changed.set()

    def is_probed(self, cycle: Any) -> None:
        if isinstance(cycle, Cycle):
            cycle.is_probe = True

    def announce_close(self, cycle: Any, message: Message) -> Message:
        """The headers go out now, past SERVING: they say `Connection: close`.

        :raises BrokenPipeError: the deadline has answered this request.
        """
        if message["type"] != "http.response.start":
            return message
        if self.is_draining():
            self.claim(cycle, cycle)
        cycle.announced_at = time.monotonic()
        scope = cycle.scope
        headers = list(message.get("headers", ()))
        if not (self.page.is_serving() or cycle.is_probe):
            self.slot.count("served")
            if scope["http_version"] != "2" and not says_close(scope, headers):
                self.slot.count("told_to_close")
        if scope["http_version"] == "2":
            return message
        headers = [(name, value) for name, value in headers if name.lower() != b"connection"]
        return {**message, "headers": [*headers, (b"connection", b"close")]}


def raw(connection: Any) -> Any:
    """The socket of a connection, for its descriptor; the event loop's own object."""
    return connection.transport.get_extra_info("socket")


def bare_socket(transport: Any) -> socket.socket:
    """The same as a real one, to be detached."""
    fd = transport.get_extra_info("socket").fileno()
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)


def is_sending(connection: Any, fd: int) -> bool:
    """Whether something of the client's has not been read."""
    cycle = getattr(connection, "cycle", None)
    return (cycle is not None and cycle.more_body) or bool(sockets.readable([fd]))


def says_close(scope: Any, headers: Any) -> bool:
    """Whether a response would be its connection's last without us."""
    if scope["http_version"] == "1.0":
        return True
    return any(
        name.lower() == b"connection" and b"close" in value.lower()
        for name, value in (*scope["headers"], *headers)
    )
