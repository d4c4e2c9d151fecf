"""The deadline of an event loop: its tasks are answered or cut, and named by where they wait.

The event loop itself answers, as it does any request, for then TLS is no matter. One that is
blocked does not come to it in `LOOP_PATIENCE`: then the deadline's thread writes what can be
written past it.

What may be changed here: how it is found where a task's code stands.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import struct
import sys
import time
from _socket import SO_LINGER, SOL_SOCKET
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any, Protocol

from gracefulworker.phases import KILL_MARGIN
from gracefulworker.workers.deadline import (
    AFTER,
    CALLS,
    LAST_WORDS,
    TO_HEAD,
    Deadline,
    DeadlineWorker,
    Left,
    Stack,
    printable,
    show,
)
from gracefulworker.workers.uvicorn_protocols import Connection, Cycle, Task, Tasks, subject
from gracefulworker.workers.uvicorn_zttp import Streams

#: Seconds in which the event loop has to begin to answer.
LOOP_PATIENCE = KILL_MARGIN / 4

#: uvicorn's coroutine that runs the application in its lifespan.
LIFESPAN = "LifespanOn.main"

MIDDLE = "in the middle of its response"
STREAM = "its HTTP/2 stream"


class LoopWorker(DeadlineWorker, Protocol):
    """What is asked here of the worker."""

    tasks: Tasks
    loop: asyncio.AbstractEventLoop
    is_leaving: bool
    began: dict[Task, float]
    noted_at: float
    connections: set[Any]
    claims: dict[Any, Any]


class UvicornDeadline(Deadline):
    """As in the other engines; the requests are tasks."""

    worker: LoopWorker

    #: by a future's id: the thread in which that runs which the future is of; once one is named
    _threads: dict[int, int] | None = None

    def answer(self) -> list[Left]:
        """In the event loop; in this thread where that does not come to it."""
        found: list[list[Left]] = []
        whose: dict[str, bool] = {}  # setdefault is atomic: one of the two answers
        done = _thread.allocate_lock()
        done.acquire()

        def in_the_loop() -> None:
            if whose.setdefault("turn", True):
                try:
                    found.append(list(self._answer(self._write)))
                finally:
                    done.release()

        try:
            self.worker.loop.call_soon_threadsafe(in_the_loop)
        except RuntimeError:  # it is closed
            whose["turn"] = False
        else:
            done.acquire(timeout=LOOP_PATIENCE)
        if whose.setdefault("turn", False) and (found or done.acquire(timeout=LOOP_PATIENCE)):
            return found[0] if found else []
        return list(self._answer(self._write_past_it))

    def _answer(self, write: Callable[[Any, bytes], bool]) -> Iterator[Left]:
        seen = set()
        worker = self.worker
        for task in list(worker.tasks):
            one = subject(task)
            if one is None:
                continue  # it is over
            seen.add(one)
            ending = self._end_one(one, write)
            began = worker.began.get(task, worker.noted_at)
            method = one.scope.get("method", "GET")
            yield Left(ending, f"{printable(method)} {printable(one.scope['path'])}", began, task)
        for one in list(worker.connections):
            cycle = getattr(one, "cycle", None)
            if isinstance(one, Connection) and cycle is not None and cycle not in seen:
                if cycle.response_complete and one.transport.get_write_buffer_size():
                    # Its code is done, and its client does not read.
                    name = f"{printable(cycle.scope['method'])} {printable(cycle.scope['path'])}"
                    yield Left(MIDDLE, name, cycle.announced_at or time.monotonic(), None)
            for rest in one.unsent() if isinstance(one, Streams) else ():
                if rest not in seen:
                    name = f"{printable(rest.scope['method'])} {printable(rest.scope['path'])}"
                    yield Left(STREAM, name, rest.announced_at or time.monotonic(), None)

    def _end_one(self, one: Any, write: Callable[[Any, bytes], bool]) -> str:
        try:
            return self._end_task(one, write)
        except (OSError, ValueError):
            return "closed"  # by the client

    def _end_task(self, one: Any, write: Callable[[Any, bytes], bool]) -> str:
        """End the request of a cycle, or a WebSocket's protocol, as its client can best tell."""
        if not isinstance(one, Cycle):
            if one.told:
                return "its WebSocket, which was told to end"
            return "its WebSocket"  # a 503 in the midst of its frames would be noise
        cycle: Any = one
        if cycle.scope["http_version"] == "2":
            return STREAM
        if not cycle.response_started:
            if self.worker.claims.setdefault(cycle, self) is self:
                words = TO_HEAD if cycle.scope["method"] == "HEAD" else LAST_WORDS
                return "503" if write(cycle.transport, words) else "closed"
        if cycle.response_complete and not cycle.transport.get_write_buffer_size():
            with contextlib.suppress(OSError, ValueError):  # it has been closed
                self._half_close(self._raw(client(cycle.transport)))
            return AFTER
        if cycle.scope["http_version"] == "1.0" and not getattr(cycle, "chunked_encoding", False):
            # This body ends where the connection does: only a reset tells that it was cut.
            raw = self._raw(client(cycle.transport))
            raw.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        return MIDDLE

    def _write(self, transport: Any, words: bytes) -> bool:
        if transport.is_closing():
            return False
        transport.write(words)
        if not transport.get_write_buffer_size():
            self._half_close(self._raw(client(transport)))
        return True

    def _write_past_it(self, transport: Any, words: bytes) -> bool:
        """Behind TLS the session is the loop's; so is what it has not sent yet."""
        if transport.get_extra_info("sslcontext") or transport.get_write_buffer_size():
            return False
        return not transport.is_closing() and self.speak(client(transport), words)

    def stack(self, who: Any) -> Stack:
        """Where a task's code stands: the coroutines, and the thread, that it waits for."""
        if isinstance(who, int):
            return super().stack(who)
        frames = [] if who is None else list(self._frames_of(who, set()))
        calls = [(one.f_code.co_filename, one.f_lineno or 0, one.f_code.co_name) for one in frames]
        while "run_asgi" in [function for _, _, function in calls]:
            del calls[0]  # uvicorn's own way to the application
        return tuple(calls[-CALLS:])

    def rest(self) -> str:
        """The lifespan's shutdown, which comes after the last request; or as for the others."""
        for task in asyncio.all_tasks(self.worker.loop):
            coroutine = task.get_coro()
            if self.worker.is_leaving and getattr(coroutine, "__qualname__", "") == LIFESPAN:
                return f"the lifespan's shutdown, which is at:\n{show(self.stack(task))}"
        return super().rest()

    def _frames_of(self, task: Task, seen: set[Any]) -> Iterator[FrameType]:
        """From the outermost call to the innermost."""
        seen.add(task)
        coroutine: Any = task.get_coro()
        if getattr(coroutine, "cr_running", False):
            yield from self._running(coroutine)
            return
        frames = suspended(coroutine)
        yield from frames
        awaited = unshielded(getattr(task, "_fut_waiter", None))
        if self._threads is None:  # for all tasks at once: there may be hundreds of both
            self._threads = threads_of_futures(besides={self._main, _thread.get_ident()})
        ident = self._threads.get(id(awaited))
        if ident is not None:
            yield from reversed([one for one in self._frames(ident) if is_work(one)])
            return
        child = child_of(frames, awaited, seen)
        if child is not None:
            yield from self._frames_of(child, seen)

    def _running(self, coroutine: Any) -> Iterator[FrameType]:
        """It is what the event loop's thread does now."""
        calls = []
        for frame in self._frames(self._main):
            calls.append(frame)
            if frame is coroutine.cr_frame:
                break
        yield from reversed(calls)


def client(transport: Any) -> Any:
    """What has the descriptor of a connection."""
    return transport.get_extra_info("socket")


def suspended(awaitable: Any) -> list[FrameType]:
    """The frames of what awaits one another, the outermost first."""
    frames = []
    while True:
        for kind, awaits in (("cr", "await"), ("gi", "yieldfrom"), ("ag", "await")):
            frame = getattr(awaitable, f"{kind}_frame", None)
            if frame is not None:
                frames.append(frame)
                awaitable = getattr(awaitable, f"{kind}_{awaits}")
                break
        else:
            return frames


def unshielded(awaited: Any) -> Any:
    """What stands behind asyncio.shield's own future, which is known to that alone."""
    for callback, _ in getattr(awaited, "_callbacks", None) or ():
        if getattr(callback, "__qualname__", "") == "shield.<locals>._outer_done_callback":
            return callback.__closure__[callback.__code__.co_freevars.index("inner")].cell_contents
    return awaited


def child_of(frames: list[FrameType], awaited: Any, seen: set[Any]) -> Task | None:
    """A task that is waited for: itself, or one of several; rather not one that only listens."""
    groups = [awaited] if isinstance(awaited, asyncio.Task) else []
    groups += getattr(awaited, "_children", ())  # asyncio.gather's
    for frame in reversed(frames):
        if frame.f_code is asyncio.wait.__code__:
            groups += frame.f_locals["fs"]
        for value in frame.f_locals.values():
            tasks = getattr(value, "_tasks", None)  # asyncio's and anyio's TaskGroup
            groups += tasks if isinstance(tasks, set) else ()
    living = [one for one in groups if isinstance(one, asyncio.Task) and not one.done()]
    return next((one for one in sorted(living, key=listens) if one not in seen), None)


def listens(task: Task) -> bool:
    """Whether a task waits for what its client says, as a framework's beside the work does."""
    return any(frame.f_code.co_name == "receive" for frame in suspended(task.get_coro()))


def threads_of_futures(besides: set[int]) -> dict[int, int]:
    """By a future's id, the thread in which that runs which a task waits for by this future.

    Whoever runs it (anyio, a ThreadPoolExecutor) has the future at hand, and calls the code.
    """
    threads: dict[int, int] = {}
    for ident, innermost in sys._current_frames().items():
        frame = None if ident in besides else innermost
        while frame is not None:
            for value in list(frame.f_locals.values()):
                for one in (value, *results_of(getattr(value, "future", None))):
                    if isinstance(one, asyncio.Future):
                        threads.setdefault(id(one), ident)
            frame = frame.f_back
    return threads


def is_work(frame: FrameType) -> bool:
    """Whether it is not only a thread's way to what it runs."""
    return frame.f_globals.get("__name__") not in ("threading", "concurrent.futures.thread")


def results_of(source: Any) -> list[Any]:
    """What a concurrent future's result becomes that of, too (asyncio.futures._chain_future)."""
    if not isinstance(source, Future):
        return []
    callbacks = list(source._done_callbacks)  # type: ignore[attr-defined]
    cells = [cell for one in callbacks for cell in getattr(one, "__closure__", None) or ()]
    return [cell.cell_contents for cell in cells]
