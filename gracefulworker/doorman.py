"""Around the application: which requests it holds, who answers them, and the close at header time.

What may be changed here: what is known of a request between its head and the end of its response.
All of this is on the way of each request, where a Python call more is 0.3 % of the stock worker's
time: count them (`sys.setprofile`) before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gunicorn.http import wsgi
from gunicorn.http.wsgi import Response

from gracefulworker.presence import draining

if TYPE_CHECKING:
    from gracefulworker.workers.base import GracefulWorker

#: What is kept of a request that the application holds: the monotonic second of its begin, who
#: handles it (a thread's identifier, or a greenlet), and its response, once its headers are sent.
Held = list[Any]

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


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
            worker = self.worker
            held = worker.held.get(self.req)
            if held is not None:
                held[2] = self
                if worker.stopping():
                    worker.announce(self)
            Response.send_headers(self)


def stand_before(app: Application, worker: GracefulWorker) -> Application:
    """Return `app` behind our door, and have this process make responses of our class.

    wsgi.create looks `Response` up in its module at each request (gunicorn 0.17 on). Giving each
    response another class instead costs 6 % of a request, because CPython then gives up the fast
    way to its attributes. HTTP/2 has a response class of its own.
    """
    wsgi.Response = type("ClosingResponse", (ClosingResponse,), {"worker": worker})

    def door(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["gracefulworker.draining"] = draining
        return app(environ, start_response)

    return door


def is_answered(response: Any) -> bool:
    """Whether a response with a length has been sent to its end; of others nobody can tell."""
    if response is None or not response.headers_sent or response.response_length is None:
        return False
    return bool(response.sent >= response.response_length)
