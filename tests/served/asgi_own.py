"""An ASGI application of coroutines.

``LIFESPAN`` changes its lifespan: "fails" at its start, "hangs" at its end.
"""

import asyncio
import json
import os

from apps import gate, say

import gracefulworker


async def fast(scope, send):
    await whole(send, b"fast")


async def stuck(scope, send):
    await asyncio.Event().wait()


async def in_thread(scope, send, name):
    await asyncio.to_thread(gate, name)
    await whole(send, b"gated")


async def in_group(scope, send, name):
    """As a framework's middleware does: the request's own task waits for another one."""
    await asyncio.gather(in_thread(scope, send, name), asyncio.sleep(0))


async def blocked(scope, send, name):
    gate(name)
    await whole(send, b"gated")


async def background(scope, send, name):
    """Goes on after its response, as Starlette's BackgroundTask does."""
    await whole(send, b"sent")
    await asyncio.to_thread(gate, name)
    say(f"background {name} done")


async def big(scope, send):
    """All at once: the task is over, and most of it not sent yet."""
    await whole(send, bytes(50_000_000))


async def asked(scope, send):
    answers = [gracefulworker.phase().name, gracefulworker.draining()]
    answers.append(scope["state"]["gracefulworker.draining"]())
    await whole(send, json.dumps(answers).encode())


async def events(scope, send, name):
    """Server-sent events without an end of their own."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.to_thread(gate, name)
    while not gracefulworker.draining():
        await send({"type": "http.response.body", "body": b"data: \n\n", "more_body": True})
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": b"data: over\n\n"})


async def whole(send, body):
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def websocket(scope, receive, send):
    """Sends back all; what it is told at the end; and the gate, if its path has a name."""
    await receive()
    if name := scope["path"].partition("/accept/")[2]:
        await asyncio.to_thread(gate, name)
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
    say(f"websocket told {message['code']}")
    if name := scope["path"].partition("/held/")[2]:
        await asyncio.to_thread(gate, name)


async def lifespan(receive, send):
    await receive()
    if os.environ.get("LIFESPAN") == "fails":
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        return
    say("lifespan started")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    say("lifespan ends")
    if os.environ.get("LIFESPAN") == "hangs":
        await hang_at_the_end()
    await send({"type": "lifespan.shutdown.complete"})


async def hang_at_the_end():
    await asyncio.Event().wait()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    else:
        route, *args = scope["path"].strip("/").split("/")
        await ROUTES[route](scope, send, *args)


ROUTES = {
    route.__name__: route
    for route in (fast, stuck, in_thread, in_group, blocked, background, big, asked, events)
}

say(f"app imported in {os.getpid()}")
