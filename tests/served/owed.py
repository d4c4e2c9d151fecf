"""An application that leaves to the interpreter's end what Python promises to do then.

``OWED`` is a directory for what is written. Each route leaves something behind.
"""

import atexit
import csv
import gzip
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from apps import gate, say, whole

WHERE = os.environ["OWED"]
kept: list = []


def path(name):
    return os.path.join(WHERE, name)


class Closing:
    def __del__(self):
        say("user's __del__")


def generator():
    try:
        yield 1
    finally:
        say("user's finally")


def files():
    """Each is open, with a buffer that nobody has flushed."""
    plain = open(path("plain"), "w")
    plain.write("plain")
    table = open(path("table"), "w", newline="")
    csv.writer(table).writerow(["a", "b"])
    packed = gzip.open(path("packed"), "wb")
    packed.write(b"packed")
    started = generator()
    next(started)
    kept.extend([plain, table, packed, Closing(), started, tempfile.TemporaryDirectory(dir=WHERE)])
    return b"files"


def job():
    gate("job")
    with open(path("job"), "a") as done:
        done.write("done\n")


def square(number):
    return number * number


class Pools:
    threads: ThreadPoolExecutor | None = None
    processes = ProcessPoolExecutor(2) if "OWED_PRELOAD" in os.environ else None


if Pools.processes is not None:
    assert list(Pools.processes.map(abs, (-1, 2))) == [1, 2]  # this module is not there yet


def in_executor():
    Pools.threads = Pools.threads or ThreadPoolExecutor(2)
    Pools.threads.submit(job)
    return b"in_executor"


def in_thread():
    threading.Thread(target=job, name="the job").start()
    return b"in_thread"


def in_processes():
    Pools.processes = Pools.processes or ProcessPoolExecutor(2)
    return str(list(Pools.processes.map(square, range(4)))).encode()


def in_process():
    Pools.processes = Pools.processes or ProcessPoolExecutor(2)
    Pools.processes.submit(job)
    return b"in_process"


def hang():
    time.sleep(60)


def hanging_atexit():
    atexit.register(hang)
    return b"hanging_atexit"


class Hanging:
    def __del__(self, sleep=time.sleep):
        sleep(60)


def hanging_del():
    kept.append(Hanging())
    return b"hanging_del"


def fork():
    if not os.fork():
        sys.exit(0)
    return b"fork"


def leave():
    sys.exit("this request's own")


ROUTES = {
    "/files": files,
    "/in_executor": in_executor,
    "/in_thread": in_thread,
    "/in_processes": in_processes,
    "/in_process": in_process,
    "/hanging_atexit": hanging_atexit,
    "/hanging_del": hanging_del,
    "/fork": fork,
    "/leave": leave,
}


def app(environ, start_response):
    route = environ["PATH_INFO"]
    if route.startswith("/gated/"):
        gate(route.rpartition("/")[2])
        return whole(start_response, b"gated")
    return whole(start_response, ROUTES.get(route, lambda: b"ok")())
