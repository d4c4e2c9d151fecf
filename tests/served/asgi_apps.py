"""The routes of ``apps.py`` for ASGI: ``apps:NAME`` is ``asgi_apps:NAME`` here.

Each request runs in a thread, as a framework's synchronous endpoints do; ``hog`` and ``blocked``
run in the event loop, and so hold it.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import apps

import gracefulworker

THREADS = ThreadPoolExecutor(600)


class Body:
    """``wsgi.input``: asks for the next part when it has none, from a thread."""

    def __init__(self, call, receive):
        self.call, self.receive, self.buffer, self.more = call, receive, b"", True

    def read(self, size=-1):
        while self.more and (size < 0 or len(self.buffer) < size):
            message = self.call(self.receive())
            self.buffer += message.get("body", b"")
            self.more = message.get("more_body", False)
        size = len(self.buffer) if size < 0 else size
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data


def in_asgi(app):
    """``app`` behind ASGI, as far as the suite's applications need it."""

    async def wrapped(scope, receive, send):
        if scope["type"] == "lifespan":
            await answer_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await websocket(scope, receive, send)
        elif scope["path"].startswith("/hog/") or scope["path"].startswith("/blocked/"):
            await in_the_loop(scope, send)
        else:
            loop = asyncio.get_running_loop()

            def call(coroutine):
                return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

            await loop.run_in_executor(THREADS, serve, app, scope, call, receive, send)

    return wrapped


def serve(app, scope, call, receive, send):
    state = scope["state"]
    environ = {
        "REQUEST_METHOD": scope["method"],
        "PATH_INFO": scope["path"],
        "QUERY_STRING": scope["query_string"].decode(),
        "wsgi.input": Body(call, receive),
        **{name: value for name, value in state.items() if name.startswith("gracefulworker")},
    }
    started: list = []

    def start_response(status, headers, exc_info=None):
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers]
        started[:] = [{"type": "http.response.start", "status": int(status[:3]), "headers": pairs}]

    def flush():
        if started:
            call(send(started.pop()))

    body = app(environ, start_response)
    whole = b""
    try:
        if isinstance(body, list):
            # In one piece: uvicorn counts no request whose client has left before the last one.
            body, whole = [], b"".join(body)
        for piece in body:
            if piece:
                flush()
                call(send({"type": "http.response.body", "body": piece, "more_body": True}))
        flush()
        call(send({"type": "http.response.body", "body": whole}))
    finally:
        if hasattr(body, "close"):
            body.close()


async def in_the_loop(scope, send):
    _, route, argument = scope["path"].split("/")
    apps.hog({}, lambda *args: None, argument) if route == "hog" else apps.gate(argument)
    body = b"gated" if route == "blocked" else b"done"
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def answer_lifespan(receive, send):
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def websocket(scope, receive, send):
    """Sends back all, and last what it is told; behind the gate if its path has a name."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
    apps.say(f"websocket told {message['code']} {gracefulworker.phase().name}")
    if name := scope["path"].strip("/").partition("/")[2]:
        await asyncio.to_thread(apps.gate, name)


app = in_asgi(apps.app)
after = in_asgi(apps.after)
