"""One view for each kind of request that a shutdown can hurt.

* GET  /                 answered at once
* GET  /slow?seconds=2   answered after so many seconds
* GET  /stream?chunks=5  a body that is sent in pieces (with &pause=0.2 seconds between them)
* POST /upload           reads its body in pieces, answers with its size and sha256
"""

import hashlib
import os
import time
from collections.abc import Iterator

from django import forms
from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.views.decorators.http import require_GET, require_POST

READ_SIZE = 64 * 1024


class SlowForm(forms.Form):
    seconds = forms.FloatField(min_value=0, max_value=60)


class StreamForm(forms.Form):
    chunks = forms.IntegerField(min_value=1, max_value=1000)
    pause = forms.FloatField(min_value=0, max_value=10)


@require_GET
def index(request: HttpRequest) -> HttpResponseBase:
    return JsonResponse({"message": "hello", "pid": os.getpid()})


@require_GET
def slow(request: HttpRequest) -> HttpResponseBase:
    form = SlowForm({"seconds": 2, **request.GET.dict()})
    if not form.is_valid():
        return JsonResponse(form.errors, status=400)
    seconds = form.cleaned_data["seconds"]
    time.sleep(seconds)
    return JsonResponse({"slept": seconds, "pid": os.getpid()})


@require_GET
def stream(request: HttpRequest) -> HttpResponseBase:
    form = StreamForm({"chunks": 5, "pause": 0.2, **request.GET.dict()})
    if not form.is_valid():
        return JsonResponse(form.errors, status=400)
    chunks, pause = form.cleaned_data["chunks"], form.cleaned_data["pause"]

    def lines() -> Iterator[str]:
        for n in range(1, chunks + 1):
            if n > 1:
                time.sleep(pause)
            yield f"chunk {n} of {chunks}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


@require_POST
def upload(request: HttpRequest) -> HttpResponseBase:
    size, digest = 0, hashlib.sha256()
    while piece := request.read(READ_SIZE):
        size += len(piece)
        digest.update(piece)
    return JsonResponse({"bytes": size, "sha256": digest.hexdigest()})
