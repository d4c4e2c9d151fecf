"""The same as app.py for ASGI.

What may be changed here: what is changed there.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import parse_qs

HEADERS = [(b"content-type", b"text/plain")]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    path = scope["path"]
    if path == "/slow":
        await asyncio.sleep(float(parse_qs(scope["query_string"].decode())["seconds"][0]))
    elif path == "/upload":
        while (await receive()).get("more_body"):
            pass
    elif path == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        for number in range(5):
            await asyncio.sleep(0.05)
            body = b"drop %d\n" % number
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = [*HEADERS, (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def lifespan(receive: Any, send: Any) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
