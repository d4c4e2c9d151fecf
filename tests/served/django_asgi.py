"""The same for Django behind ASGI, in one file; Django knows no background task and no lifespan."""

import asyncio

from apps import gate
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

import gracefulworker

settings.configure(ALLOWED_HOSTS=["test"], ROOT_URLCONF=__name__, SECRET_KEY="of a test")


async def fast(request):
    return HttpResponse("fast")


async def gated(request, name):
    await asyncio.to_thread(gate, name)
    return HttpResponse("gated")


def sync(request, name):
    gate(name)
    return HttpResponse("sync")


async def events(request):
    async def messages():
        yield "data: hello\n\n"
        while not gracefulworker.draining():
            await asyncio.sleep(0.01)
        yield "data: goodbye\n\n"

    return StreamingHttpResponse(messages(), content_type="text/event-stream")


urlpatterns = [
    path("fast", fast),
    path("gated/<name>", gated),
    path("sync/<name>", sync),
    path("events", events),
]
app = get_asgi_application()
