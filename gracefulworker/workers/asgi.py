"""What is put before an ASGI application: probes, and the requests that warm it up.

What may be changed here: how they look in ASGI (https://asgi.readthedocs.io/en/latest/specs/).
What probes are told is in `gracefulworker.shared.probes`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable
from typing import Any, Protocol
from urllib.parse import unquote

from gracefulworker.seam import Log
from gracefulworker.shared.current import draining
from gracefulworker.workers import warmup
from gracefulworker.workers.requests import Judge
from gracefulworker.workers.uvicorn_protocols import ASGI, Message, Scope
from gracefulworker.workers.warmup import WarmupError

#: In `scope["state"]`: `gracefulworker.draining`, as WSGI's environ has it.
#:
#: The specification lets a server give the lifespan a namespace, of which each later scope has a
#: copy; so it is there for the lifespan as well, and costs no request anything. The values of
#: `scope["extensions"]` would be plain data.
STATE = {"gracefulworker.draining": draining}


class ProbedWorker(Protocol):
    """What is asked here of the worker."""

    def is_probed(self, cycle: Any) -> None: ...


def answer_probes(app: ASGI, worker: ProbedWorker, judges: dict[str, Judge]) -> ASGI:
    """Return `app` with what is answered before it.

    :param judges: by the path of a scope.
    """

    def wrapped(scope: Scope, receive: Any, send: Any) -> Awaitable[None]:
        judge = judges.get(scope["path"]) if scope["type"] == "http" else None
        if judge is None:
            return app(scope, receive, send)
        worker.is_probed(getattr(send, "__self__", None))
        return answer_probe(judge, scope, send)

    return wrapped


async def answer_probe(judge: Judge, scope: Scope, send: Any) -> None:
    answer = judge(scope["method"])
    headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
    status = int(answer.status.partition(" ")[0])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def warm_up(app: ASGI, state: dict[str, Any], requests: tuple[str, ...], log: Log) -> None:
    """Put each request to the application, and log how it was answered.

    :param state: the lifespan's, which is over its startup.
    :raises WarmupError: an exception, or an answer of 500 and more.
    """
    for request in requests:
        began = time.monotonic()
        status = await ask(app, state, request)
        warmup.judge(log, request, status, time.monotonic() - began)


async def ask(app: ASGI, state: dict[str, Any], request: str) -> str:
    """Have one request handled to its end; the status.

    :raises WarmupError: an exception in the application.
    """
    answered: list[str] = []
    parts: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answered.append(str(message["status"]))

    path, _, query = request.partition("?")
    root_path = os.environ.get("SCRIPT_NAME", "")
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": root_path + unquote(path),
        "raw_path": (root_path + path).encode(),
        "query_string": query.encode(),
        "root_path": root_path,
        "headers": [(b"host", b"localhost"), (b"user-agent", b"gracefulworker-warmup")],
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 80),
        "state": state.copy(),
    }
    try:
        await app(scope, receive, send)
    except Exception as error:
        raise WarmupError(f"GET {request} raised {type(error).__name__}: {error}") from error
    return answered[-1] if answered else "500 without a response"
