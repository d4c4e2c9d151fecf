"""What many tests say."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from harness.clients import Client, Ending, now, request
from harness.gate import Held
from harness.server import Server

#: Options under which few connections are enough to fill a worker: see ``fill``.
FULL: dict[str, Any] = {"threads": 2, "options": ("--worker-connections", "2")}


def fill(server: Server, listener: int = 0) -> list[tuple[Client, Held]]:
    """Bring the only worker to the gate with all the connections that it takes (``FULL``).

    Whoever connects then is let in by the kernel and accepted by nobody: a real queue. (An event
    loop takes all that come; so it is its loop that is held there.)
    """
    if server.is_asgi:
        return [server.hold(f"busy{listener}", "/blocked/{}", listener)]
    count = 1 if "sync" in server.worker else 2
    return [server.hold(f"busy{listener}{n}", listener=listener) for n in range(count)]


def line_up(server: Server, count: int, listener: int = 0) -> list[Client]:
    """Connections with a whole request each, for the queue."""
    queued = [server.connect(listener) for _ in range(count)]
    for client in queued:
        client.send(request())
    return queued


def wait_until(true: Callable[[], bool], what: str, ceiling: float = 10.0) -> None:
    """For the few things that no event announces."""
    limit = now() + ceiling
    while not true():
        assert now() < limit, f"not within {ceiling} s: {what}"
        time.sleep(0.01)


def cross_the_end(server: Server, number: int, gone: Callable[[], object]) -> Ending:
    """How an idle connection ends when a request crosses its close.

    :param number: the signal at which the connection is closed.
    :param gone: waits for the end of the process that had it.
    """
    client = server.keep_alive()
    # Stock's gthread tells its main thread after the response that a connection is idle, and one
    # of which it has not heard is ended like a request's. With one thread that has gone before the
    # next is answered, and is read before the one after that is accepted.
    assert server.threads == 1
    for _ in range(3):
        assert server.fetch().status == 200
    server.signal(number)
    assert client.end().kind == "eof"
    client.send(request())
    gone()
    return client.end()


def assert_clean(server: Server) -> None:
    """Gone with exit status 0, and the last log line says so."""
    server.wait_gone()
    assert server.status == 0, f"exit status {server.status}"
    last = [line for line in server.lines if line.level][-1]
    assert last.message.startswith("stopped: clean after "), f"last line: {last.text}"


def summary(server: Server) -> dict[str, Any]:
    """The figures of the ``stopped:`` line, as floats; None for what it says there was none of."""
    text = server.wait_log("^stopped:").message
    form = (
        r"stopped: (?P<how>\w+) after (?P<after>[\d.]+) s; served (?P<served>\d+) after SIGTERM, "
        r"(?:last new connection \+(?P<last>[\d.]+) s|no new connection), "
        r"told to close (?P<told>\d+), closed idle (?P<idle>\d+), "
        r"from the queue (?P<queue>\d+), cut (?P<cut>\d+)"
        r"(?:, told (?P<websockets>\d+) WebSockets)?"
    )
    found = re.fullmatch(form, text)
    assert found, f"not the summary's form: {text}"
    return {
        key: None if value is None else float(value)
        for key, value in found.groupdict().items()
        if key != "how"
    }
