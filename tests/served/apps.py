"""The application that the servers of the tests run: plain WSGI, one function per route.

``gate(name)`` is the only way in which a route waits: it tells the test that it is there and stands
still until the test lets it go. Environment variables change what happens at import: ``APP_IMPORT``
(seconds that it takes), ``APP_BROKEN`` (a path: while it exists the import fails), ``APP_THREAD``
(leaves a thread behind that is no daemon), ``APP_ATEXIT`` (a line that is printed at exit),
``APP_SIGTERM`` (a line that is printed at SIGTERM, and all that happens then; "exit": it exits).
"""

import atexit
import contextlib
import json
import os
import resource
import signal
import socket
import threading
import time
from typing import Any

import gracefulworker

worker: Any = None  #: gunicorn's, if a config file has given it


def say(text):
    os.write(2, f"{text}\n".encode())  # in one piece, whoever else writes


if os.path.exists(os.environ.get("APP_BROKEN", "")):
    raise RuntimeError("the application is broken")
if "APP_IMPORT" in os.environ:
    time.sleep(float(os.environ["APP_IMPORT"]))
if "APP_THREAD" in os.environ:
    threading.Thread(target=threading.Event().wait).start()
if "APP_ATEXIT" in os.environ:
    atexit.register(say, os.environ["APP_ATEXIT"])


if "APP_SIGTERM" in os.environ:
    if os.environ["APP_SIGTERM"] == "exit":
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    else:
        signal.signal(signal.SIGTERM, lambda number, frame: say(os.environ["APP_SIGTERM"]))


EARLY = 400_000  # bytes


def gate(name):
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(os.environ["GATE"])
        link.sendall(f"{name} {os.getpid()}\n".encode())
        link.recv(1)


def whole(start_response, body, status="200 OK"):
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def fast(environ, start_response, *args):
    return whole(start_response, b"fast")


def pid(environ, start_response, *args):
    return whole(start_response, str(os.getpid()).encode())


def phase(environ, start_response, *names):
    """What the application can find out, after the gate if it has a name."""
    for name in names:
        gate(name)
    asked = [gracefulworker.phase().name, gracefulworker.draining()]
    asked.append(environ.get("gracefulworker.draining", bool)())
    return whole(start_response, json.dumps(asked).encode())


def until_draining(environ, start_response, name):
    gate(name)
    while not gracefulworker.draining():
        time.sleep(0.01)
    return whole(start_response, gracefulworker.phase().name.encode())


def sleep(environ, start_response, seconds):
    time.sleep(float(seconds))
    return whole(start_response, b"slept")


def big(environ, start_response, *args):
    """In one piece, and more than any buffer between here and a client that does not read."""
    return whole(start_response, bytes(50_000_000))


def upgrades(environ, start_response, name):
    """An ordinary answer, whose application has a word to say on its connection."""
    gate(name)
    start_response("200 OK", [("Connection", "upgrade"), ("Content-Length", "4")])
    return [b"said"]


def fails_at_the_deadline(environ, start_response, milliseconds):
    """Raises so long after its worker's deadline; `worker` is set by the config file."""
    while not worker.is_draining():
        time.sleep(0.01)
    at = worker.deadline() / 1e9 + float(milliseconds) / 1e3
    time.sleep(max(at - time.monotonic(), 0))
    raise RuntimeError("the application failed")


def leaves_child(environ, start_response, *args):
    """A process of the application's own that lives as long as the worker.

    From SIGTERM on it lets gevent run; before, its greenlets would take the worker's requests.
    """
    parent = os.getpid()
    if not os.fork():
        while not gracefulworker.draining():
            signal.sigtimedwait((), 0.01)  # which gevent does not patch
        while os.getppid() == parent:
            time.sleep(0.01)
        os._exit(0)
    return whole(start_response, b"left")


def gated(environ, start_response, name):
    gate(name)
    return whole(start_response, b"gated")


def late_chunk(environ, start_response, name):
    """start_response is called at once; the first chunk, and with it the headers, come later."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    gate(name)
    yield b"late"


def stream(environ, start_response, name, pieces="2"):
    """A chunked response that stops at the gate before every piece but the first."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"piece 0;"
    for number in range(1, int(pieces)):
        gate(name)
        yield b"piece %d;" % number


def upload(environ, start_response, *args):
    """Reads the body in pieces of ten bytes and sends it back."""
    pieces = iter(lambda: environ["wsgi.input"].read(10), b"")
    return whole(start_response, b"".join(pieces))


def early(environ, start_response, name):
    """Answers before it has read the body, with more than a small receive buffer takes."""
    gate(name)
    return whole(start_response, EARLY * b"x", "413 Request Entity Too Large")


def unread(environ, start_response, *args):
    return whole(start_response, b"did not look")


def status(environ, start_response, code, *args):
    if code in ("204", "304"):
        start_response(f"{code} Without Body", [])
        return []
    return whole(start_response, b"status " + code.encode(), f"{code} Some Reason")


def no_length(environ, start_response, *args):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"one", b"", b"two"]


def child(environ, start_response, *args):
    """A process of the application's own, which it ends as multiprocessing does."""
    ready, told = os.pipe()
    forked = os.fork()
    if not forked:
        os.write(told, b"!")
        time.sleep(0.2)  # SIGTERM comes now, and ends a gunicorn worker's child as little as ever
        os._exit(0)
    os.read(ready, 1)
    os.kill(forked, signal.SIGTERM)
    os.waitpid(forked, 0)
    os.close(ready)
    os.close(told)
    return whole(start_response, b"ended")


def hog(environ, start_response, seconds):
    """Keeps the thread, and gevent's hub with it."""
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        pass
    return whole(start_response, b"done")


def websocket(environ, start_response, *names):
    """Takes the socket over, as WebSocket libraries do (without frames), and sends back all.

    It stops at the gate first if that has a name.
    """
    link = switch(environ)
    for name in names:
        gate(name)
    while data := link.recv(100):
        link.sendall(data)
    raise StopIteration  # gunicorn's way out, without a response


def switch(environ):
    link = environ["gunicorn.socket"]
    link.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
    return link


def websocket_thread(environ, start_response, *args):
    """The same as simple-websocket does it: a thread of its own reads, and closes the socket."""
    link, over = switch(environ), threading.Event()

    def read():
        with contextlib.suppress(OSError):
            while data := link.recv(100):
                link.sendall(data)
        over.set()
        link.close()

    threading.Thread(target=read).start()
    over.wait()
    raise StopIteration


def file(environ, start_response, *args):
    """Needs a descriptor."""
    with open(__file__) as opened:
        return whole(start_response, opened.readline().encode())


def starve(environ, start_response, name):
    """No descriptor is free from its end on, until the test lets go."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def hold(link):
        link.recv(1)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        link.close()

    link = socket.socket(socket.AF_UNIX)
    link.connect(os.environ["GATE"])
    link.sendall(f"{name} {os.getpid()}\n".encode())
    threading.Thread(target=hold, args=(link,), daemon=True).start()
    # All below are taken for good; poll() refuses to look at more than so many at once.
    resource.setrlimit(resource.RLIMIT_NOFILE, (6, before[1]))
    return whole(start_response, b"taken")


def broken(environ, start_response, *args):
    raise RuntimeError("the application failed")


def app(environ, start_response):
    route, *args = environ["PATH_INFO"].strip("/").split("/")
    return ROUTES[route](environ, start_response, *args)


ROUTES = {
    route.__name__.replace("_", "-"): route
    for route in (
        fast, pid, phase, until_draining, sleep, gated, late_chunk, stream, upload, unread, status,
        no_length, broken, child, hog, early, websocket, websocket_thread, big, upgrades,
        fails_at_the_deadline, leaves_child, file, starve
    )
}  # fmt: skip

say(f"app imported in {os.getpid()}")


class after:
    """An application whose code runs on after the response: PEP 3333's close()."""

    def __init__(self, environ, start_response):
        route, _, self.name = environ["PATH_INFO"].rpartition("/")
        if route == "/no-length":
            start_response("200 OK", [("Content-Type", "text/plain")])
        else:
            whole(start_response, b"sent")

    def __iter__(self):
        yield b"sent"

    def close(self):
        if self.name == "after":
            self.close_after()

    def close_after(self):
        gate(self.name)
