"""An application that boots fast, for rehearsals."""

import itertools
import os
import time

SPOILT = itertools.count()


def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = environ["wsgi.input"].read() or path.encode()
    if path == "/broken":
        start_response("500 Internal Server Error", [("Content-Length", "0")])
        return []
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


def drops():
    for number in range(5):
        time.sleep(0.05)
        yield b"drop %d\n" % number
