"""What the workers share: orders, phases, counting, and the close at header time.

Each worker keeps gunicorn's own serving loop running until it has nothing left to do: `alive`,
which that loop asks, stays True through LAME_DUCK and DRAINING. Whatever sets it to False in
gunicorn (max_requests, the reloader) only asks the worker to retire. So what a stopping worker
does is decided in the small methods that the loop calls, and nothing of a loop is copied.

An engine (sync, gthread, ggevent, uvicorn) overrides methods that accept, wait and close; it calls
`look` in each pass and `finished` when it has drained. What may be changed here: what holds for all
of them.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import operator
import os
import signal
import sys
import time
from _thread import get_ident  # bound before gevent patches it: the native one
from collections.abc import Callable, Iterable
from time import monotonic
from types import FrameType
from typing import Any, NoReturn

from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.workers.base import Worker

from gracefulworker import seam
from gracefulworker.arbiter.crew import OurWorker
from gracefulworker.arbiter.takeover import Supervisor, supervise
from gracefulworker.phases import SECOND, SETTLE_MAX, ListenerState, Phase
from gracefulworker.shared import current, sockets
from gracefulworker.shared.forks import at_fork
from gracefulworker.shared.leaving import Leaving
from gracefulworker.workers import accepting, lingering, websockets
from gracefulworker.workers.deadline import LEAVING, Deadline
from gracefulworker.workers.probers import is_prober
from gracefulworker.workers.requests import (
    Application,
    ClosingResponse,
    InFlight,
    unwrap_application,
    wrap_application,
)
from gracefulworker.workers.warmup import WarmupError, warm_up
from gracefulworker.workers.websockets import WebSockets

#: Seconds that a SIGTERM which the arbiter did not send is held back: a group's SIGTERM reaches
#: the workers before the arbiter's handler has run (measured: up to 49 ms). Erring here means
#: serving longer, which harms nobody.
HOLD = 1.0

#: Seconds between two passes of a loop at the most.
PASS = 1.0

#: Seconds between two looks at the page while the arbiter waits for handshakes to complete.
SETTLE_PASS = 0.01

#: Seconds after the last FIN in which connections that were closed may still linger.
EXIT_LINGER = 0.1

#: Seconds that a worker which retires while the service goes on keeps its idle connections, for a
#: request that may be on the wire (gunicorn 27's STOP_KEEPALIVE_LINGER).
RETIRE_IDLE = 2.0


def _nothing_to_end() -> None:
    """Without HTTP/2."""


class ErrorConnection:
    """A client's connection, to be claimed when util.write_error writes to it and not before.

    What Worker.handle_error logs in between may take long.
    """

    def __init__(self, connection: Any, claim: Callable[[], None]) -> None:
        self._connection, self._claim = connection, claim

    def sendall(self, data: bytes) -> None:
        self._claim()
        self._connection.sendall(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def is_supervised(worker: GracefulWorker) -> bool:
    """Whether an arbiter has it; asked where gunicorn's own tests have a mock in its place, too."""
    return isinstance(worker.supervisor, Supervisor)


class SettledConfig(Config):  # type: ignore[misc]
    """The configuration of a worker that serves: its values are plain attributes.

    Config looks each of them up in Python (`__getattr__`) some twenty times in each request, a
    tenth of all that is done for it. That pays for what we do there.
    """

    def __getattr__(self, name: str) -> Any:
        """Config.__getattr__, which is asked only for what is no attribute yet."""
        value = super().__getattr__(name)
        self.__dict__[name] = value
        return value

    def set(self, name: str, value: Any) -> None:
        """Config.set, should a hook change its mind."""
        super().set(name, value)
        self.__dict__.pop(name, None)


#: Packages that have no objects of the user's, and whose own have nothing to be done at the exit.
_WITHOUT_USERS = {"__main__", "_distutils_hack", "_virtualenv", "cython_runtime", "gevent"}
_WITHOUT_USERS |= {"gracefulworker", "greenlet", "gunicorn", "packaging", "setproctitle", "zope"}


def _are_known(modules: Iterable[str]) -> bool:
    """Whether all of them are gunicorn's, ours or Python's."""
    packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    return all(
        name in _WITHOUT_USERS or name.startswith(("_cython_", "__editable__")) for name in packages
    )


class GracefulWorker(OurWorker, Worker):  # type: ignore[misc]
    """Mixed in before gunicorn's worker class of the same engine.

    Built outside an arbiter (gunicorn's own unit tests do that) it works as stock.
    """

    #: Where handle_request finds the request: (listener, req, client, addr); gthread: (req, conn).
    request_argument = 1

    #: Tells who handles a request: a thread's identifier, or a greenlet.
    whoami = staticmethod(get_ident)

    #: The arbiter's; None outside an arbiter, also where `__init__` has not been called.
    supervisor: Supervisor | None = None

    #: What ends the process at the deadline.
    deadline_class: type[Deadline] = Deadline

    #: Connections that are closed and still read on; made by each engine's `run`.
    lingerer: lingering.Lingerer

    #: Modules that were there before the fork, if none of them is the user's; else 0. Then, as with
    #: --preload, a config file or a class of the user's, the exit takes some 15 ms of the processor
    #: more, as long as it takes in stock's.
    known_modules = 0

    #: Whether nothing of the user's was there before `init_signals`.
    inherited_nothing_of_users = False

    # Worker's own, which is untyped.
    cfg: seam.Config
    log: seam.Log
    sockets: list[seam.Listener]
    wsgi: Application
    PIPE: tuple[int, int]
    pid: int
    ppid: int
    max_requests: int
    nr: int

    @classmethod
    def check_config(cls, cfg: seam.Config, log: seam.Log) -> None:
        """Arbiter.start calls this in the arbiter before when_ready."""
        checked = getattr(super(), "check_config", None)
        if checked is not None:
            checked(cfg, log)
        supervise()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._retired_at: int | None = None
        self._running = True
        self.excused_until = 0.0  # the arbiter's: until then a missing heartbeat is no fault
        self._orphan = False
        self.resigned = False  # this process has been forked by the application
        self.supervisor = supervise()
        super().__init__(*args, **kwargs)
        if self.supervisor is not None:
            # In the arbiter: to look at each name writes to it, so it would copy its memory there.
            if type(self.app).__module__.startswith("gunicorn.") and _are_known(sys.modules):
                self.known_modules = len(sys.modules)
            self.broadcast = self.supervisor.broadcast
            self.page = self.broadcast.page
            self.settings = self.supervisor.settings
            self._head = self.page.head()
            self.leaving, self.watch = Leaving(self.log), self.deadline_class(self)
            self.slot = self.supervisor.seat(self)
            self.orders = self.slot  # a process that the application forks reads them, too
            self.gauge = self.slot.gauge()
            self.accepted_before = 0  # ns of the last new connection but one
            #: requests of probers that the application holds, from SIGTERM on
            self.probing: set[seam.Request] = set()
            #: requests that the application holds, oldest first
            self.in_flight: dict[seam.Request, InFlight] = {}
            #: who answers a request from SIGTERM on: its response, the page about the error that
            #: it has raised, or the deadline
            self.claims: dict[seam.Request, seam.Response | Deadline | BaseException] = {}
            self.websockets = WebSockets(self)
            self.told = self.websockets.told
            #: brings HTTP/2 connections to their end, where there are any
            self.end_http2: Callable[[], None] = _nothing_to_end
            self.let_go_of_http2: Callable[[], None] = _nothing_to_end

    # Boot

    def init_process(self) -> None:
        """Worker.init_process: the worker's life, in its own process.

        Processes that the application forks live on as the application wants, and not as this
        worker: the slot, the heartbeat and the connections' ends stay its own.
        """
        if self.supervisor is None:
            super().init_process()
            return
        at_fork(after_in_child=self.resign)
        try:
            super().init_process()
        finally:
            if not self.resigned:
                deadline = self.deadline() if self.is_draining() else 0
                self.leaving.begin(deadline, self.settings.threads, self.let_go)

    def let_go(self) -> None:
        """The interpreter comes to its modules: nothing in them leads here any more."""
        self.watch.stop()
        # What is frozen is never finalized. It holds the application, and where that or other code
        # of the user's was there before, some of it is that code's.
        self.__dict__.pop("wsgi", None)  # which is not there when the boot has failed
        self.app.callable = None
        if not self.inherited_nothing_of_users:
            gc.unfreeze()
        phase = self.phase_for_application()
        current.answer_with(lambda: phase)
        self.unwrap()

    def resign(self) -> None:
        """This is a process that the application has forked, perhaps with all of our greenlets.

        What they go on to write is not read by anybody.
        """
        self.resigned = True
        self.slot = self.slot.copy()
        self.gauge = self.slot.gauge()

    def init_signals(self) -> None:
        """Worker.init_signals resets what it knows of; SIGINT may be ours.

        The application is not loaded yet, unless by --preload: from here on it can ask.

        What it has inherited is left out of its garbage collections (gc.freeze). They would write
        to each of these objects, and so copy the memory that the arbiter and all workers share: our
        own modules' most of all, and with --preload the application's. Not before here, for gevent
        has patched by now (GeventWorker.init_process), and who is too old to be patched it finds by
        gc.get_referrers, which passes over what is frozen.
        """
        super().init_signals()
        if self.supervisor is None:
            return
        if self.known_modules:
            more = max(len(sys.modules) - self.known_modules, 0)
            newer = itertools.islice(reversed(sys.modules), more)
            self.inherited_nothing_of_users = _are_known(newer)
        gc.freeze()
        current.answer_with(self.phase_for_application)
        if self.settings.sigint:
            signal.signal(signal.SIGINT, self.handle_exit)

    def load_wsgi(self) -> None:
        """Worker.load_wsgi sets `wsgi`; from here on it is the application, wrapped."""
        super().load_wsgi()
        if self.supervisor is not None:
            self.wrap()

    def wrap(self) -> None:
        """The application is there: have each request of it pass here."""
        if self.cfg.is_ssl and self.cfg.suppress_ragged_eofs:
            websockets.spare_alerts(self.cfg)  # before the engines make contexts of their own
        self.wsgi = wrap_application(self.wsgi, self)
        if seam.offers_http2(self.cfg):
            from gracefulworker.workers import http2

            self.end_http2 = http2.use_our_connections(self).give
            self.let_go_of_http2 = http2.use_stock_connections

    def unwrap(self) -> None:
        """The process is about to end: gunicorn's modules lead to no worker any more."""
        unwrap_application()
        self.let_go_of_http2()

    def run(self) -> None:
        """Worker.run, the serving loop; the boot is over."""
        if is_supervised(self):
            self.warm_up()
            if not self.begin_to_serve():
                return
            if type(self.cfg) is Config:
                self.cfg.__class__ = SettledConfig
        super().run()

    def begin_to_serve(self) -> bool:
        """The boot is over; whether there is something to be served."""
        self.watch.start()  # a thread, which is not to be had at some limits of a container
        self.slot.booted = 1
        self.page.state()  # the last one to boot sees that all are up
        if self.slot.dismissed:
            return False
        self.broadcast.nudge.give()
        return True

    def warm_up(self) -> None:
        """Put `graceful_warmup` to the application.

        :raises SystemExit: it is not fit to serve; to the arbiter this is a failed boot.
        """
        if self.cfg.reload:
            return  # a developer mends it while it runs
        try:
            warm_up(self, self.settings.warmup)
        except WarmupError as error:
            self.refuse_to_start(error)

    def refuse_to_start(self, error: WarmupError) -> NoReturn:
        """:raises SystemExit: to the arbiter this is a failed boot."""
        self.log.error("warm-up: %s, so the worker does not start", error, exc_info=error.__cause__)
        raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from error

    # Orders

    def _set_alive(self, alive: bool) -> None:
        if self.supervisor is None:
            self._running = alive
        elif not alive:
            self.ask_to_retire()

    #: Whether gunicorn's serving loop goes on: until the worker has drained. Requests ask it, too.
    alive = property(operator.attrgetter("_running"), _set_alive)

    def ask_to_retire(self) -> None:
        """Ask the arbiter for a turn: only one worker at a time recycles itself."""
        self.max_requests = sys.maxsize  # asked once is enough
        self.slot.wants_to_retire = 1
        self.broadcast.nudge.give()

    def retire(self) -> None:
        """Stop while the service goes on: this worker's own phase becomes DRAINING."""
        if self._retired_at is None:
            self._retired_at = time.monotonic_ns()
            self.max_requests = sys.maxsize
            self.wake()

    def wake(self) -> None:
        """End the loop's wait; safe in a signal handler and from any thread."""
        if self.PIPE:
            try:
                os.write(self.PIPE[1], b".")
            except BlockingIOError:
                pass  # the pipe is full, so the loop will wake anyway

    def hush(self) -> None:
        """Read what `wake` and signals have written, unless a forked process was first."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.PIPE[0], 4096)

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        """Worker.handle_exit sets alive to False; here SIGTERM is noted, and `look` judges it."""
        if self.supervisor is None:
            super().handle_exit(number, frame)
            return
        self.slot.term_at = time.monotonic_ns()

    def handle_quit(self, number: int, frame: FrameType | None) -> None:
        """Worker.handle_quit: worker_int, then SystemExit, which some code swallows."""
        self._running = False
        super().handle_quit(number, frame)

    def is_parent_alive(self) -> bool:
        """SyncWorker's and ThreadWorker's way to leave the loop; here orphans `hear` of it."""
        leads = self.supervisor is not None and not self.resigned
        return True if leads else bool(super().is_parent_alive())

    @property
    def phase(self) -> Phase:
        """This worker's phase: the larger of the shared one and its own."""
        shared = self.page.phase
        if self._retired_at is not None and shared < Phase.DRAINING:
            return Phase.DRAINING
        return shared

    def phase_for_application(self) -> Phase:
        """An order to retire counts at once: the loop cannot look while a sync worker is busy."""
        if self.orders.retire:
            return max(self.phase, Phase.DRAINING)
        return self.phase

    def stopping(self) -> bool:
        """Whether this worker or the service is past SERVING; the question of each request."""
        return self._head[0] != 0 or self._retired_at is not None

    def is_draining(self) -> bool:
        return self.stopping() and self.phase >= Phase.DRAINING

    def look(self) -> None:
        """Look at the page: called in each pass of the loop."""
        if self._retired_at is None and self.slot.has_orders():
            if self.slot.retire:
                self.retire()
            elif self.held_long_enough():
                self.slot.term_at = 0
                self.ask_to_retire()  # so that its successor boots first

    def hear(self, phase: Phase) -> None:
        """The bell of `phase` has rung: it has begun, or the arbiter has died."""
        if self.page.phase < phase and self._retired_at is None:
            self.log.info("the arbiter is gone: finishing what is in flight (pid: %s)", self.pid)
            self._orphan = True
            self.retire()

    def held_long_enough(self) -> bool:
        """Whether a SIGTERM that the arbiter did not send was meant for this worker alone."""
        if not self.page.is_serving():
            self.slot.term_at = 0  # the whole group's: the arbiter leads
            return False
        return time.monotonic_ns() - self.slot.term_at >= HOLD * SECOND

    def deadline(self) -> int:
        """ns at which what is left is cut (in DRAINING)."""
        own: int = self.drain_began() + self.cfg.graceful_timeout * SECOND
        if self.page.phase >= Phase.DRAINING:
            own = self.page.deadline
        return own

    # Draining

    def drain_began(self) -> int:
        """ns at which this worker's DRAINING began."""
        if self.page.phase >= Phase.DRAINING:
            return self.page.drain_at
        return self._retired_at or 0

    @property
    def listeners_state(self) -> ListenerState:
        """What to do with the listeners, in DRAINING."""
        if self.page.phase >= Phase.DRAINING:
            state = self.page.listeners
            settled_at = self.page.drain_at + round(2 * SETTLE_MAX * SECOND)
            if state == ListenerState.GATED and time.monotonic_ns() > settled_at:
                return ListenerState.SEALED  # the arbiter has died before it could say so
            return state
        # The service goes on, and so do others on the same listeners. Nobody comes after orphans.
        return ListenerState.SEALED if self._orphan else ListenerState.LEFT

    def first_byte_expiry(self, accepted_at: int) -> int:
        """ns at which a connection that has not sent a byte counts as idle (in DRAINING)."""
        since = max(accepted_at, self.drain_began())
        return self.in_time(since + round(self.settings.first_byte * SECOND))

    def idle_expiry(self) -> int:
        """ns until which an idle keep-alive connection is kept in DRAINING.

        From SIGTERM on each response has announced the close, and what is idle at the end of the
        delay has been so all the time. A worker that retires on its own has announced nothing.
        """
        if self.page.phase >= Phase.DRAINING:
            return self.in_time(self.page.drain_at + round(self.settings.idle * SECOND))
        idle = min(RETIRE_IDLE, float(self.cfg.keepalive))
        return self.in_time(self.drain_began() + round(idle * SECOND))

    def in_time(self, expiry: int) -> int:
        """`expiry`, but so long before the deadline that the worker can leave by itself (ns)."""
        return min(expiry, self.deadline() - round(LEAVING * SECOND))

    def until(self, dues: list[int]) -> float:
        """Seconds until the first of these times (ns), at most a pass."""
        if not dues:
            return PASS
        return min(PASS, max(min(dues) - time.monotonic_ns(), 0) / SECOND)

    def holds_requests(self) -> bool:
        """Whether the application has any; asked in any thread."""
        return bool(self.in_flight)

    def tell_websockets(self) -> None:
        """In DRAINING, in the deadline's thread: those that are open shall end."""
        self.websockets.tell()

    def turn_away(self, speak: Callable[[Any], bool]) -> int:
        """At the deadline, in its thread: `speak` to whole requests that wait; how many."""
        return 0

    def turn_away_queue(self, speak: Callable[[Any], bool], waiting: list[Any]) -> int:
        """`speak` to those in `waiting` and in the accept queues that have sent something."""
        if self.listeners_state != ListenerState.LEFT:
            for listener in self.sockets:
                waiting += accepting.accept_all(listener)
        self.kept_open = waiting  # until the process ends
        fds = sockets.readable([connection.fileno() for connection in waiting])
        return sum(speak(connection) for connection in waiting if connection.fileno() in fds)

    def finish_when_lingered(self) -> bool:
        """Nothing is left to serve: end, as soon as closed connections have had their moment."""
        if self.lingers() and monotonic() - self.lingerer.last_fin < EXIT_LINGER:
            return False
        self.lingerer.let_go()
        self.finished()
        return True

    def keep_open(self, connection: Any) -> None:
        """Close it in a moment: its client has been sent a close frame (see `websockets`)."""
        self.lingerer.keep(connection)

    def lingers(self) -> bool:
        """Whether there are connections that have been closed, and whose clients have not yet."""
        return bool(self.lingerer)

    def finished(self) -> None:
        """The loop may end."""
        self.slot.in_flight = 0
        self._running = False

    # Counting, from SIGTERM on

    def count_accepted(self) -> int:
        """Note a new connection; its time in ns."""
        now = time.monotonic_ns()
        if not self.page.is_serving():
            self.slot.count("accepted")
            self.accepted_before, self.slot.accepted_at = self.slot.accepted_at, now
            if self.page.phase >= Phase.DRAINING:
                self.slot.count("from_queue")
                self.slot.accepted_at = self.page.drain_at  # it came before; its turn comes now
        return now

    def discount_probe(self) -> None:
        """The connection was a prober's, who comes as ever from SIGTERM on: nobody new.

        It ends with its answer, so it is discounted once. Should it be older than SIGTERM, or
        should others have come since, the figures are one too low.
        """
        if not self.page.is_serving() and self.slot.accepted:
            self.slot.count("accepted", -1)
            self.slot.accepted_at = self.accepted_before

    def count_idle(self, number: int = 1) -> None:
        if not self.page.is_serving():
            self.slot.count("closed_idle", number)

    # Requests

    def handle_request(self, *args: Any) -> Any:
        """The engines' handle_request, with the request known while the application has it."""
        return self.track(super().handle_request, args)

    def handle_http2_request(self, *args: Any) -> Any:
        """The engines' handle_http2_request (25 on): a stream is known in the same way."""
        try:
            return self.track(super().handle_http2_request, args)
        finally:
            if self.supervisor is not None and not self.page.is_serving():
                self.slot.count("served")

    def track(self, handle: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Call an engine's handler, with its request known meanwhile."""
        if self.supervisor is None:
            return handle(*args)
        request = args[self.request_argument]
        entry = InFlight()
        entry.began, entry.handler, entry.response = monotonic(), self.whoami(), None
        self.in_flight[request] = entry
        if self._head[0] and is_prober(request):
            self.probing.add(request)
            self.discount_probe()
        self.gauge(len(self.in_flight) - len(self.probing))
        try:
            return handle(*args)
        except StopIteration:
            if self.told:
                self.websockets.part(request, entry)
            raise
        finally:
            del self.in_flight[request]
            if self.told:
                self.websockets.forget(request)
            if self.claims and not self.is_draining():
                self.claims.pop(request, None)  # else the deadline may be looking at it
            if self.probing:
                self.probing.discard(request)
            self.gauge(len(self.in_flight) - len(self.probing))

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Worker.handle_error answers with a page about the error, unless the deadline does."""
        if self.supervisor is not None and req is not None and self.is_draining():
            client = ErrorConnection(client, lambda: self.claim(req, exc))
        super().handle_error(req, client, addr, exc)

    def claim(self, request: seam.Request, answer: ClosingResponse | BaseException) -> None:
        """Have `answer` answer a request, now.

        :raises BrokenPipeError: the deadline has answered it.
        """
        # dict.setdefault is atomic: whoever comes first answers.
        if self.claims.setdefault(request, answer) is not answer:
            raise BrokenPipeError(errno.EPIPE, "answered at the deadline")

    def announce(self, response: ClosingResponse) -> None:
        """The headers go out now, past SERVING: they say `Connection: close`.

        :raises BrokenPipeError: the deadline has answered this request.
        """
        self.claim(response.req, response)
        is_probe = getattr(response, "is_probe", False) or response.req in self.probing
        if not (self.page.is_serving() or is_probe):
            self.slot.count("served")
            if not response.should_close():
                self.slot.count("told_to_close")
        if response.status_code != 101:  # Switching Protocols
            response.upgrade = False  # the application's own "Connection: upgrade" would be said
        response.force_close()
