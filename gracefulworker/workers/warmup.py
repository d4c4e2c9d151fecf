"""`graceful_warmup`: requests that a worker puts to its application before it serves.

Lazy imports, template compilation and connection pools are then paid for by nobody's request, and
an application that cannot answer does not come into service.

What may be changed here: what such a request looks like.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.util import setup_testing_defaults

from gunicorn.http.wsgi import base_environ

from gracefulworker.seam import Config, Log


class WarmupError(Exception):
    """The application is not fit to serve: the rest of a sentence about the request."""


def warm_up(worker: Any, requests: tuple[str, ...]) -> None:
    """Put each request to the worker's application, and log how it was answered.

    :raises WarmupError: an exception, or an answer of 500 and more.
    """
    for request in requests:
        began = time.monotonic()
        status = ask(worker.wsgi, _environ(worker.cfg, request))
        judge(worker.log, request, status, time.monotonic() - began)


def judge(log: Log, request: str, status: str, took: float) -> None:
    """Log how a request was answered.

    :param took: seconds.
    :raises WarmupError: not by an application that is fit to serve.
    """
    code = int(status[:3])
    if code >= 500:
        raise WarmupError(f"GET {request} was answered {status}")
    # A 400 is often Django's ALLOWED_HOSTS: nothing has been warmed then.
    level = logging.INFO if code < 400 else logging.WARNING
    log.log(level, "warm-up: GET %s was answered %s in %.1f s", request, status, took)


def ask(application: Callable[..., Any], environ: dict[str, Any]) -> str:
    """Have one request handled to its end; the status.

    :raises WarmupError: an exception in the application.
    """
    answered: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        answered.append(status)
        return lambda data: None

    try:
        body = application(environ, start_response)
        try:
            for _ in body:
                pass
        finally:
            if hasattr(body, "close"):
                body.close()
    except Exception as error:
        request = environ["RAW_URI"]
        raise WarmupError(f"GET {request} raised {type(error).__name__}: {error}") from error
    return answered[-1] if answered else "500 without start_response"


def _environ(cfg: Config, request: str) -> dict[str, Any]:
    path, _, query = request.partition("?")
    environ: dict[str, Any] = {
        **base_environ(cfg),
        "RAW_URI": request,
        "SCRIPT_NAME": os.environ.get("SCRIPT_NAME", ""),
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "HTTP_USER_AGENT": "gracefulworker-warmup",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.input": io.BytesIO(),
    }
    setup_testing_defaults(environ)  # fills in what is missing
    return environ
