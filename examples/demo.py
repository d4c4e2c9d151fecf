"""A shutdown under load: gracefulworker beside the stock worker, second by second.

The Flask application of flask_app/ is started twice, once with ``-k gracefulworker.gthread`` and
once with ``-k gthread``, with the same options otherwise. Each is kept busy by clients of its own:

* fresh: every request on a new connection;
* keep-alive: a pooled connection, reused after a short pause, and opened anew when the server has
  said ``Connection: close`` or has closed it;
* slow: requests that take 1 to 2 s, and three (an answer that takes its time, a streamed answer, an
  upload in pieces) that begin before the end of the delay and end after it.

Then both get SIGTERM at the same moment, as a pod does that Kubernetes deletes. The clients have
not heard of it yet: for ``--lag`` seconds more they go on opening connections and using pooled
ones, as a load balancer does until the removal of the endpoint has reached it. After that they only
finish what they have begun.

A request counts as ok only if its whole answer came and was right. The exit status is 1 if
gracefulworker lost a single request, did not exit with 0, or had to be killed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import enum
import hashlib
import importlib.util
import itertools
import json
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FLASK_APP = Path(__file__).resolve().parent / "flask_app"

WARM_UP = 3.0  # seconds of load before SIGTERM
THINK = (0.05, 0.1)  # pause of a fresh and of a keep-alive client between two requests
REQUESTS_PER_CLIENT = 2000  # far more than a run makes; the bound of a client's loop
PATIENCE = 10.0  # how much longer than it should take a client waits for an answer
READY_WITHIN = 20.0  # for the start of both servers
EXIT_WITHIN = 30.0  # from SIGTERM, as in Kubernetes by default; then SIGKILL


class Ending(enum.Enum):
    """How a request can end. Everything but OK is a loss."""

    OK = "ok"
    REFUSED = "refused"
    RESET_NEW = "reset, new connection"
    RESET_REUSED = "reset, reused connection"
    CLOSED_NEW = "closed unanswered, new connection"
    CLOSED_REUSED = "closed unanswered, reused connection"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    SERVER_ERROR = "5xx"
    WRONG = "wrong answer"

    @property
    def short(self) -> str:
        return self.value.split(",")[0]


class Lost(Exception):
    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.value)
        self.ending = ending


# Requests: what is sent, and what has to come back.


@dataclass(frozen=True)
class Request:
    pieces: tuple[bytes, ...]
    right: Callable[[bytes], bool]
    pause: float = 0.0  # between two pieces
    seconds: float = 0.0  # how long it should take

    @property
    def give_up_after(self) -> float:
        return self.seconds + PATIENCE


def get(path: str, right: Callable[[bytes], bool], seconds: float = 0.0) -> Request:
    head = f"GET {path} HTTP/1.1\r\nHost: demo\r\n\r\n"
    return Request((head.encode(),), right, seconds=seconds)


def index() -> Request:
    return get("/", lambda body: json.loads(body)["message"] == "hello")


def slow(seconds: float) -> Request:
    seconds = round(seconds, 3)
    return get(
        f"/slow?seconds={seconds}", lambda body: json.loads(body)["slept"] == seconds, seconds
    )


def stream(chunks: int = 4, seconds: float = 0.03) -> Request:
    pause = round(seconds / (chunks - 1), 3)
    expected = "".join(f"chunk {n} of {chunks}\n" for n in range(1, chunks + 1)).encode()
    path = f"/stream?chunks={chunks}&pause={pause}"
    return get(path, lambda body: body == expected, seconds)


def upload(pieces: int = 3, seconds: float = 0.02) -> Request:
    contents = [random.randbytes(16 * 1024) for _ in range(pieces)]
    size, sha256 = 16 * 1024 * pieces, hashlib.sha256(b"".join(contents)).hexdigest()
    head = f"POST /upload HTTP/1.1\r\nHost: demo\r\nContent-Length: {size}\r\n\r\n".encode()

    def right(body: bytes) -> bool:
        answer = json.loads(body)
        return bool(answer["bytes"] == size and answer["sha256"] == sha256)

    return Request((head, *contents), right, pause=seconds / pieces, seconds=seconds)


def everyday_requests() -> Iterator[Request]:
    """Mostly short ones, with a streamed answer and an upload now and then."""
    kinds = [index, index, index, stream, index, index, index, upload]
    first = random.randrange(len(kinds))
    return (kind() for kind in itertools.cycle(kinds[first:] + kinds[:first]))


class Connection:
    """HTTP/1.1 by hand, so that every way to end can be told from the others."""

    def __init__(self, port: int) -> None:
        try:
            self.sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        except ConnectionRefusedError:
            raise Lost(Ending.REFUSED) from None
        except ConnectionResetError:
            raise Lost(Ending.RESET_NEW) from None
        except TimeoutError:
            raise Lost(Ending.TIMEOUT) from None
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reused = False
        self.received = b""
        self.anything_received = False
        self.send_failed = False
        self.deadline = 0.0

    def close(self) -> None:
        self.sock.close()

    def is_stale(self) -> bool:
        """Whether the server has closed it by now. Pools look before they reuse a connection."""
        return bool(select.select([self.sock], [], [], 0)[0])

    def exchange(self, request: Request) -> bool:
        """One request and its answer. True if the connection may be used again, Lost if not ok."""
        self.received, self.anything_received = b"", False
        self.deadline = time.monotonic() + request.give_up_after
        self._send(request)
        status, headers = self._read_head()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = self._read_chunked()
        elif "content-length" in headers:
            body = self._read_exactly(int(headers["content-length"]))
        else:
            raise Lost(Ending.WRONG)
        if status >= 500:
            raise Lost(Ending.SERVER_ERROR)
        try:
            right = status == 200 and not self.received and request.right(body)
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            raise Lost(Ending.WRONG)
        self.reused = True
        return headers.get("connection", "").lower() != "close"

    def _send(self, request: Request) -> None:
        try:
            for n, piece in enumerate(request.pieces):
                if n:
                    time.sleep(request.pause)
                self._limit_time()
                self.sock.sendall(piece)
        except TimeoutError:
            raise Lost(Ending.TIMEOUT) from None
        except ConnectionError:
            self.send_failed = True  # an answer may have come all the same

    def _limit_time(self) -> None:
        self.sock.settimeout(max(self.deadline - time.monotonic(), 0.001))

    def _read_more(self) -> None:
        try:
            self._limit_time()
            data = self.sock.recv(65536)
            was_reset = self.send_failed
        except TimeoutError:
            raise Lost(Ending.TIMEOUT) from None
        except ConnectionError:
            data, was_reset = b"", True
        if data:
            self.received += data
            self.anything_received = True
        elif self.anything_received:
            raise Lost(Ending.TRUNCATED)
        elif was_reset:
            raise Lost(Ending.RESET_REUSED if self.reused else Ending.RESET_NEW)
        else:
            raise Lost(Ending.CLOSED_REUSED if self.reused else Ending.CLOSED_NEW)

    def _read_until(self, mark: bytes) -> bytes:
        while mark not in self.received:
            self._read_more()
        found, _, self.received = self.received.partition(mark)
        return found

    def _read_exactly(self, size: int) -> bytes:
        while len(self.received) < size:
            self._read_more()
        found, self.received = self.received[:size], self.received[size:]
        return found

    def _read_head(self) -> tuple[int, dict[str, str]]:
        head = self._read_until(b"\r\n\r\n").decode("latin-1")
        status_line, *lines = head.split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        try:
            return int(status_line.split(" ")[1]), headers
        except (IndexError, ValueError):
            raise Lost(Ending.WRONG) from None

    def _read_chunked(self) -> bytes:
        body = b""
        while size := int(self._read_until(b"\r\n"), 16):
            body += self._read_exactly(size)
            self._read_until(b"\r\n")
        self._read_until(b"\r\n")
        return body


# Time and tally, shared by the clients of both servers.


@dataclass(frozen=True)
class Schedule:
    """The moments of the run, fixed before it starts."""

    sigterm: float
    lag: float
    delay: float

    @property
    def gone(self) -> float:
        """From here on the clients know that the server is leaving."""
        return self.sigterm + self.lag

    @property
    def across(self) -> tuple[float, float]:
        """Begin and length of the requests that are under way when the delay ends."""
        begin = self.sigterm + min(self.lag, self.delay) - 0.5
        return begin, self.sigterm + self.delay + 1.0 - begin


@dataclass
class Tally:
    """What the clients of one server got."""

    by_kind: collections.Counter[tuple[str, Ending]] = field(default_factory=collections.Counter)
    by_second: dict[int, collections.Counter[Ending]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, ending: Ending, second: int) -> None:
        with self.lock:
            self.by_kind[kind, ending] += 1
            self.by_second[second][ending] += 1

    def in_second(self, second: int) -> str:
        with self.lock:
            counts = collections.Counter[str]()
            for ending, n in self.by_second[second].items():
                counts[ending.short] += n
        order = [e.short for e in Ending]
        return ", ".join(f"{counts[name]} {name}" for name in sorted(counts, key=order.index))

    @property
    def total(self) -> int:
        return sum(self.by_kind.values())

    @property
    def lost(self) -> int:
        return sum(n for (_, ending), n in self.by_kind.items() if ending is not Ending.OK)

    def lost_by_ending(self) -> str:
        counts = collections.Counter[Ending]()
        for (_, ending), n in self.by_kind.items():
            counts[ending] += n
        return ", ".join(f"{counts[e]} {e.value}" for e in Ending if counts[e] and e is not e.OK)


class Client(threading.Thread):
    kind = ""

    def __init__(self, port: int, schedule: Schedule, tally: Tally, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.port, self.schedule, self.tally, self.stop = port, schedule, tally, stop
        self.connection: Connection | None = None
        self.crash: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            self.crash = error

    def work(self) -> None:
        raise NotImplementedError

    def in_view(self) -> bool:
        return time.monotonic() < self.schedule.gone and not self.stop.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the moment at which the server goes out of view."""
        self.stop.wait(max(0.0, min(seconds, self.schedule.gone - time.monotonic())))

    def once(self, request: Request, keep: bool = False) -> Ending:
        try:
            if self.connection is not None and self.connection.is_stale():
                self.drop()
            if self.connection is None:
                self.connection = Connection(self.port)
            reusable = self.connection.exchange(request)
            ending = Ending.OK
        except Lost as lost:
            reusable, ending = False, lost.ending
        if not (keep and reusable):
            self.drop()
        if not self.stop.is_set():
            second = int((time.monotonic() - self.schedule.sigterm) // 1)
            self.tally.add(self.kind, ending, second)
        return ending

    def drop(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class FreshClient(Client):
    kind = "fresh"

    def work(self) -> None:
        for request in itertools.islice(everyday_requests(), REQUESTS_PER_CLIENT):
            self.pause(random.uniform(*THINK))
            if not self.in_view():
                return
            self.once(request)


class KeepAliveClient(Client):
    """Its pooled connection stays open when it stops, as in a pool; the server has to cope."""

    kind = "keep-alive"

    def work(self) -> None:
        for request in itertools.islice(everyday_requests(), REQUESTS_PER_CLIENT):
            self.pause(random.uniform(*THINK))
            if not self.in_view():
                return
            self.once(request, keep=True)


class SlowClient(Client):
    kind = "slow"

    def work(self) -> None:
        self.pause(random.uniform(0, 1))
        for _ in range(REQUESTS_PER_CLIENT):
            if not self.in_view():
                return
            seconds = random.uniform(1, 2)
            if self.once(slow(seconds)) is not Ending.OK:
                self.pause(seconds)


class AcrossTheEnd(Client):
    """One request that is under way when the delay ends."""

    kind = "slow"
    make: Callable[[float], Request]

    def work(self) -> None:
        begin, seconds = self.schedule.across
        self.stop.wait(max(0.0, begin - time.monotonic()))
        if not self.stop.is_set():
            self.once(type(self).make(seconds))


class SlowAnswerAcross(AcrossTheEnd):
    make = staticmethod(slow)


class StreamAcross(AcrossTheEnd):
    make = staticmethod(lambda seconds: stream(chunks=12, seconds=seconds))


class UploadAcross(AcrossTheEnd):
    make = staticmethod(lambda seconds: upload(pieces=12, seconds=seconds))


# The servers.


class Server:
    """gunicorn in a session of its own, with its log read as it comes."""

    PHASE_OF_LINE = (("lame duck:", "LAME_DUCK"), ("draining:", "DRAINING"))

    def __init__(self, worker_class: str, options: list[str], environment: dict[str, str]) -> None:
        self.name = worker_class
        self.log: list[tuple[float, str]] = []
        self.phase = "SERVING"
        self.port = 0
        self.listening = threading.Event()
        self.exited_at: float | None = None
        self.was_killed = False
        self.left_behind = False
        # The end of the log is the end of every process of this server.
        self.reader = threading.Thread(target=self._read_log, daemon=True)
        self.waiter = threading.Thread(target=self._wait, daemon=True)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "-k", worker_class),
                *("-b", "127.0.0.1:0", "--no-control-socket", *options, "app:app"),
            ],
            cwd=FLASK_APP,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.reader.start()
        self.waiter.start()

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.log.append((time.monotonic(), line.rstrip()))
                if match := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line):
                    self.port = int(match[1])
                    self.listening.set()
                for text, phase in self.PHASE_OF_LINE:
                    if text in line and not self.exited:
                        self.phase = phase

    def _wait(self) -> None:
        self.process.wait()
        self.exited_at = time.monotonic()
        self.phase = "STOPPED"

    @property
    def exited(self) -> bool:
        return self.exited_at is not None

    def wait_until_ready(self, deadline: float) -> bool:
        while time.monotonic() < deadline and not self.exited:
            if self.listening.wait(0.1):
                try:
                    connection = Connection(self.port)
                    with contextlib.closing(connection):
                        connection.exchange(index())
                    return True
                except Lost:
                    time.sleep(0.1)
        return False

    def send(self, signum: int) -> None:
        if not self.exited:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL to all that is left of it; the group is ours, we started it as a session."""
        self.was_killed = self.was_killed or not self.exited
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.waiter.join(5)
        self.reader.join(5)

    def tidy_up(self) -> None:
        """After the exit: nothing of it may be left."""
        self.reader.join(1)
        self.left_behind = self.reader.is_alive() and not self.was_killed
        if self.reader.is_alive():
            self.kill()

    @property
    def status(self) -> str:
        code = self.process.returncode
        if self.was_killed:
            return "killed"
        return signal.Signals(-code).name if code is not None and code < 0 else str(code)


# The run.


class Demo:
    CLIENTS_ACROSS = (SlowAnswerAcross, StreamAcross, UploadAcross)
    SLOW_CLIENTS = 2

    def __init__(self, lag: float, delay: float, clients: int, worker: str) -> None:
        self.lag, self.delay, self.clients_each, self.worker = lag, delay, clients, worker
        self.stop = threading.Event()
        self.servers: list[Server] = []
        self.tallies = (Tally(), Tally())
        self.clients: list[Client] = []
        self.schedule = Schedule(0, 0, 0)

    def start(self) -> None:
        """Both servers, side by side, and ready."""
        settings = ("PORT", "WEB_CONCURRENCY", "GUNICORN_CMD_ARGS")
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in settings and not name.startswith("GRACEFUL_")
        }
        # sync handles one request at a time, and stock turns it into gthread where threads > 1.
        options = ["--threads", "1", "--workers", "8"] if self.worker == "sync" else []
        with_delay = {**environment, "GRACEFUL_DELAY": f"{self.delay:g}"}
        self.servers.append(Server(f"gracefulworker.{self.worker}", options, with_delay))
        self.servers.append(Server(self.worker, options, environment))
        deadline = time.monotonic() + READY_WITHIN
        for server in self.servers:
            if not server.wait_until_ready(deadline):
                log = "\n".join(f"    {line}" for _, line in server.log)
                raise SystemExit(f"-k {server.name} did not start. Its log:\n{log}")

    def begin_load(self) -> None:
        self.schedule = Schedule(time.monotonic() + WARM_UP, self.lag, self.delay)
        fresh = (self.clients_each + 1) // 2
        kinds: list[type[Client]] = [
            *[FreshClient] * fresh,
            *[KeepAliveClient] * (self.clients_each - fresh),
            *[SlowClient] * self.SLOW_CLIENTS,
            *self.CLIENTS_ACROSS,
        ]
        for server, tally in zip(self.servers, self.tallies, strict=True):
            self.clients += [k(server.port, self.schedule, tally, self.stop) for k in kinds]
        for client in self.clients:
            client.start()

    def watch(self) -> None:
        """One line per second, SIGTERM in between, until clients and servers are done."""
        ours, stock = self.servers
        self.row("", ours.name, f"stock {stock.name}")
        end = self.schedule.sigterm + max(EXIT_WITHIN, self.lag + self.delay + PATIENCE)
        for second in itertools.count(-int(WARM_UP)):
            if second == 0:
                self.sleep_until(self.schedule.sigterm)
                ours.send(signal.SIGTERM)
                stock.send(signal.SIGTERM)
                print("  --- SIGTERM to both ---", flush=True)
            if second == round(self.lag):
                print("  --- the clients have heard of it ---", flush=True)
            self.sleep_until(self.schedule.sigterm + second + 1)
            columns = []
            for server, tally in zip(self.servers, self.tallies, strict=True):
                got = tally.in_second(second) or "-"
                if server is ours:
                    got = f"{server.phase:<10} {got}"
                elif server.exited:
                    got += "  (exited)"
                columns.append(got)
            self.row(f"{second:+d} s" if second else "0 s", *columns)
            now = time.monotonic()
            busy = any(c.is_alive() for c in self.clients)
            if second >= 0 and not busy and ours.exited and stock.exited:
                break
            if now > end:
                break
        for server in self.servers:
            if not server.exited:
                server.kill()
            server.tidy_up()
        self.stop.set()
        for client in self.clients:
            client.join(PATIENCE)

    @staticmethod
    def sleep_until(moment: float) -> None:
        time.sleep(max(0.0, moment - time.monotonic()))

    @staticmethod
    def row(*columns: str) -> None:
        widths = (6, 46, 0)
        cells = (f"{c:<{w}}" for c, w in zip(columns, widths, strict=True))
        print("  " + "  ".join(cells).rstrip(), flush=True)

    def report(self) -> None:
        ours, stock = self.servers

        def row(label: str, left: object, right: object) -> None:
            print(f"  {label:<50}{left!s:>24}{right!s:>16}")

        print()
        row("", ours.name, f"stock {stock.name}")
        for kind in ("fresh", "keep-alive", "slow"):
            for ending in Ending:
                counts = [tally.by_kind[kind, ending] for tally in self.tallies]
                if any(counts) or ending is Ending.OK:
                    row(f"{kind:<12}{ending.value}", *counts)
        row("lost, of all", *(f"{t.lost} of {t.total}" for t in self.tallies))
        row("from SIGTERM to exit", *(self.exit_time(s) for s in self.servers))
        row("exit status", ours.status, stock.status)

        print(f"\nWhat {ours.name} logged about it:")
        for moment, line in ours.log:
            if moment >= self.schedule.sigterm or "shutdown plan:" in line:
                print(f"  {line}")

    def exit_time(self, server: Server) -> str:
        if server.exited_at is None:
            return "never"
        return f"{server.exited_at - self.schedule.sigterm:.2f} s"

    def verdict(self) -> int:
        (ours, stock), (our_tally, stock_tally) = self.servers, self.tallies
        problems = []
        if our_tally.lost:
            problems.append(
                f"lost {our_tally.lost} of {our_tally.total} requests"
                f" ({our_tally.lost_by_ending()})"
            )
        if not our_tally.total:
            problems.append("was not asked for anything")
        if ours.was_killed:
            problems.append(f"was still there {EXIT_WITHIN:g} s after SIGTERM and had to be killed")
        elif ours.process.returncode:
            problems.append(f"exited with {ours.status}")
        if ours.left_behind:
            problems.append("left processes behind")
        crashes = [client.crash for client in self.clients if client.crash]
        print()
        if stock_tally.lost:
            print(f"Stock {stock.name} lost {stock_tally.lost} of {stock_tally.total} requests.")
        else:
            print(f"Stock {stock.name} lost nothing this time.")
        if crashes:
            print(f"FAILED: {len(crashes)} clients of the demo broke down: {crashes[0]!r}")
            return 1
        if problems:
            print(f"FAILED: {ours.name} {', and '.join(problems)}.")
            if self.lag >= self.delay:
                print(
                    f"The delay ({self.delay:g} s) has to be longer than the lag ({self.lag:g} s)."
                )
            return 1
        print(
            f"OK: {ours.name} lost nothing: {our_tally.total} requests, every answer whole and"
            f" right; exit status 0, {self.exit_time(ours)} after SIGTERM."
        )
        return 0

    def clean_up(self) -> None:
        """Whatever happened: no client and no server outlives the demo."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.stop.set()
        for server in self.servers:
            server.send(signal.SIGINT)
        deadline = time.monotonic() + 2
        for server in self.servers:
            server.waiter.join(max(0.0, deadline - time.monotonic()))
            if not server.exited or server.reader.is_alive():
                server.kill()
        for client in self.clients:
            if not client.is_alive():
                client.drop()

    def run(self) -> int:
        try:
            self.start()
            print(
                f"Two servers are ready, {len(self.CLIENTS_ACROSS) + self.SLOW_CLIENTS} slow and"
                f" {self.clients_each} other clients each. SIGTERM in {WARM_UP:g} s; the clients"
                f" hear of it {self.lag:g} s later; graceful_delay is {self.delay:g} s.\n"
            )
            self.begin_load()
            self.watch()
            self.report()
            return self.verdict()
        finally:
            self.clean_up()


def bounded(kind: type, low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not from {low:g} to {high:g}")
        return value

    return parse


def main() -> int:
    parser = argparse.ArgumentParser(
        description="A shutdown under load: gracefulworker beside the stock worker."
    )
    parser.add_argument(
        "--lag",
        type=bounded(float, 0, 20),
        default=3.0,
        help="seconds from SIGTERM until the clients have heard of it (default: 3)",
    )
    parser.add_argument(
        "--delay",
        type=bounded(float, 0, 20),
        default=5.0,
        help="graceful_delay in seconds (default: 5)",
    )
    parser.add_argument(
        "--clients",
        type=bounded(int, 2, 50),
        default=12,
        help="fresh and keep-alive clients per server, half of them each (default: 12)",
    )
    parser.add_argument(
        "--worker",
        choices=("gthread", "sync", "gevent"),
        default="gthread",
        help="(default: gthread)",
    )
    options = parser.parse_args()
    needed = ["gracefulworker", "flask"] + ["gevent"] * (options.worker == "gevent")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(
            f"not installed here: {', '.join(missing)} (tox -e demo installs what it needs)"
        )

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        return Demo(options.lag, options.delay, options.clients, options.worker).run()
    except KeyboardInterrupt:
        print("\nInterrupted; both servers are stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
