"""A FastAPI application with the first routes of ``apps.py``, and what only a framework has."""

import asyncio
from contextlib import asynccontextmanager

from apps import gate, say
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse

import gracefulworker


@asynccontextmanager
async def lifespan(app):
    say("lifespan begins")
    yield
    say(f"lifespan ends {gracefulworker.phase().name}")


app = FastAPI(lifespan=lifespan)


@app.get("/fast", response_class=PlainTextResponse)
async def fast():
    return "fast"


@app.get("/gated/{name}", response_class=PlainTextResponse)
async def gated(name: str):
    await asyncio.to_thread(gate, name)
    return "gated"


@app.get("/blocked/{name}", response_class=PlainTextResponse)
async def blocked(name: str):
    gate(name)  # and with it the event loop
    return "blocked"


@app.get("/sync/{name}", response_class=PlainTextResponse)
def sync(name: str):
    gate(name)  # in a thread of the framework's
    return "sync"


@app.get("/background/{name}", response_class=PlainTextResponse)
async def background(name: str, tasks: BackgroundTasks):
    tasks.add_task(afterwards, name)
    return "accepted"


def afterwards(name):
    gate(name)
    say(f"background task done {gracefulworker.phase().name}")


@app.get("/events")
async def events():
    return StreamingResponse(
        until_draining(gracefulworker.draining), media_type="text/event-stream"
    )


async def until_draining(draining):
    yield "data: hello\n\n"
    while not draining():
        await asyncio.sleep(0.01)
    yield "data: goodbye\n\n"
