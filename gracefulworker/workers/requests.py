"""Requests in flight: which the application holds, who answers them, the close at header time.

The application is wrapped for two ends: it can ask `gracefulworker.draining` by its environ, and
probes are answered here and never seen by it.

What may be changed here: what is known of a request between its head and the end of its response.
All of this is on the way of each request, where a Python call more is 0.3 % of the stock worker's
time: count them (`sys.setprofile`) before and after.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.http.wsgi import Response

from gracefulworker import seam
from gracefulworker.settings import Settings
from gracefulworker.shared import probes
from gracefulworker.shared.current import draining
from gracefulworker.shared.page import Page

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

#: What a probe is told, by its method.
Judge = Callable[[str], probes.Answer]


class InFlight:
    """What is kept of a request that the application holds.

    Without an __init__, which would be a Python call more.
    """

    __slots__ = ("began", "handler", "response")

    began: float  #: monotonic seconds
    handler: Any  #: who handles it: a thread's identifier, or a greenlet
    response: seam.Response | None  #: None before its headers are sent


class RequestWorker(Protocol):
    """What is asked here of the worker."""

    cfg: seam.Config
    log: seam.Log
    nr: int
    settings: Settings
    page: Page
    in_flight: dict[seam.Request, InFlight]
    probing: set[seam.Request]

    def stopping(self) -> bool: ...
    def announce(self, response: ClosingResponse) -> None: ...
    def discount_probe(self) -> None: ...


class ClosingResponse(Response):  # type: ignore[misc]
    """gunicorn's Response, which asks the worker at the moment its headers are sent.

    gunicorn decides on keep-alive before the application runs (`force_close`), which is too early
    for a request that is being handled when SIGTERM comes. `should_close` is read again after the
    body, so it is not overridden: the decision is latched here, once.
    """

    worker: RequestWorker
    is_complete = False  #: all of it has been sent

    def send_headers(self) -> None:
        """Response.send_headers: called with each write, returns when sent."""
        if not self.headers_sent:
            worker = self.worker
            entry = worker.in_flight.get(self.req)
            if entry is not None:
                entry.response = self
                if worker.stopping():
                    worker.announce(self)
            Response.send_headers(self)

    def close(self) -> None:
        """Response.close, and a note that the response is complete, for nothing else tells.

        Its three lines are repeated, since a call is what all of this costs.
        """
        if not self.headers_sent:
            self.send_headers()
        if self.chunked:
            util.write_chunk(self.sock, b"")
        self.is_complete = True


def wrap_application(app: Application, worker: RequestWorker) -> Application:
    """Return `app` with what is answered before it, and have this process make our responses.

    wsgi.create looks `Response` up in its module at each request. Giving each response another
    class instead costs 6 % of a request, because CPython then gives up the fast way to its
    attributes. HTTP/2 has a response class of its own.
    """
    wsgi.Response = type("ClosingResponse", (ClosingResponse,), {"worker": worker})

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["gracefulworker.draining"] = draining
        return app(environ, start_response)

    judges = probe_judges(worker)
    if not judges:
        return wrapped
    leave_probes_out(worker, judges)

    def wrapped_with_probes(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        judge = judges.get(environ["PATH_INFO"])
        if judge is not None:
            request = getattr(getattr(start_response, "__self__", None), "req", None)
            if request not in worker.probing:
                worker.discount_probe()
            return answer_probe(judge, environ, start_response)
        return wrapped(environ, start_response)

    return wrapped_with_probes


def unwrap_application() -> None:
    """This process is about to end: gunicorn's module leads to no worker any more."""
    wsgi.Response = Response


def probe_judges(worker: RequestWorker) -> dict[str, Judge]:
    """Who answers the probes at which path."""
    settings, page, log = worker.settings, worker.page, worker.log

    def readiness(method: str) -> probes.Answer:
        state = page.state()
        reason = probes.unready_reason(state, settings.unready)
        if reason is None and settings.readiness_check and method in probes.METHODS:
            reason = probes.objection(settings.readiness_check, log)
        return probes.answer(method, state, reason, "ready")

    def liveness(method: str) -> probes.Answer:
        return probes.answer(method, page.state(), None, "alive")

    judges = {settings.readiness_path: readiness, settings.liveness_path: liveness}
    return {path: judge for path, judge in judges.items() if path is not None}


def answer_probe(judge: Judge, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """A WSGI application, but for the first parameter."""
    response = getattr(start_response, "__self__", None)
    if isinstance(response, Response):
        response.is_probe = True  # for the access log, and for what is served from SIGTERM on
    answer = judge(environ["REQUEST_METHOD"])
    start_response(answer.status, answer.headers)
    return [answer.body] if answer.body else []


def leave_probes_out(worker: RequestWorker, judges: dict[str, Judge]) -> None:
    """Probes are no requests for max_requests and for the access log."""
    cfg, log = worker.cfg, worker.log
    paths = {os.environ.get("SCRIPT_NAME", "") + path for path in judges}
    stock_pre_request, stock_access = cfg.pre_request, log.access

    def pre_request(worker: RequestWorker, request: seam.Request) -> None:
        """All handle_requests call it before they count the request."""
        stock_pre_request(worker, request)
        path = request.path
        if (unquote_to_bytes(path).decode("latin-1") if "%" in path else path) in paths:
            worker.nr -= 1

    def access(response: Any, request: Any, environ: Any, took: Any) -> None:
        """Logger.access."""
        if not getattr(response, "is_probe", False):
            stock_access(response, request, environ, took)

    if cfg.max_requests:
        cfg.set("pre_request", pre_request)
    if not worker.settings.probe_log:
        log.access = access


#: In these a response sends what it has counted as sent already, or does not count (`sendfile`).
WRITING = (Response.write.__code__, Response.sendfile.__code__)


def is_answered(response: seam.Response) -> bool:
    """Whether the client has, or is being sent, the whole response."""
    if response.is_complete:
        return True
    if not response.headers_sent:
        return False
    if response.req.method == "HEAD" or response.status_code in (204, 304):
        return True  # there is no body (RFC 9112 section 6.3)
    return response.response_length is not None and response.sent >= response.response_length


def is_websocket(request: seam.Request) -> bool:
    """Whether the application may have taken the socket over (RFC 6455 section 4.1)."""
    return any(
        name == "UPGRADE" and value.lower() == "websocket" for name, value in request.headers
    )
