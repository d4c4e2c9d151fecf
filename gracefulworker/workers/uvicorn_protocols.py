"""What uvicorn's connections and its requests do beside their own: they tell the worker.

uvicorn makes an object of its protocol class for each connection, one of its module's
`RequestResponseCycle` for each HTTP request, and a task that runs the application in it. All of
them are classes that it looks up when it needs one, so ours stand in their place. Whether a request
has begun is not noted as its bytes come, which would cost each of them: it is seen in what uvicorn
keeps itself, once somebody wants to know.

What may be changed here: what is known of a connection, and of a request, and how it is found in
the protocols of uvicorn. Of what is on the way of each request the cost is to be measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from gracefulworker.shared.page import Page

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
ASGI = Callable[[Scope, Any, Any], Awaitable[None]]

#: Who has a request: uvicorn's task. Of this module's own only in its shape.
Task = asyncio.Task[Any]


class ProtocolWorker(Protocol):
    """What is asked here of the worker."""

    page: Page
    retired: list[int]

    def count_accepted(self) -> int: ...
    def announce_close(self, cycle: Any, message: Message) -> Message: ...
    def linger(self, connection: Any) -> None: ...
    def begun(self, task: Task) -> None: ...
    def ended(self, task: Task) -> None: ...


class Tasks(set[Task]):
    """uvicorn's set of the tasks in which the application has a request or a WebSocket.

    A plain one at first, so that it costs nothing. From SIGTERM on its class is the one below.
    """

    worker: ProtocolWorker


class WatchedTasks(Tasks):
    """The methods are those that uvicorn calls."""

    def add(self, task: Task) -> None:
        super().add(task)
        self.worker.begun(task)

    def discard(self, task: Any) -> None:
        super().discard(task)
        self.worker.ended(task)


class Cycle:
    """Mixed in before uvicorn's RequestResponseCycle: one HTTP request and its response."""

    # uvicorn's
    scope: Scope
    response_started: bool
    access_log: bool

    is_probe = False
    announced_at = 0.0  #: monotonic seconds; 0.0: its headers went out before SIGTERM


def cycle_class(stock: Any, worker: ProtocolWorker) -> Any:
    """The class that stands in the place of uvicorn's RequestResponseCycle."""
    head, retired = worker.page.head(), worker.retired
    announce, stock_send = worker.announce_close, stock.send

    def send(self: Any, message: Message) -> Awaitable[None]:
        """RequestResponseCycle.send, which the application calls at least twice.

        All that it needs is at hand, and there is no coroutine of our own: that is what it costs.
        """
        if (head[0] or retired) and not self.response_started:
            message = announce(self, message)
        return stock_send(self, message)  # type: ignore[no-any-return]

    return type(stock.__name__, (Cycle, stock), {"send": send})


class Closing:
    """Mixed in before any protocol class of uvicorn's: its end is the worker's to see."""

    worker: ProtocolWorker
    transport: asyncio.Transport  #: uvicorn's
    half_closed = False  #: FIN has been sent
    told = False  #: of a WebSocket: that it is to end
    parted_at = 0.0  #: monotonic seconds since when only its client is waited for

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio calls it right before it closes the socket."""
        if exc is None:
            self.worker.linger(self)
        super().connection_lost(exc)  # type: ignore[misc]


class Connection(Closing):
    """The same before those of HTTP."""

    # uvicorn's: the request whose response was last begun, or is to be; that of what is read
    cycle: Any
    scope: Scope | None

    accepted_at = 0  #: ns; 0: before SIGTERM

    def connection_made(self, transport: asyncio.Transport) -> None:
        if not self.worker.page.is_serving():
            self.accepted_at = self.worker.count_accepted()
        super().connection_made(transport)  # type: ignore[misc]

    def has_begun(self) -> bool:
        """Whether it is in the midst of a request: a byte of it has come, or more."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            return True
        if getattr(self, "pipeline", None):
            return True
        conn = getattr(self, "conn", None)
        if conn is not None:
            return bool(conn.trailing_data[0])  # h11's: what is not yet a whole head
        # httptools' parser has begun with the next one: `scope` is made anew at its first byte.
        return self.scope is not None and (cycle is None or self.scope is not cycle.scope)


def ours(stock: Any, worker: ProtocolWorker, *mixins: type) -> Any:
    """The class that stands in `stock`'s place."""
    return type(stock.__name__, (*mixins, stock), {"worker": worker})


class Places:
    """Where uvicorn looks up what it makes: our classes are there until `clear`."""

    def __init__(self) -> None:
        self._stock: list[tuple[Any, str, Any]] = []

    def put(self, module: Any, name: str, one: Any) -> None:
        self._stock.append((module, name, getattr(module, name)))
        setattr(module, name, one)

    def clear(self) -> None:
        while self._stock:
            setattr(*self._stock.pop())


# -- what uvicorn keeps of a connection ------------------------------------------------------------


def subject(task: Task) -> Any:
    """Of which cycle, or which WebSocket's protocol, a task runs `run_asgi`; None when it is over.

    It is that coroutine's `self`.
    """
    frame = getattr(task.get_coro(), "cr_frame", None)
    return None if frame is None else frame.f_locals.get("self")


def is_open(websocket: Any) -> bool:
    """Whether the application has accepted a WebSocket, and nobody has begun to close it."""
    if hasattr(websocket, "handshake_completed_event"):  # of uvicorn's `websockets_impl`
        is_accepted = websocket.handshake_completed_event.is_set()
        return bool(
            is_accepted
            and websocket.initial_response is None
            and not websocket.closed_event.is_set()
            and not websocket.ws_server.closing
        )
    is_refused = getattr(websocket, "response_started", False) or getattr(
        websocket, "initial_response", None
    )
    return bool(websocket.handshake_complete and not (websocket.close_sent or is_refused))
