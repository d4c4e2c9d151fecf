"""An application that owes something to its exit: each route leaves one thing behind.

``EXITS`` is a directory, in which what was done by the end is found.
"""

import atexit
import gzip
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

HERE = os.environ["EXITS"]
kept = {}


def path(name):
    return os.path.join(HERE, name)


def job():
    time.sleep(0.5)
    with open(path("job"), "w") as file:
        file.write("done")


def files():
    kept["text"] = open(path("text"), "w")
    kept["text"].write("buffered")
    kept["packed"] = gzip.open(path("packed"), "wt")
    kept["packed"].write("packed")
    kept["passing"] = tempfile.NamedTemporaryFile(dir=HERE, prefix="passing")


def pool():
    kept["pool"] = ProcessPoolExecutor(1)
    assert kept["pool"].submit(abs, -1).result() == 1


def jobs():
    kept["threads"] = ThreadPoolExecutor(1)
    kept["threads"].submit(job)


def hang():
    time.sleep(60)


class Hang:
    def __del__(self, sleep=time.sleep):
        sleep(60)


def app(environ, start_response):
    match environ["PATH_INFO"]:
        case "/files":
            files()
        case "/pool":
            pool()
        case "/jobs":
            jobs()
        case "/endless":
            threading.Thread(target=threading.Event().wait, name="endless").start()
        case "/atexit":
            atexit.register(hang)
        case "/del":
            kept["hang"] = Hang()
        case "/exit":
            sys.exit("enough")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


os.write(2, f"app imported in {os.getpid()}\n".encode())
