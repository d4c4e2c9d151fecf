"""Around the application: which requests it holds, who answers them, and the close at header time.

What may be changed here: what is known of a request between its head and the end of its response.
All of this is on the way of each request, where a Python call more is 0.3 % of the stock worker's
time: count them (`sys.setprofile`) before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gunicorn.http.wsgi import Response

if TYPE_CHECKING:
    from gracefulworker.workers.base import GracefulWorker

#: What is kept of a request that the application holds: the monotonic second of its begin, who
#: handles it (a thread's identifier, or a greenlet), and its response, once the application runs.
Held = list[Any]


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
            if self.worker.stopping():
                self.worker.announce(self)
            Response.send_headers(self)


class Doorman:
    """Stands before the application and makes its response a `ClosingResponse`."""

    def __init__(self, app: Callable[..., Iterable[bytes]], worker: GracefulWorker) -> None:
        self.app = app
        self.worker = worker

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            response = start_response.__self__
        except AttributeError:
            return self.app(environ, start_response)  # not gunicorn's: nothing to change
        # Not HTTP2Response, which has no such header.
        if response.__class__ is Response and response.req in self.worker.held:
            response.__class__ = ClosingResponse
            response.worker = self.worker
            self.worker.held[response.req][2] = response
        return self.app(environ, start_response)


def is_answered(response: Any) -> bool:
    """Whether a response with a length has been sent to its end; of others nobody can tell."""
    if response is None or not response.headers_sent or response.response_length is None:
        return False
    return bool(response.sent >= response.response_length)
