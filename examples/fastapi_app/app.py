"""A small FastAPI application with the kinds of request that a shutdown can hurt.

* GET  /                 answered at once
* GET  /slow?seconds=2   answered after so many seconds; meanwhile the event loop is free
* GET  /report?seconds=2 the same in a plain function, which FastAPI runs in a thread
* GET  /stream?chunks=5  a body that is sent in pieces (with &pause=0.2 seconds between them)
* GET  /events           server-sent events without end; the application ends them itself
* POST /upload           reads its body in pieces, answers with its size and sha256
* POST /orders?seconds=2 answered at once; a background task goes on for so many seconds
* WS   /echo             a WebSocket that sends back what it gets
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, FastAPI, HTTPException, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.websockets import WebSocketDisconnect

import gracefulworker

UPLOAD_LIMIT = 64 * 1024 * 1024

#: Seconds between two looks at the end of the service, in a stream that has no end of its own.
LOOK = 0.2

#: The worker has its handlers put on this one.
log = logging.getLogger("uvicorn.error")

Seconds = Annotated[float, Query(ge=0, le=60, allow_inf_nan=False)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """What is opened here is closed after the last request, and after the last background task."""
    log.info("resources are open")
    yield
    log.info("resources are closed")


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def index() -> dict[str, object]:
    return {"message": "hello", "pid": os.getpid()}


@app.get("/slow")
async def slow(seconds: Seconds = 2) -> dict[str, object]:
    await asyncio.sleep(seconds)
    return {"slept": seconds, "pid": os.getpid()}


@app.get("/report")
def report(seconds: Seconds = 2) -> dict[str, object]:
    time.sleep(seconds)
    return {"slept": seconds, "pid": os.getpid()}


@app.get("/stream")
async def stream(
    chunks: Annotated[int, Query(ge=1, le=1000)] = 5,
    pause: Annotated[float, Query(ge=0, le=10, allow_inf_nan=False)] = 0.2,
) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        for n in range(1, chunks + 1):
            if n > 1:
                await asyncio.sleep(pause)
            yield f"chunk {n} of {chunks}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@app.get("/events")
async def events(
    interval: Annotated[float, Query(ge=0.1, le=60, allow_inf_nan=False)] = 1,
) -> StreamingResponse:
    async def messages() -> AsyncIterator[str]:
        yield "retry: 500\n\n"  # ms until the browser connects again: to another instance
        due = time.monotonic()
        # The one line that this route is about. Without it the stream would go on until the
        # deadline, and be cut there.
        while not gracefulworker.draining():
            if time.monotonic() >= due:
                yield f"data: {time.time():.1f}\n\n"
                due += interval
            await asyncio.sleep(LOOK)
        yield "event: goodbye\ndata: this instance is going away\n\n"

    return StreamingResponse(messages(), media_type="text/event-stream")


@app.post("/upload")
async def upload(request: Request) -> dict[str, object]:
    size, digest = 0, hashlib.sha256()
    async for piece in request.stream():
        size += len(piece)
        if size > UPLOAD_LIMIT:
            raise HTTPException(413, f"more than {UPLOAD_LIMIT} bytes")
        digest.update(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


@app.post("/orders", status_code=202)
async def order(background: BackgroundTasks, seconds: Seconds = 2) -> dict[str, object]:
    background.add_task(confirm, seconds)
    return {"accepted": True}


async def confirm(seconds: float) -> None:
    """After the answer: the exit waits for it as for a request, up to the deadline."""
    await asyncio.sleep(seconds)
    log.info("an order is confirmed")


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(await websocket.receive_text())
    except WebSocketDisconnect as end:
        # 1012, "service restart", at the end of the delay: the client connects again.
        log.info("a WebSocket has ended with %d", end.code)


@app.exception_handler(RequestValidationError)
async def say_what_is_wrong(request: Request, error: RequestValidationError) -> JSONResponse:
    wrong = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
    return JSONResponse({"error": wrong}, status_code=400)
