"""An ASGI application with the first routes of ``apps.py``, for classes that are not ours."""

import asyncio

from apps import gate
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

app = FastAPI()


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
