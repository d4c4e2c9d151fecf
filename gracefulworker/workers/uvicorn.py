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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import uvicorn_worker
from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker
from uvicorn import server

from gracefulworker import seam
from gracefulworker.phases import ListenerState, Phase
from gracefulworker.shared import sockets
from gracefulworker.workers import accepting, asgi, lingering, requests
from gracefulworker.workers.base import (
    EXIT_LINGER,
    PASS,
    SETTLE_PASS,
    GracefulWorker,
    is_supervised,
)
from gracefulworker.workers.deadline import Deadline
from gracefulworker.workers.probers import AGENTS
from gracefulworker.workers.uvicorn_deadline import UvicornDeadline
from gracefulworker.workers.uvicorn_protocols import (
    Closing,
    Connection,
    Cycle,
    Message,
    Places,
    Task,
    Tasks,
    WatchedTasks,
    is_open,
    ours,
    subject,
)
from gracefulworker.workers.uvicorn_zttp import Streams, ours_in
from gracefulworker.workers.warmup import WarmupError

#: Seconds between two looks at closed connections whose clients have not closed yet.
SWEEP_PASS = 0.05

#: Seconds between two looks at all connections for each of them, several times what one costs.
REST = 0.00001

#: Connections that are accepted in one turn of the event loop.
AT_ONCE = 64

#: Turns of the event loop after which what it has accepted is known: asyncio makes the transport
#: in a task, and calls its protocol in another turn.
TURNS = 4


class Server(server.Server):
    """uvicorn's server, which ends when the worker has drained."""

    def __init__(self, config: Any, worker: UvicornWorker) -> None:
        super().__init__(config)
        self.worker = worker
        #: requests after which the worker is to be recycled; with jitter since uvicorn 0.38
        self.limit: int | None = getattr(self, "limit_max_requests", config.limit_max_requests)
        config.limit_max_requests = self.limit_max_requests = None
        self.server_state.tasks = worker.tasks

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Server.capture_signals: gunicorn's handlers stay."""
        yield

    def install_signal_handlers(self) -> None:
        """Server.install_signal_handlers, of uvicorn before 0.29: the same."""

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Server.startup runs the lifespan's, and listens on no socket; that is done here."""
        self.lifespan.state.update(asgi.STATE)
        await super().startup(sockets=[])
        if self.started:
            await self.worker.open(self.lifespan.state)

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
        """Server.on_tick, ten times a second: with max_requests it ends the server."""
        self.worker.note_tasks()
        if self.limit is not None and self.server_state.total_requests >= self.limit:
            self.limit = None
            self.worker.ask_to_retire()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Server.shutdown, of which the lifespan's is left to be done."""
        self.worker.is_leaving = True
        await self.lifespan.shutdown()


class Executor(ThreadPoolExecutor):
    """The event loop's own, whose threads are waited for at the exit as any others are."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """loop.shutdown_default_executor waits, in asyncio.run, where nobody would be named."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


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
        #: the event loop's own, which accept before SIGTERM, and their descriptors
        self.servers: list[tuple[asyncio.AbstractServer, int]] = []
        self.listening: set[seam.Listener] = set()  #: from which we accept
        #: connections that are being made, which takes as long as a handshake; since when (ns)
        self.retired: list[int] = []  #: not empty: this worker stops while the service goes on
        #: since when there are tasks, as far as `note_tasks` has seen them (monotonic seconds)
        self.began: dict[Task, float] = {}
        self.noted_at = 0.0
        self.arrivals: dict[Task, int] = {}
        self.pause = accepting.Pause(self)
        self.looked_at = 0.0  #: all connections have been, in DRAINING (monotonic seconds)
        self.probers: set[Task] = set()
        self.is_leaving = False  #: the lifespan's shutdown has begun
        self.places = Places()
        if self.supervisor is not None:
            self.tasks = Tasks()
            self.tasks.worker = self

    def wrap(self) -> None:
        """What is put before the application waits for uvicorn to load it: see `_serve`."""

    def unwrap(self) -> None:
        self.places.clear()

    # Boot

    async def _serve(self) -> None:
        """UvicornWorker._serve, with our server."""
        if not is_supervised(self):
            await super()._serve()
            return
        self.loop = asyncio.get_running_loop()
        self.loop.set_default_executor(Executor(thread_name_prefix="asyncio"))
        self.changed = asyncio.Event()
        self.lingerer = lingering.Lingerer()
        self.config.app = self.wsgi
        self.config.load()
        self.is_secure = self.config.ssl is not None
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
        config.http_protocol_class = ours_in(self.places, config.http_protocol_class, self)
        if config.ws_protocol_class is not None:
            config.ws_protocol_class = ours(config.ws_protocol_class, self, Closing)

    def run(self) -> None:
        """UvicornWorker.run; the boot is over only when the lifespan has started."""
        super(GracefulWorker, self).run()

    async def open(self, state: dict[str, Any]) -> None:
        """The application's startup is over: warm it up, and listen.

        :param state: the lifespan's.
        :raises SystemExit: it is not fit to serve.
        """
        if not self.cfg.reload:
            try:
                await asgi.warm_up(self.config.loaded_app, state, self.settings.warmup, self.log)
            except WarmupError as error:
                self.refuse_to_start(error)
        if not self.begin_to_serve():
            self._running = False
            return
        self.make = partial(
            self.config.http_protocol_class,
            config=self.config,
            server_state=self.server.server_state,
            app_state=state,
        )
        for listener in self.sockets:
            # Behind TLS the event loop's own server tells nobody of a handshake under way; and a
            # Unix listener that is gated says EINVAL, which no loop takes for an empty queue.
            if self.is_secure or listener.family == socket.AF_UNIX:
                self.listen(listener)
            else:
                own = socket.socket(fileno=os.dup(listener.fileno()))
                backlog = self.config.backlog
                loops_own = await self.loop.create_server(self.make, sock=own, backlog=backlog)
                self.servers.append((loops_own, own.fileno()))

    # Accepting

    def listen(self, listener: seam.Listener) -> None:
        self.loop.add_reader(listener.fileno(), self.on_connections, listener)
        self.listening.add(listener)

    def stop_listening(self, listener: seam.Listener) -> None:
        if listener in self.listening:
            self.listening.remove(listener)
            self.loop.remove_reader(listener.fileno())

    async def take_over(self) -> None:
        """From SIGTERM on we accept: out of descriptors, uvloop closes whom it has accepted."""
        servers, self.servers = self.servers, []
        for _, fd in servers:
            self.loop.remove_reader(fd)  # asyncio's; what it has accepted still needs its server
        for listener in self.sockets:
            self.listen(listener)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        for one, _ in servers:
            one.close()

    def on_connections(self, listener: seam.Listener) -> None:
        """Take some of those who wait; `changed` is set when there may be more."""
        for _ in range(AT_ONCE):
            if not self.accept_one(listener):
                return
        self.changed.set()

    def accept_one(self, listener: seam.Listener) -> bool:
        """Whether a connection came."""
        try:
            accepted = accepting.accept_next(listener, listener.accept, self.lingerer)
        except OSError as error:
            if error.errno not in sockets.NO_ROOM:
                raise
            self.pause.begin(holds=self.holds_connections())
            for one in self.sockets:
                self.stop_listening(one)
            self.loop.call_later(accepting.NO_ROOM_PAUSE, self.end_pause)
            return False
        if accepted is None:
            return False
        client, _ = accepted
        self.pause.since = 0.0
        client.setblocking(False)
        arrival = self.loop.create_task(
            self.loop.connect_accepted_socket(self.make, client, ssl=self.config.ssl)
        )
        self.arrivals[arrival] = time.monotonic_ns()
        arrival.add_done_callback(self.on_arrival)
        return True

    def on_arrival(self, arrival: Task) -> None:
        """A connection has been made, or its handshake has failed."""
        del self.arrivals[arrival]
        if self.stopping():
            self.changed.set()
        if not arrival.cancelled() and isinstance(error := arrival.exception(), Exception):
            if not isinstance(error, OSError):
                raise error

    def end_pause(self) -> None:
        """Listen again, whatever the clock says: the loop's may be a moment before Python's."""
        if not self.is_draining():
            for listener in self.sockets:
                self.listen(listener)

    # Orders

    def retire(self) -> None:
        super().retire()
        self.retired.append(1)

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
            if self.stopping():
                self.watch_tasks()
                if self.servers:
                    await self.take_over()
            seconds = SWEEP_PASS if self.lingerer else PASS
            if self.is_draining():
                seconds = await self.drain()
            if self.lingerer.receiving:
                seconds = min(seconds, lingering.LINGER_PASS)
            if self._running:
                await self.wait(seconds)
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

    # Draining

    async def drain(self) -> float:
        """Do what is due; seconds until there is more to do, if nothing happens before."""
        self.close_listeners()
        rest = self.looked_at + REST * len(self.connections) - time.monotonic()
        if rest > 0:
            return min(rest, SETTLE_PASS) if self.sockets else rest
        for one in list(self.connections):
            if isinstance(one, Streams):
                one.approach_end()
        due = await self.close_idle()
        self.tell_open_websockets()
        holds = bool(self.tasks) or self.holds_connections()
        self.looked_at = time.monotonic()
        if holds and not self.sockets:
            # One that is due, and has bytes that have not been read, is not closed: not at once
            # again, for they may not be read soon.
            return max(min(self.until(due), SWEEP_PASS), SETTLE_PASS)
        if not (holds or self.sockets):
            self.lingerer.sweep()
            self.finish_when_lingered()
        return SETTLE_PASS  # waiting for the seal, or for closed connections to linger

    def close_listeners(self) -> None:
        """Take who waits, in each pass and no more when the event loop says so, until the seal.

        A gated Unix listener is readable all the time.
        """
        if not self.sockets:
            return
        state = self.listeners_state
        if state == ListenerState.LEFT:
            self.stop_accepting()
            return
        for listener in self.sockets:
            self.stop_listening(listener)
            if not self.pause.lasts():
                self.on_connections(listener)
        if state == ListenerState.SEALED and not (self.pause.lasts() or self.changed.is_set()):
            self.stop_accepting()
            self.slot.drained = 1

    def stop_accepting(self) -> None:
        for listener in self.sockets:
            self.stop_listening(listener)
            listener.close()
        self.sockets = []

    @property
    def connections(self) -> set[Any]:
        """uvicorn's: all that it has accepted and not closed."""
        return self.server.server_state.connections

    def holds_connections(self) -> bool:
        """Whether any connection has, or may still have, something to be done for it."""
        parted = [self.has_parted(one) for one in self.connections]  # each notes since when
        return bool(self.arrivals) or not all(parted)

    def has_parted(self, connection: Any) -> bool:
        """Whether only its client is waited for: behind TLS, by the event loop."""
        transport = connection.transport
        if not transport.is_closing() or transport.get_write_buffer_size():
            return False
        if not connection.parted_at:
            connection.parted_at = self.lingerer.last_fin = time.monotonic()
        return bool(time.monotonic() - connection.parted_at > EXIT_LINGER)

    def waiting(self) -> list[Any]:
        """HTTP connections whose next request has not begun."""
        return [
            one
            for one in self.connections
            if isinstance(one, Connection) and not (one.transport.is_closing() or one.has_begun())
        ]

    async def close_idle(self) -> list[int]:
        """Close those whose time is over, after a last look for bytes; the others' times (ns)."""
        now = time.monotonic_ns()
        dues = set()
        for arrival, since in list(self.arrivals.items()):
            due = self.first_byte_expiry(since)
            if now >= due:
                arrival.cancel()
                self.count_idle()
            dues.add(due)
        idle = {}
        began, after_a_request = self.drain_began(), self.idle_expiry()
        before_the_first = self.first_byte_expiry(began)
        for one in self.waiting():
            if one.cycle is not None:
                due = after_a_request
            elif isinstance(one, Streams) and one.has_cycle:
                due = one.expiry()
            elif one.accepted_at <= began:
                due = before_the_first
            else:
                due = self.first_byte_expiry(one.accepted_at)
            if now >= due:
                idle[raw(one)] = one
            dues.add(due)
        for number, client in enumerate(lingering.still_idle(list(idle))):
            connection = idle[client]
            if number and number % lingering.LOOK_BATCH == 0:
                await asyncio.sleep(0)  # what has been closed gives its descriptor back
            if connection.transport.is_closing() or connection.has_begun():
                continue
            if not isinstance(connection, Streams):  # which has something to say first
                self.half_close(connection)
            connection.shutdown()
            self.count_idle()
        return list(dues)

    def half_close(self, connection: Any) -> None:
        """Send FIN at once, where nothing of ours is to be sent before it."""
        transport = connection.transport
        if self.is_secure or transport.get_write_buffer_size():
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
        stopping = self.stopping()
        if stopping:
            self.changed.set()
        if self.is_secure or self.resigned or not (stopping or is_sending(connection)):
            return
        fd = raw(connection).fileno()
        if fd < 0:
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

    def note_tasks(self) -> None:
        """Ten times a second, which costs less than to note the time of each request."""
        now = self.noted_at = time.monotonic()
        if self.tasks or self.began:
            self.began = {task: self.began.get(task, now) for task in self.tasks}

    def watch_tasks(self) -> None:
        """From SIGTERM on each request is known as it begins and as it ends."""
        if type(self.tasks) is Tasks:
            self.tasks.__class__ = WatchedTasks
            for task in self.tasks:
                task.add_done_callback(self.ended)
            self.count_in_flight()

    def count_in_flight(self) -> None:
        self.gauge(len(self.tasks) - len(self.probers))

    def tell_websockets(self) -> None:
        """In the deadline's thread: `tell_open_websockets` tells them, in the event loop.

        If that is blocked, it cannot count what it has, either.
        """
        self.count_in_flight()

    def turn_away(self, speak: Callable[[Any], bool]) -> int:
        """Those that wait while something blocks the event loop: in the queue, and unread."""
        waiting = [raw(one) for one in self.waiting() if not isinstance(one, Streams)]
        return self.turn_away_queue(speak, waiting)

    def begun(self, task: Task) -> None:
        """From SIGTERM on: a task of uvicorn's has a request."""
        one = subject(task)
        if isinstance(one, Cycle) and is_prober(one.scope):
            one.is_probe = True
            self.probers.add(task)
            self.discount_probe()
        self.count_in_flight()

    def ended(self, task: Task) -> None:
        """From SIGTERM on."""
        self.probers.discard(task)
        self.count_in_flight()
        self.changed.set()

    def is_probed(self, cycle: Any) -> None:
        """Probes are no requests for max_requests and for the access log."""
        if not isinstance(cycle, Cycle):
            return  # somebody has wrapped it
        if not cycle.is_probe:
            cycle.is_probe = True
            self.discount_probe()
        self.server.server_state.total_requests -= 1
        if not self.settings.probe_log:
            cycle.access_log = False

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


def is_sending(connection: Any) -> bool:
    """Whether its client may be sending: not when it has had its answer to all that it has begun.

    Asked at the end of each connection: it costs no system call.
    """
    cycle = getattr(connection, "cycle", None)  # a WebSocket has none
    return cycle is None or cycle.more_body or connection.has_begun()


def is_prober(scope: Any) -> bool:
    """Whether its User-Agent is one of those who ask only whether the service is up."""
    agents = [value for name, value in scope["headers"] if name == b"user-agent"]
    return any(one.decode("latin-1").startswith(AGENTS) for one in agents)


def says_close(scope: Any, headers: Any) -> bool:
    """Whether a response would be its connection's last without us."""
    if scope["http_version"] == "1.0":
        return True
    return any(
        name.lower() == b"connection" and b"close" in value.lower()
        for name, value in (*scope["headers"], *headers)
    )
