"""The same for Starlette by itself; it asks the scope, and imports nothing of ours for it."""

import asyncio

from apps import gate
from asgi_app import afterwards, lifespan, until_draining
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route


async def fast(request):
    return PlainTextResponse("fast")


async def gated(request):
    await asyncio.to_thread(gate, request.path_params["name"])
    return PlainTextResponse("gated")


def sync(request):
    gate(request.path_params["name"])
    return PlainTextResponse("sync")


async def background(request):
    task = BackgroundTask(afterwards, request.path_params["name"])
    return PlainTextResponse("accepted", background=task)


async def events(request):
    draining = request.scope["state"]["gracefulworker.draining"]
    return StreamingResponse(until_draining(draining), media_type="text/event-stream")


routes = [
    Route("/fast", fast),
    Route("/gated/{name}", gated),
    Route("/sync/{name}", sync),
    Route("/background/{name}", background),
    Route("/events", events),
]
app = Starlette(routes=routes, lifespan=lifespan)
