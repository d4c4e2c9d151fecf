"""An application that boots fast, for rehearsals."""

import itertools
import json
import os
import time

import gracefulworker

SPOILT = itertools.count()
MOODS = itertools.count()


def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = environ["wsgi.input"].read() or path.encode()
    if path == "/broken":
        start_response("500 Internal Server Error", [("Content-Length", "0")])
        return []
    if path == "/moody" and next(MOODS) % 8 == 7:
        start_response("503 Service Unavailable", [("Content-Length", "0")])
        return []
    if path == "/raises":
        raise LookupError("no such thing as a till")
    if path == "/api":
        return api(environ, body, start_response)
    if path in LEADS_TO:
        start_response("302 Found", [("Content-Length", "0"), ("Location", LEADS_TO[path])])
        return []
    if path in ("/events", "/endless"):
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return events(lambda: path == "/events" and gracefulworker.draining())
    if path == "/missing":
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    if path == "/time":
        body = b"%d" % time.time()
    if path == "/pid":
        body = b"%d" % os.getpid()
    if path == "/spoilt":
        body = b"right" if next(SPOILT) < 4 else b"wrong"
    if path == "/slow":
        time.sleep(0.3)
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return drops()
    start_response("200 OK", [("Content-Length", str(len(body))), ("Content-Type", "text/plain")])
    return [body]


#: Where those lead to who have not logged in, or come without TLS.
LEADS_TO = {"/account": "/login", "/plain": "https://shop.example/plain"}


def api(environ, body, start_response):
    """Wants a token, and JSON that is called so."""
    status, said = "200 OK", b""
    if environ.get("HTTP_AUTHORIZATION") != "Bearer open sesame":
        status = "401 Unauthorized"
    elif environ.get("CONTENT_TYPE") != "application/json":
        status = "415 Unsupported Media Type"
    elif "item" not in json.loads(body):
        status, said = (
            "422 Unprocessable Content",
            b"<title>422</title>item is missing &amp; wanted\n",
        )
    start_response(status, [("Content-Length", str(len(said)))])
    return [said]


def events(are_over):
    while not are_over():
        yield b"data: tick\n\n"
        time.sleep(0.1)


def drops():
    for number in range(5):
        time.sleep(0.05)
        yield b"drop %d\n" % number
