"""A real gunicorn, real sockets, and a name for every way in which a request can end.

What a test does here: start a ``Server`` (one gunicorn process tree in a session of its own), let
requests stop at its ``gate``, send a signal, wait for an *event*, and look at the ``Ending`` that
each client got. Events are a line of the server's log (``wait_log``), a request that has reached
the gate (``gate.entered``), bytes or an end of file at a client, and the end of the whole process
tree (``wait_gone``). Time is never waited for, it is only a ceiling: whatever does not happen
within ``CEILING`` fails the test with the server's whole log.

What may be changed: new routes in ``apps.py``, new keyword arguments of ``Server`` that become
gunicorn options, new helpers at the end of this file. What must stay as it is: listeners are bound
here and handed down (no port race, and a client can connect before the first worker is up); our
copy of them is closed as soon as the server has its own (a listener that lives on in the test
would turn every refusal into a hang); the pipe that carries the log is held by the arbiter and by
every worker, so its end of file, and nothing else, means that all of them are gone; and every
server is killed, reaped and its pipe read to the end, whatever the test did.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

CEILING = 15.0  # seconds; the longest that any single event may take
HERE = Path(__file__).parent

#: gunicorn has a control socket since 25; each server would bind the same one.
OFFERS_CONTROL = find_spec("gunicorn.ctl") is not None

now = time.monotonic


# -- endings ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """How one attempt ended, and when.

    ``kind`` is one of: ``response`` (whole), ``truncated`` (a response that stopped short),
    ``eof`` (closed cleanly without a byte: a client may send its request again), ``reset``,
    ``refused``, ``timeout``, and ``connected`` for an attempt that only knocked.
    """

    kind: str
    began: float
    at: float
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def took(self) -> float:
        return self.at - self.began

    @property
    def closes(self) -> bool:
        """The response announces that the connection ends with it."""
        return self.header("connection").lower() == "close"

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def __str__(self) -> str:
        return f"{self.kind} {self.status or ''} {self.body[:40]!r} after {self.took:.3f} s"


class _Stop(Exception):
    """The connection gave no more bytes; the argument is the kind of ending."""


# -- clients ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Address:
    family: int
    target: tuple | str | bytes

    @property
    def path(self) -> Path:
        return Path(str(self.target))

    @property
    def bind(self) -> str:
        """As gunicorn's option -b has it."""
        if self.family == socket.AF_UNIX:
            return f"unix:{self.target}"
        return "{}:{}".format(*self.target)


def request(
    path: str = "/fast",
    method: str = "GET",
    headers: Iterable[str] = (),
    body: bytes = b"",
    version: str = "1.1",
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: test", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Client:
    """One connection. It is never closed behind the test's back, least of all after a response."""

    def __init__(self, address: Address, timeout: float = CEILING) -> None:
        self.buffer = b""  # what has come and was not asked for yet
        self.raw = b""  # all that ever came
        self.broken = False
        self.opened = now()
        self.socket = socket.socket(address.family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(address.target)
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except (ConnectionResetError, BrokenPipeError):
            self.broken = True  # what came before it may still be read: ending() tells the rest

    def ask(self, path: str = "/fast", method: str = "GET", **parts) -> Ending:
        self.send(request(path, method, **parts))
        return self.ending(method)

    def ending(self, method: str = "GET", timeout: float | None = None) -> Ending:
        """Read one response, or find out why there is none."""
        began, status, headers, body = now(), 0, (), b""
        if timeout is not None:
            self.socket.settimeout(timeout)
        try:
            while status < 200:  # an interim response (100 Continue) is not the answer
                head = self._until(b"\r\n\r\n")
                first, *rest = head.decode("latin-1").split("\r\n")
                status = int(first.split()[1])
                headers = tuple((k, v.strip()) for k, v in (x.split(":", 1) for x in rest if x))
            fields = {key.lower(): value for key, value in headers}
            if method == "HEAD" or status in (204, 304):
                pass
            elif fields.get("transfer-encoding", "").lower() == "chunked":
                while size := int(self._until(b"\r\n"), 16):
                    body += self._take(size)
                    self._until(b"\r\n")
                self._until(b"\r\n")
            elif "content-length" in fields:
                body = self._take(int(fields["content-length"]))
            else:
                body, self.buffer = self._rest(), b""
            kind = "response"
        except _Stop as stop:
            kind = str(stop)
            if kind == "eof" and self._was_reset():
                kind = "reset"
            elif kind == "eof" and (status or self.buffer):
                kind = "truncated"
        return Ending(kind, began, now(), status, headers, body)

    def end(self, timeout: float | None = None) -> Ending:
        """Read to the end of the connection: ``eof``, ``reset`` or ``timeout``, and what came."""
        began = now()
        if timeout is not None:
            self.socket.settimeout(timeout)
        try:
            self._rest()
            kind = "reset" if self._was_reset() else "eof"
        except _Stop as stop:
            kind = str(stop)
        body, self.buffer = self.buffer, b""
        return Ending(kind, began, now(), body=body)

    def _was_reset(self) -> bool:
        """A reset that follows a FIN shows in no recv(), which goes on to say end of file."""
        return self.broken or self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def _more(self) -> None:
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            raise _Stop("timeout") from None
        except ConnectionResetError:
            raise _Stop("reset") from None
        if not data:
            raise _Stop("eof")
        self.buffer += data
        self.raw += data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            self._more()
        part, _, self.buffer = self.buffer.partition(mark)
        return part

    def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self._more()
        part, self.buffer = self.buffer[:size], self.buffer[size:]
        return part

    def _rest(self) -> bytes:
        try:
            while True:
                self._more()
        except _Stop as stop:
            if str(stop) != "eof":
                raise
        return self.buffer


def knock(address: Address, timeout: float = CEILING) -> Ending:
    """Connect and hang up: ``connected``, ``refused``, ``reset`` or ``timeout``."""
    began = now()
    try:
        Client(address, timeout).close()
        kind = "connected"
    except OSError as error:
        kind = _why(error)
    return Ending(kind, began, now())


def fetch(address: Address, path: str = "/fast", timeout: float = CEILING, **parts) -> Ending:
    """One request on a connection of its own, read to the response's end."""
    began = now()
    try:
        client = Client(address, timeout)
    except OSError as error:
        return Ending(_why(error), began, now())
    with contextlib.closing(client):
        end = client.ask(path, **parts)
    return Ending(end.kind, began, end.at, end.status, end.headers, end.body)


def _why(error: OSError) -> str:
    if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):  # the latter: unix path gone
        return "refused"
    if isinstance(error, ConnectionResetError):
        return "reset"
    if isinstance(error, TimeoutError):
        return "timeout"
    raise error


def ends(clients: Sequence[Client], timeout: float = CEILING) -> list[Ending]:
    """Watch many idle connections at once, so that each end carries its own time.

    A connection on which bytes come instead is reported as ``truncated`` with these bytes.
    """
    began, found = now(), {}
    with selectors.DefaultSelector() as poll:
        for client in clients:
            poll.register(client.socket, selectors.EVENT_READ, client)
        while len(found) < len(clients) and (left := began + timeout - now()) > 0:
            for key, _ in poll.select(left):
                try:
                    data = key.fileobj.recv(65536)
                    kind = "truncated" if data else "eof"
                except ConnectionResetError:
                    data, kind = b"", "reset"
                found[key.data] = Ending(kind, began, now(), body=data)
                poll.unregister(key.fileobj)
    return [found.get(client, Ending("timeout", began, now())) for client in clients]


# -- the storm -------------------------------------------------------------------------------------


class Storm:
    """Closed loops that ask without a pause, each request on a new connection.

    Each loop goes on until it has been turned away ``PATIENCE`` times, so that an answer after a
    refusal would be seen. Every second client says ``Connection: close`` itself, as simple clients
    do; the others leave the end to the server and read up to it when it is announced.
    """

    PATIENCE = 3

    def __init__(self, address: Address, clients: int, path: str = "/fast") -> None:
        self.address, self.path = address, path
        self.endings: list[list[Ending]] = [[] for _ in range(clients)]
        self._served = 0
        self._change = threading.Condition()
        self._halt = False
        self._threads = [
            threading.Thread(target=self._loop, args=(n,), daemon=True) for n in range(clients)
        ]

    def __enter__(self) -> Storm:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._halt = True
        for thread in self._threads:
            thread.join()

    def _loop(self, number: int) -> None:
        mine, own = self.endings[number], ("Connection: close",) if number % 2 else ()
        failed = 0
        while failed < self.PATIENCE and not self._halt:
            end = self._one(own)
            mine.append(end)
            if end.kind == "response":
                with self._change:
                    self._served += 1
                    self._change.notify_all()
            else:
                failed += 1

    def _one(self, own: tuple[str, ...]) -> Ending:
        began = now()
        try:
            client = Client(self.address)
        except OSError as error:
            return Ending(_why(error), began, now())
        with contextlib.closing(client):
            end = client.ask(self.path, headers=own)
            if end.kind == "response" and end.closes:
                after = client.end()
                if after.kind != "eof" or after.body:
                    return Ending("after the response: " + after.kind, began, after.at)
        return end

    def wait_served(self, more: int) -> None:
        """Wait until this many further requests have been answered."""
        with self._change:
            goal = self._served + more
            if not self._change.wait_for(lambda: self._served >= goal, CEILING):
                raise AssertionError(f"the storm stands still: {self.census()}")

    def wait_over(self) -> None:
        """Wait until every loop has been turned away for good."""
        for thread in self._threads:
            thread.join(CEILING)
            assert not thread.is_alive(), "the storm goes on"

    def census(self) -> dict[str, int]:
        kinds = [end.kind for mine in self.endings for end in mine]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    @property
    def losses(self) -> list[Ending]:
        """Everything that is neither an answer nor a refusal."""
        return [e for mine in self.endings for e in mine if e.kind not in ("response", "refused")]

    @property
    def out_of_order(self) -> list[Ending]:
        """Answers that one client got after it had been turned away."""
        late = []
        for mine in self.endings:
            kinds = [end.kind for end in mine]
            if "refused" in kinds:
                late += [e for e in mine[kinds.index("refused") :] if e.kind == "response"]
        return late


# -- the gate --------------------------------------------------------------------------------------


class Held:
    """A request that stands at the gate inside the application."""

    def __init__(self, link: socket.socket, name: str, pid: int) -> None:
        self.link, self.name, self.pid = link, name, pid

    def release(self) -> float:
        """Let it go on; returns the time of it."""
        at = now()
        with contextlib.suppress(OSError):
            self.link.sendall(b"g")
        self.link.close()
        return at


class Gate:
    """Where ``apps.gate(name)`` announces itself and waits (a socket, so that gevent can yield)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(128)
        self._held: list[Held] = []
        self._waiting: list[Held] = []

    def entered(self, name: str, timeout: float = CEILING) -> Held:
        """The next request at the gate with this name, as soon as it is there."""
        limit = now() + timeout
        while True:
            for held in self._waiting:
                if held.name == name:
                    self._waiting.remove(held)
                    return held
            self.listener.settimeout(max(0.01, limit - now()))
            try:
                link, _ = self.listener.accept()
            except TimeoutError:
                raise AssertionError(f"no request {name!r} reached the gate") from None
            with link.makefile("rb") as lines:
                who, pid = lines.readline().split()
            self._held.append(Held(link, who.decode(), int(pid)))
            self._waiting.append(self._held[-1])

    def close(self) -> None:
        for held in self._held:
            held.link.close()
        self.listener.close()


# -- stalls ----------------------------------------------------------------------------------------


class Stalls(threading.Thread):
    """Measures for how long the whole machine stood still, so that a bound means the server.

    A virtual machine is taken off its processor for 50 ms and more at times; a bound of 100 ms
    says nothing about the server then. So a thread sleeps 5 ms at a time and notes by how much it
    overslept. It asks for so little that other work on the machine hardly delays it: a server
    that needs too much of the processor is not excused.
    """

    STEP = 0.005

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._found: list[tuple[float, float]] = []
        self._over = threading.Event()

    def run(self) -> None:
        last = now()
        while not self._over.wait(self.STEP):
            at = now()
            if (late := at - last - self.STEP) > self.STEP:
                self._found.append((at, late))
            last = at

    def between(self, start: float, end: float) -> float:
        return sum(late for at, late in list(self._found) if at > start and at - late < end)

    def stop(self) -> None:
        self._over.set()
        self.join()


#: A control socket's name, in the server's directory.
CONTROL = "gunicorn.ctl"

STALLS: Stalls | None = None  # conftest.py keeps one running


def assert_within(bound: float, at: float, since: float, what: str) -> None:
    """``at`` is no later than ``bound`` seconds after ``since``, the machine's stalls apart."""
    stalls = STALLS.between(since, at) if STALLS else 0.0
    assert at - since <= bound + stalls, (
        f"{what}: {at - since:.3f} s, allowed {bound:.3f} s, and {stalls:.3f} s of stalls"
    )


# -- the server ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    at: float
    text: str

    @property
    def level(self) -> str:
        found = re.match(r"\[[^]]*\] \[\d+\] \[(\w+)\] ", self.text)
        return found.group(1) if found else ""

    @property
    def message(self) -> str:
        return re.sub(r"^\[[^]]*\] \[\d+\] \[\w+\] ", "", self.text)


@dataclass
class Server:
    """``gunicorn -k worker`` with listeners made here; see the module's docstring.

    ``listen`` names what is bound and handed down as ``-b fd://N``: ``tcp``, ``every`` (TCP on
    every interface), ``tcp6``, ``unix``, ``abstract``; ``path`` is a unix socket that gunicorn
    binds itself, and ``port`` a TCP port (for ``--reuse-port``). ``delay`` becomes GRACEFUL_DELAY.
    ``config`` is the text of a config file. With ``ready`` the start returns once all workers have
    imported the application and one request was answered.
    """

    worker: str
    app: str = "apps:app"
    listen: Sequence[str] = ("tcp",)
    workers: int = 1
    threads: int = 4  # gthread only
    delay: float | None = None
    options: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict)
    config: str | None = None
    ready: bool = True

    def __post_init__(self) -> None:
        self.lines: list[Line] = []
        self.gone_at: float | None = None
        self.term_at = 0.0
        self._change = threading.Condition()
        self._clients: list[Client] = []
        self._stack = contextlib.ExitStack()

    # starting and ending

    def start(self) -> Server:
        self._launch()
        if self.ready:
            self.wait_log(r"^app imported", count=self.workers)
            client = Client(self.addresses[0])
            with contextlib.closing(client):
                end = client.ask(headers=("Connection: close",))
                assert end.kind == "response", f"not ready: {end}"
                client.end()  # now the worker holds nothing any more: it may be killed
        return self

    def _launch(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="gw-"))
        self._stack.callback(shutil.rmtree, self.dir, ignore_errors=True)
        self.gate = Gate(self.dir / "gate")
        self._stack.callback(self.gate.close)
        command = [sys.executable, "-m", "gunicorn", "-k", self.worker]
        if "--control-socket" not in self.options and OFFERS_CONTROL:
            command.append("--no-control-socket")
        command += ["-w", str(self.workers)]
        if "gthread" in self.worker.lower():
            command += ["--threads", str(self.threads)]
        self.addresses: list[Address] = []
        with contextlib.ExitStack() as ours:  # closed as soon as the server has them
            fds = []
            for kind in self.listen:
                address, listener = self._listener(kind)
                self.addresses.append(address)
                if listener is None:
                    command += [
                        "-b",
                        f"unix:{address.target}"
                        if kind == "path"
                        else "{}:{}".format(*address.target),
                    ]
                else:
                    ours.enter_context(listener)
                    fds.append(listener.fileno())
                    command += ["-b", f"fd://{listener.fileno()}"]
            if self.config is not None:
                (self.dir / "config.py").write_text(self.config)
                command += ["-c", str(self.dir / "config.py")]
            command, more = self._command([*command, *self.options, self.app])
            self.process = subprocess.Popen(
                command,
                cwd=self.dir,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[*fds, *more],
                start_new_session=True,
            )
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _command(self, command: list[str]) -> tuple[list[str], list[int]]:
        """The command as it is started, and descriptors that it inherits beside the listeners."""
        return command, []

    def _listener(self, kind: str) -> tuple[Address, socket.socket | None]:
        number = len(self.addresses)
        if kind == "path":
            return Address(socket.AF_UNIX, str(self.dir / f"{number}.sock")), None
        if kind == "port":
            reserved = socket.socket()  # bound and not listening: it gets no connections
            self._stack.callback(reserved.close)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(("127.0.0.1", 0))
            return Address(socket.AF_INET, reserved.getsockname()), None
        family, target = {
            "tcp": (socket.AF_INET, ("127.0.0.1", 0)),
            "every": (socket.AF_INET, ("0.0.0.0", 0)),
            "tcp6": (socket.AF_INET6, ("::1", 0)),
            "unix": (socket.AF_UNIX, str(self.dir / f"{number}.sock")),
            "abstract": (socket.AF_UNIX, f"\0{self.dir.name}-{number}"),
        }[kind]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.bind(target)
        listener.listen(512)
        return Address(family, listener.getsockname()), listener

    def _environment(self) -> dict[str, str]:
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("GRACEFUL", "GUNICORN", "WEB_CONCURRENCY", "PYTHONDEV"))
        }
        paths = [str(HERE)]
        if (spec := find_spec("gracefulworker")) and spec.origin:
            paths.append(str(Path(spec.origin).parent.parent))
        env["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [env.get("PYTHONPATH")])])
        env["GATE"] = str(self.gate.path)
        if self.delay is not None:
            env["GRACEFUL_DELAY"] = str(self.delay)
        return {**env, **self.env}

    def _read_log(self) -> None:
        for raw in self.process.stdout:
            line = Line(now(), raw.decode(errors="replace").rstrip("\n"))
            with self._change:
                self.lines.append(line)
                self._change.notify_all()
        with self._change:
            self.gone_at = now()
            self._change.notify_all()

    def close(self) -> None:
        """Kill what is left of the session, reap it, and give everything back."""
        for client in self._clients:
            client.close()
        if hasattr(self, "process"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
            self._reader.join(CEILING)
            assert not self._reader.is_alive(), "something outlived the session's SIGKILL"
            self.process.stdout.close()
        self._stack.close()

    # events

    def wait_log(self, pattern: str, count: int = 1, timeout: float = CEILING) -> Line:
        """The ``count``-th line that matches, now or as soon as it comes."""
        with self._change:
            self._change.wait_for(lambda: len(self.grep(pattern)) >= count or self.gone_at, timeout)
            found = self.grep(pattern)
        if len(found) < count:
            what = "server gone" if self.gone_at else f"{timeout} s passed"
            raise AssertionError(f"{what} with {len(found)} of {count} lines like {pattern!r}")
        return found[count - 1]

    def wait_gone(self, timeout: float = CEILING) -> float:
        """The time at which the arbiter and all workers were gone."""
        with self._change:
            if not self._change.wait_for(lambda: self.gone_at, timeout):
                raise AssertionError(f"still there after {timeout} s")
        self.process.wait(CEILING)
        return self.gone_at

    @property
    def status(self) -> int:
        return self.process.wait(CEILING)

    def grep(self, pattern: str) -> list[Line]:
        return [line for line in self.lines if re.search(pattern, line.message)]

    @property
    def log(self) -> str:
        started = self.lines[0].at if self.lines else 0.0
        text = [f"{line.at - started:7.3f}  {line.text}" for line in self.lines]
        if self.term_at:
            text.append(f"{self.term_at - started:7.3f}  (SIGTERM sent)")
        if self.gone_at:
            text.append(f"{self.gone_at - started:7.3f}  (all gone)")
        return "\n".join(text)

    # signals

    def signal(self, number: int, pid: int | None = None) -> float:
        """To the arbiter alone, or to the process named; returns the time of it."""
        at = now()
        os.kill(self.pid if pid is None else pid, number)
        return at

    def control(self, command: str) -> None:
        """What `gunicornc` does; the server has "--control-socket", CONTROL among its options."""
        from gunicorn.ctl.client import ControlClient

        # The control server is taken down and put up again around each fork; once it listens it
        # gives its socket this mode.
        limit, path = now() + CEILING, self.dir / CONTROL
        while not path.exists() or path.stat().st_mode & 0o777 != 0o600:
            assert now() < limit, "no control socket"
        with ControlClient(str(path), CEILING) as client:
            client.send_command(command)

    def killpg(self, number: int) -> float:
        at = now()
        os.killpg(self.pid, number)
        return at

    def terminate(self) -> float:
        """SIGTERM to the arbiter, up to the moment at which the service is a lame duck."""
        self.term_at = self.signal(signal.SIGTERM)
        self.wait_log("^lame duck:")
        return self.term_at

    def wait_draining(self) -> Line:
        return self.wait_log("^draining:")

    @property
    def worker_pids(self) -> list[int]:
        """All that ever booted, in their order."""
        return [int(x.message.split()[-1]) for x in self.grep("^Booting worker with pid")]

    # clients

    def connect(self, listener: int = 0, timeout: float = CEILING) -> Client:
        client = Client(self.addresses[listener], timeout)
        self._clients.append(client)
        return client

    def keep_alive(self, listener: int = 0) -> Client:
        """A connection that has had one response, and was not told to close."""
        client = self.connect(listener)
        end = client.ask()
        assert end.kind == "response" and not end.closes, f"no keep-alive: {end} {end.headers}"
        return client

    def hold(self, name: str, path: str = "/gated/{}", listener: int = 0) -> tuple[Client, Held]:
        """A request that stands at the gate."""
        client = self.connect(listener)
        client.send(request(path.format(name)))
        return client, self.gate.entered(name)

    def fetch(self, path: str = "/fast", listener: int = 0, **parts) -> Ending:
        return fetch(self.addresses[listener], path, **parts)

    def knock(self, listener: int = 0, **parts) -> Ending:
        return knock(self.addresses[listener], **parts)


# -- what many tests say ---------------------------------------------------------------------------


#: Options under which few connections are enough to fill a worker: see ``fill``.
FULL = {"threads": 2, "options": ("--worker-connections", "2")}


def fill(server: Server, listener: int = 0) -> list[tuple[Client, Held]]:
    """Bring the only worker to the gate with all the connections that it takes (``FULL``).

    Whoever connects then is let in by the kernel and accepted by nobody: a real queue.
    """
    count = 1 if "sync" in server.worker else 2
    return [server.hold(f"busy{listener}{n}", listener=listener) for n in range(count)]


def line_up(server: Server, count: int, listener: int = 0) -> list[Client]:
    """Connections with a whole request each, for the queue."""
    queued = [server.connect(listener) for _ in range(count)]
    for client in queued:
        client.send(request())
    return queued


def wait_until(true: Callable[[], bool], what: str, ceiling: float = 10.0) -> None:
    """For the few things that no event announces."""
    limit = now() + ceiling
    while not true():
        assert now() < limit, f"not within {ceiling} s: {what}"
        time.sleep(0.01)


def cross_the_end(server: Server, number: int, gone: Callable[[], object]) -> Ending:
    """How an idle connection ends when a request crosses its close.

    :param number: the signal at which the connection is closed.
    :param gone: waits for the end of the process that had it.
    """
    client = server.keep_alive()
    server.signal(number)
    assert client.end().kind == "eof"
    client.send(request())
    gone()
    return client.end()


def assert_clean(server: Server) -> None:
    """Gone with exit status 0, and the last log line says so."""
    server.wait_gone()
    assert server.status == 0, f"exit status {server.status}"
    last = [line for line in server.lines if line.level][-1]
    assert last.message.startswith("stopped: clean after "), f"last line: {last.text}"


def summary(server: Server) -> dict[str, float | None]:
    """The figures of the ``stopped:`` line."""
    text = server.wait_log("^stopped:").message
    form = (
        r"stopped: (?P<how>\w+) after (?P<after>[\d.]+) s; served (?P<served>\d+) after SIGTERM, "
        r"(?:last new connection \+(?P<last>[\d.]+) s|no new connection), "
        r"told to close (?P<told>\d+), closed idle (?P<idle>\d+), "
        r"from the queue (?P<queue>\d+), cut (?P<cut>\d+)"
    )
    found = re.fullmatch(form, text)
    assert found, f"not the summary's form: {text}"
    return {
        key: None if value is None else float(value)
        for key, value in found.groupdict().items()
        if key != "how"
    }
