"""A WSGI application that costs next to nothing, so that what is measured is the server.

What may be changed here: routes, and then asgi.py and goserver/ as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "2")]


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/slow":
        time.sleep(float(parse_qs(environ["QUERY_STRING"])["seconds"][0]))
    elif path == "/upload":
        while environ["wsgi.input"].read(65536):
            pass
    elif path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return drops()
    start_response("200 OK", HEADERS)
    return [b"ok"]


def drops() -> Iterator[bytes]:
    for number in range(5):
        time.sleep(0.05)
        yield b"drop %d\n" % number
