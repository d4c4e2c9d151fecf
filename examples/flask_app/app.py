"""A small Flask application with the kinds of request that a shutdown can hurt.

* GET  /                 answered at once
* GET  /slow?seconds=2   answered after so many seconds
* GET  /stream?chunks=5  a body that is sent in pieces (with &pause=0.2 seconds between them)
* GET  /events           server-sent events without end; the application ends them itself
* POST /upload           reads its body in pieces, answers with its size and sha256
"""

import hashlib
import math
import os
import time
from collections.abc import Iterator

from flask import Flask, Response, abort, jsonify, request
from werkzeug.exceptions import HTTPException

import gracefulworker

UPLOAD_LIMIT = 64 * 1024 * 1024
READ_SIZE = 64 * 1024

#: Seconds between two looks at the end of the service, in a stream that has no end of its own.
LOOK = 0.2

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = UPLOAD_LIMIT


def number(name: str, default: float, low: float, high: float, kind: type = float) -> float:
    """The query parameter ``name``, or a 400 that says what is wrong with it."""
    text = request.args.get(name)
    if text is None:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    # nan is not between any two numbers, so it is refused here as well.
    if not low <= value <= high:
        noun = "a whole number" if kind is int else "a number"
        abort(400, f"{name} must be {noun} from {low:g} to {high:g}, not {text[:40]!r}")
    return value


@app.get("/")
def index() -> Response:
    return jsonify(message="hello", pid=os.getpid())


@app.get("/slow")
def slow() -> Response:
    seconds = number("seconds", default=2, low=0, high=60)
    time.sleep(seconds)
    return jsonify(slept=seconds, pid=os.getpid())


@app.get("/stream")
def stream() -> Response:
    chunks = number("chunks", default=5, low=1, high=1000, kind=int)
    pause = number("pause", default=0.2, low=0, high=10)

    def lines() -> Iterator[str]:
        for n in range(1, chunks + 1):
            if n > 1:
                time.sleep(pause)
            yield f"chunk {n} of {chunks}\n"

    return Response(lines(), mimetype="text/plain")


@app.get("/events")
def events() -> Response:
    interval = number("interval", default=1, low=0.1, high=60)

    def messages() -> Iterator[str]:
        yield "retry: 500\n\n"  # ms until the browser connects again: to another instance
        due = time.monotonic()
        # The one line that this route is about. Without it the stream would go on until the
        # deadline, and be cut there.
        while not gracefulworker.draining():
            if time.monotonic() >= due:
                yield f"data: {time.time():.1f}\n\n"
                due += interval
            time.sleep(LOOK)
        yield "event: goodbye\ndata: this instance is going away\n\n"

    return Response(messages(), mimetype="text/event-stream")


@app.post("/upload")
def upload() -> Response:
    size, digest = 0, hashlib.sha256()
    while piece := request.stream.read(READ_SIZE):
        size += len(piece)
        digest.update(piece)
    # Flask leaves it to the server to say where the body ends, so a short one shows only here.
    expected = request.content_length
    if expected is not None and size != expected:
        abort(400, f"the body ended after {size} of {expected} bytes")
    return jsonify(bytes=size, sha256=digest.hexdigest())


@app.errorhandler(HTTPException)
def say_what_is_wrong(error: HTTPException) -> tuple[Response, int]:
    return jsonify(error=error.description), error.code or 500
