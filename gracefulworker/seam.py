"""The seam to gunicorn: which versions we lean on, and what we use of them.

gunicorn ships no types, so its objects would be Any to us. The Protocols here name what we use of
them, and since when it is there where that is later than the oldest version that we support; an
attribute without a version is in all of them. Nothing checks at run time that gunicorn still has
it: `tests/seam` holds the source of each function that we lean on against the installed one, and
docs/gunicorn-versions.md says what to do when a new one comes out.

What may be changed here: the range, together with tox.ini's matrix and setup.cfg, after the suite
has passed on its oldest and its newest; and what the Protocols name, with its use.
"""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Protocol

import gunicorn

#: From the first to just before the last, as in setup.cfg.
OLDEST = (23, 0)
BEFORE = (28, 0)

#: It never notices that a worker has ended, nor would it in stock (its handle_cld is missing).
BROKEN = (24, 0)

#: gthread's loop has been in pieces that can be overridden since this one.
GTHREAD = (24, 1)


def check_gunicorn() -> None:
    """Stop the start on a gunicorn whose methods we have not been tried on.

    :raises RuntimeError: which gunicorn prints as one line, with exit status 1.
    """
    version = tuple(gunicorn.version_info[:2])
    if not OLDEST <= version < BEFORE or version == BROKEN:
        raise RuntimeError(
            f"gracefulworker supports gunicorn {OLDEST[0]} to {BEFORE[0] - 1} without"
            f" {BROKEN[0]}.{BROKEN[1]}, and this is {gunicorn.__version__}: install one of those,"
            " or a newer gracefulworker"
        )


def check_gthread() -> None:
    """Stop the start of gthread on a gunicorn from before its loop was rewritten.

    :raises RuntimeError: as above.
    """
    if tuple(gunicorn.version_info[:2]) < GTHREAD:
        raise RuntimeError(
            f"gracefulworker.gthread needs gunicorn {GTHREAD[0]}.{GTHREAD[1]} or newer, and this is"
            f" {gunicorn.__version__}: install one, or use gracefulworker.sync or .gevent"
        )


def offers_http2(cfg: Config) -> bool:
    """Whether gunicorn (25 on) is asked to speak HTTP/2, and the package h2 is there."""
    if "h2" not in getattr(cfg, "http_protocols", ()):
        return False
    from gunicorn.http2 import is_http2_available

    return bool(is_http2_available())


#: A client's or a listener's: a tuple, or of a Unix socket its path.
Address = Any


class Log(Protocol):
    """gunicorn.glogging.Logger, or the user's `logger_class`."""

    def log(self, level: int, message: str, *args: object, **kwargs: Any) -> None: ...
    def debug(self, message: str, *args: object, **kwargs: Any) -> None: ...
    def info(self, message: str, *args: object, **kwargs: Any) -> None: ...
    def warning(self, message: str, *args: object, **kwargs: Any) -> None: ...
    def error(self, message: str, *args: object, **kwargs: Any) -> None: ...
    def exception(self, message: str, *args: object, **kwargs: Any) -> None: ...

    #: (response, request, environ, how long it took)
    access: Callable[[Any, Any, Any, Any], None]


class Config(Protocol):
    """gunicorn.config.Config: each setting is an attribute (by `__getattr__`)."""

    settings: dict[str, Any]  #: each one's `default` and `get()`
    address: list[Address]  #: an int for `fd://`
    do_handshake_on_connect: bool
    graceful_timeout: int
    is_ssl: bool
    keepalive: int
    max_requests: int
    pre_fork: Callable[[Any, Any], object]
    child_exit: Callable[[Any, Any], object]
    on_exit: Callable[[Any], object]
    pre_request: Callable[[Any, Any], None]
    when_ready: Callable[[Any], object]
    env: dict[str, str]  #: `-e`
    proxy_protocol: str | bool  #: a string since 24
    preload_app: bool
    proc_name: str  #: the application's name, when nobody gave one
    reload: bool
    reuse_port: bool
    ssl_context: Callable[[Any, Callable[[], ssl.SSLContext]], ssl.SSLContext]
    suppress_ragged_eofs: bool
    threads: int
    workers: int
    worker_class_str: str

    def set(self, name: str, value: object) -> None: ...


class Listener(Protocol):
    """gunicorn.sock.BaseSocket, whose `__getattr__` hands on what it does not know to its socket.

    Under gevent the worker's are gevent.socket.socket (GeventWorker.patch).
    """

    family: int
    type: int
    proto: int
    sock: socket.socket  #: not under gevent
    conf: Config  #: not under gevent
    log: Log  #: not under gevent

    def __init__(self, address: Address, conf: Config, log: Log) -> None: ...
    def __hash__(self) -> int: ...
    def fileno(self) -> int: ...
    def getsockname(self) -> Address: ...
    def accept(self) -> tuple[Any, Address]: ...
    def _accept(self) -> tuple[int, Address]: ...
    def close(self) -> None: ...
    def shutdown(self, how: int, /) -> None: ...
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...
    def setblocking(self, flag: bool, /) -> None: ...
    def get_inheritable(self) -> bool: ...
    def set_inheritable(self, inheritable: bool, /) -> None: ...


class Heartbeat(Protocol):
    """gunicorn.workers.workertmp.WorkerTmp: a file whose time is a worker's last sign of life."""

    def notify(self) -> None: ...
    def last_update(self) -> float: ...
    def close(self) -> None: ...


class Worker(Protocol):
    """gunicorn.workers.base.Worker, as the arbiter sees any worker."""

    age: int  #: counts up from worker to worker
    pid: Any  #: "[booting]" before the fork, and its number afterwards
    ppid: int
    sockets: list[Listener]
    cfg: Config
    tmp: Heartbeat
    aborted: bool  #: has missed its heartbeat, and been told so


class Signals(Protocol):
    """queue.SimpleQueue, the arbiter's SIG_QUEUE (24 on; a list in 23)."""

    def empty(self) -> bool: ...


class Arbiter(Protocol):
    """gunicorn.arbiter.Arbiter: what its main loop calls on itself, and what it looks at.

    `run` looks each handler of a signal up by name (`handle_term`), and the other methods are
    called on the instance too; so a method that is replaced there is what the loop calls.
    """

    WORKERS: dict[int, Worker]  #: by process id, from the fork until it is reaped
    LISTENERS: list[Listener]
    SIG_QUEUE: Signals
    cfg: Config
    log: Log
    app: Any  #: gunicorn.app.base.BaseApplication
    worker_class: type[Any]
    worker_age: int  #: of the youngest worker
    num_workers: int  #: that there shall be
    timeout: int  #: seconds without a heartbeat; 0: for ever
    reexec_pid: int  #: of the arbiter that USR2 has started; else 0
    master_pid: int  #: of the arbiter that has started this one by USR2; else 0
    systemd: bool  #: the listeners are systemd's
    dirty_arbiter_pid: int  #: (25 on) 0: there is none

    # The main loop, in the order of its calls. `run` ends by `halt`, at StopIteration or
    # HaltServer.
    def run(self) -> None: ...
    def manage_workers(self) -> None: ...
    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """24 on."""

    def murder_workers(self) -> None: ...
    def halt(self, reason: str | None = None, exit_status: int = 0) -> None: ...

    # Attributes to a type checker, for they are assigned to with gunicorn 23.
    sleep: Callable[[], None]  #: until 23
    stop: Callable[[bool], None]  #: (graceful=True)

    # Workers
    def spawn_workers(self) -> None: ...
    def spawn_worker(self) -> int | None: ...
    def kill_worker(self, pid: int, sig: int) -> None: ...
    def kill_workers(self, sig: int) -> None: ...
    def reap_workers(self) -> None: ...
    def kill_dirty_arbiter(self, sig: int) -> None:
        """25 on."""

    # Signals
    def signal(self, sig: int, frame: FrameType | None) -> None: ...
    def wakeup(self) -> None: ...
    def reload(self) -> None: ...
    def handle_chld(self, *args: Any) -> None:
        """(sig, frame) in 23, where it is a signal handler; without, called in the loop, 24 on."""

    def handle_hup(self) -> None: ...
    def handle_term(self) -> None: ...
    def handle_int(self) -> None: ...
    def handle_quit(self) -> None: ...
    def handle_ttin(self) -> None: ...
    def handle_ttou(self) -> None: ...
    def handle_usr1(self) -> None: ...
    def handle_usr2(self) -> None: ...
    def handle_winch(self) -> None: ...


class Unreader(Protocol):
    """gunicorn.http.unreader.SocketUnreader: reads a connection, and takes bytes back."""

    sock: Any  #: the connection
    buf: io.BytesIO  #: what was read too far; it stands at its end

    def unread(self, data: bytes) -> None: ...


class Body(Protocol):
    """gunicorn.http.body.Body."""

    #: LengthReader has `length` (bytes left), ChunkedReader `parser` (None after the last chunk).
    reader: Any

    def read(self, size: int | None = None) -> bytes: ...


class Request(Protocol):
    """gunicorn.http.message.Request, or gunicorn.http2.request.HTTP2Request (25 on).

    The latter has no `unreader`, by which they are told apart.
    """

    method: str
    path: str
    headers: Iterable[tuple[str, str]]  #: their names in capitals
    body: Body
    unreader: Unreader


class Response(Protocol):
    """gunicorn.http.wsgi.Response."""

    req: Request
    headers_sent: bool
    is_complete: bool  #: `ClosingResponse`'s
    status_code: int | None
    upgrade: bool  #: the application has said "Connection: upgrade"
    chunked: bool
    response_length: int | None  #: by its Content-Length
    sent: int  #: bytes of the body

    def should_close(self) -> bool: ...
    def force_close(self) -> None: ...
    def send_headers(self) -> None: ...


class RequestParser(Protocol):
    """gunicorn.http.parser.RequestParser of a connection."""

    unreader: Unreader


class CallbackQueue(Protocol):
    """gunicorn.workers.gthread.PollableMethodQueue (24.1 on): calls on the main thread."""

    def defer(self, callback: Callable[..., object], *args: object) -> None: ...
