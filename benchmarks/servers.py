"""How each server is started and stopped, and what its processes cost.

What may be changed here: servers. Each is set up as its own documentation recommends for a
container, with room for the same number of requests at once, and is stopped by SIGTERM to its first
process alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import psutil

from gracefulworker.tools.engines import STOCK
from gracefulworker.tools.rehearse.configured import without_control_socket
from gracefulworker.tools.rehearse.pods import Place, end_with_parent

ENGINES = tuple(STOCK)
APP, ASGI_APP = "benchmarks.app:app", "benchmarks.asgi:app"
HERE = Path(__file__).parent
GO = shutil.which("go") or "/usr/local/go/bin/go"  # where Go's own installer puts it

#: Seconds that any single event may take; a stock gunicorn needs 30 s for some of its exits.
CEILING = 60.0


@dataclass(frozen=True)
class Server:
    """A command for `Pod.start` or `Running`, and the seconds that a preStop hook sleeps."""

    name: str
    command: tuple[str, ...]
    pre_stop: float = 0.0


def gunicorn(worker: str, *options: str) -> Server:
    """gunicorn with room for many connections, which are kept alive for long."""
    command = [sys.executable, "-m", "gunicorn", "-k", worker, "-b", "{bind}", "--keep-alive", "75"]
    command += ["--worker-connections", "10000", "--backlog", "4096"]
    command += without_control_socket()
    ours = worker.startswith("gracefulworker.")
    app = ASGI_APP if "uvicorn" in worker else APP
    return Server(worker if ours else f"gunicorn {worker}", (*command, *options, app))


def pair(engine: str, *options: str) -> tuple[Server, Server]:
    """Ours and stock."""
    return gunicorn(f"gracefulworker.{engine}", *options), gunicorn(STOCK[engine], *options)


def capacity(engine: str) -> tuple[str, ...]:
    """gunicorn's options for about a dozen slow requests at once."""
    return {"sync": ("--workers", "6"), "gthread": ("--threads", "12")}.get(engine, ())


def field() -> list[Server]:
    """Ours, stock, stock with a sleep, and the others that are installed."""
    found = []
    for engine in ENGINES:
        ours, stock = pair(engine, *capacity(engine))
        asleep = replace(stock, name=f"{stock.name}, preStop 5 s", pre_stop=5.0)
        found += [ours, stock, asleep]
    return [*found, *others()]


def others() -> list[Server]:
    python = (sys.executable, "-m")
    uwsgi = str(Path(sys.executable).with_name("uwsgi"))
    candidates = [
        ("uvicorn", "uvicorn --host {host} --port {port} --timeout-keep-alive 75 --lifespan off"
         f" --log-level warning {ASGI_APP}"),
        ("granian", "granian --interface wsgi --host {host} --port {port} --blocking-threads 12"
         f" --no-log {APP}"),
        ("waitress", f"waitress --listen={{host}}:{{port}} --threads=12 {APP}"),
        ("gevent", "benchmarks.pywsgi {host} {port}"),
    ]  # fmt: skip
    found = [
        Server("gevent.pywsgi" if module == "gevent" else module, (*python, *words.split()))
        for module, words in candidates
        if find_spec(module)
    ]
    if Path(uwsgi).exists():
        words = (
            "--http {host}:{port} --http-keepalive --master --need-app"
            " --threads 12 --disable-logging"
        )
        module, _, name = APP.partition(":")
        command = (uwsgi, *words.split(), "--pythonpath", str(HERE.parent), "--home", sys.prefix)
        # --die-on-term would stop it like SIGKILL.
        graceful = ("--hook-master-start", "unix_signal:15 gracefully_kill_them_all")
        more = (*graceful, "--module", module, "--callable", name)
        found.append(Server("uWSGI", (*command, *more)))
    if Path(GO).exists():
        found.append(Server("Go net/http, Shutdown", (go_binary(), "{host}:{port}")))
    return found


@functools.cache
def go_binary() -> str:
    """Build goserver/; the binary is gone with this process."""
    directory = tempfile.TemporaryDirectory(prefix="benchmarks-go")
    _KEPT.append(directory)
    target = str(Path(directory.name, "goserver"))
    subprocess.run([GO, "build", "-o", target, str(HERE / "goserver" / "main.go")], check=True)
    return target


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def more_files() -> None:
    """Allow this process and its children as many open files as the machine does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Running:
    """A server that answers, on a port of its own; leaving the context ends all its processes."""

    def __init__(self, server: Server, delay: float = 0.0) -> None:
        self.server = server
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.address: tuple[str, int] = listener.getsockname()
        handed_down = "{bind}" in server.command
        if handed_down:
            # A client waits in its queue, so the first answer tells when the server is up.
            listener.listen(4096)
        else:
            listener.close()
        place = Place(self.address, f"fd://{listener.fileno()}")
        began = time.monotonic()
        self.process = subprocess.Popen(
            [*map(place.fill, server.command)],
            pass_fds=[listener.fileno()] if handed_down else [],
            env={**os.environ, "GRACEFUL_DELAY": str(delay)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        listener.close()
        try:
            self._wait_answer()
        except BaseException:
            self.kill()
            raise
        self.boot = time.monotonic() - began  #: seconds from the start to the first answer

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _wait_answer(self) -> None:
        give_up = time.monotonic() + CEILING
        while True:
            try:
                with Client(self.address) as client:
                    client.ask("/")
                    return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"{self.server.name} does not start") from None
                time.sleep(0.01)

    def terminate(self) -> float:
        """Send SIGTERM to the first process, and say when."""
        at = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return at

    def wait_exit(self) -> float:
        """When the first process was gone (to the moment: wait() with a timeout would poll).

        :raises RuntimeError: it is still there after CEILING seconds.
        """
        descriptor = os.pidfd_open(self.process.pid)
        poll = select.poll()  # select() takes no descriptor beyond 1023
        poll.register(descriptor, select.POLLIN)
        try:
            if not poll.poll(CEILING * 1e3):
                raise RuntimeError(f"{self.server.name} does not stop")
            return time.monotonic()
        finally:
            os.close(descriptor)

    def arbiter(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def workers(self) -> list[psutil.Process]:
        return self.arbiter().children()

    def cpu(self) -> float:
        """Seconds of processor time that the workers have used (proc(5): schedstat)."""
        files = (f for w in self.workers() for f in Path(f"/proc/{w.pid}/task").glob("*/schedstat"))
        return sum(int(file.read_text().split()[0]) for file in files) / 1e9


class Client:
    """One connection that asks and reads whole answers with a Content-Length."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, CEILING)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, path: str) -> None:
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())

    def read(self) -> None:
        """:raises OSError: the answer is not whole."""
        data = b""
        while not data.endswith(b"\r\n\r\nok"):
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionError(f"{data!r} is not a whole answer")
            data += more

    def ask(self, path: str) -> None:
        self.send(path)
        self.read()
