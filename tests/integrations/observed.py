"""What the servers of these tests run: Flask, because agents instrument frameworks."""

import sys
from importlib.util import find_spec

from apps import gate, say  # says that it has been imported
from flask import Flask

app = Flask(__name__)


@app.get("/fast")
def fast():
    return "fast"


@app.get("/gated/<name>")
def gated(name):
    gate(name)
    return "gated"


@app.get("/modules")
def modules():
    """Which of the packages that observe or patch an application have been imported here."""
    return " ".join(sorted({name.partition(".")[0] for name in sys.modules}))


if find_spec("prometheus_client"):
    from prometheus_client import Counter, Gauge

    SERVED = Counter("served", "Requests to /counted")
    ALIVE = Gauge("alive", "Workers", multiprocess_mode="livesum")

    @app.get("/counted")
    def counted():
        SERVED.inc()
        ALIVE.set(1)
        return "counted"


if find_spec("psycopg2"):
    import psycopg2

    @app.get("/database/<int:port>")
    def database(port):
        """Connects to a database that the test plays."""
        try:
            psycopg2.connect(f"host=127.0.0.1 port={port} sslmode=disable gssencmode=disable")
        except psycopg2.OperationalError:
            say("the database has gone")
        return "tried"
