"""Around the application: which requests it holds, who answers them, and the close at header time.

What may be changed here: what is known of a request between its head and the end of its response.
Everything in this file is on the way of each request: mind what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

from gunicorn.http.wsgi import Response

if TYPE_CHECKING:
    from gracefulworker.workers.base import GracefulWorker


class InFlight:
    """The requests that the application holds, and who answers them.

    All is kept by ``id(request)``: each request lives as long as it is here. Single operations on
    a dict are atomic, so there is no lock.

    :param gauge: is told how many there are, after each change.
    :param who: tells who handles a request: a thread's identifier, or a greenlet.
    """

    def __init__(self, gauge: Callable[[int], None], who: Callable[[], Any]) -> None:
        self._gauge = gauge
        self._who = who
        self._open: dict[int, tuple[Any, float, Any]] = {}
        self._answered: dict[int, tuple[Any, float, Any]] = {}
        self._claims: dict[int, object] = {}

    def enter(self, request: Any) -> None:
        self._open[id(request)] = (request, monotonic(), self._who())
        self._gauge(len(self._open))

    def claim(self, request: Any, by: object) -> object:
        """Who answers `request`: `by`, or whoever came first (dict.setdefault is atomic)."""
        return self._claims.setdefault(id(request), by)

    def answered(self, request: Any) -> None:
        """Its last byte has been sent; its code may run on."""
        entry = self._open.pop(id(request), None)
        if entry is not None:
            self._answered[id(request)] = entry
            self._gauge(len(self._open))

    def leave(self, request: Any) -> None:
        """Its code has ended."""
        self.answered(request)
        del self._answered[id(request)]
        self._claims.pop(id(request), None)

    def open(self) -> list[tuple[Any, float, Any]]:
        """Request, monotonic second of its begin, and who handles it; oldest first."""
        return list(self._open.values())

    def running_on(self) -> list[tuple[Any, float, Any]]:
        """The same of those whose code runs on after their response."""
        return list(self._answered.values())


class ClosingResponse(Response):  # type: ignore[misc]
    """gunicorn's Response, which asks the worker at the moment its headers are sent.

    gunicorn decides on keep-alive before the application runs (`force_close`), which is too early
    for a request that is being handled when SIGTERM comes. `should_close` is read again after the
    body, so it is not overridden: the decision is latched here, once.
    """

    worker: GracefulWorker

    def send_headers(self) -> None:
        """Response.send_headers (gunicorn 0.9 on): called with each write, returns when sent."""
        if not self.headers_sent:
            self.worker.announce(self)
        super().send_headers()

    def close(self) -> None:
        """Response.close, after which the client has all of it."""
        super().close()
        self.worker.in_flight.answered(self.req)


class Doorman:
    """Stands before the application and makes its response a `ClosingResponse`."""

    def __init__(self, app: Callable[..., Iterable[bytes]], worker: GracefulWorker) -> None:
        self.app = app
        self.worker = worker

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        response = getattr(start_response, "__self__", None)
        # Not HTTP2Response, which has no such header.
        if response is not None and type(response) is Response:
            response.__class__ = ClosingResponse
            response.worker = self.worker
        return self.app(environ, start_response)
