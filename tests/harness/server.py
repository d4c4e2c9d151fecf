"""One gunicorn process tree in a session of its own, and its log as events."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.clients import CEILING, Address, Client, Ending, fetch, knock, now, request
from harness.gate import Gate, Held

#: What the servers run: their working directory has no Python file, so this is on their path.
SERVED = Path(__file__).parent.parent / "served"

#: gunicorn has a control socket since 25; each server would bind the same one.
OFFERS_CONTROL = find_spec("gunicorn.ctl") is not None

#: A control socket's name, in the server's directory.
CONTROL = "gunicorn.ctl"


#: What gunicorn has no short name for: in the tests it has one.
UVICORN = "uvicorn_worker.UvicornWorker"


def stock_of(worker: str) -> str:
    """The class that one of ours derives from, as a ``Server`` takes it."""
    return worker.split(".")[1]


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
        self.is_asgi = "uvicorn" in self.worker or self.worker.startswith("asgi_workers.")
        if self.is_asgi:
            self.app = re.sub("^(apps|owed):", r"asgi_\1:", self.app)
        self.lines: list[Line] = []
        self.gone_at: float | None = None
        self.term_at = 0.0
        self._change = threading.Condition()
        self._clients: list[Client] = []
        self._stack = contextlib.ExitStack()

    # starting and ending

    @property
    def exit_bound(self) -> float:
        """Seconds in which it is gone once nothing is left to do.

        The interpreter's own end, which is in it, takes longer with what an ASGI framework imports
        (docs/design.md).
        """
        return 0.4 if self.is_asgi else 0.3

    def start(self) -> Server:
        self._launch()
        if self.ready:
            self.wait_log(r"^app imported", count=self.workers)
            if self.is_asgi:
                self.wait_log(r"^Application startup complete", count=self.workers)
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
        worker = UVICORN if self.worker == "uvicorn" else self.worker
        command = [sys.executable, "-m", "gunicorn", "-k", worker]
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
        family: socket.AddressFamily
        target: Any
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
        # Nothing but what is served: gracefulworker itself is the one that is installed.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SERVED), env.get("PYTHONPATH")]))
        env["GATE"] = str(self.gate.path)
        if self.delay is not None:
            env["GRACEFUL_DELAY"] = str(self.delay)
        return {**env, **self.env}

    def _read_log(self) -> None:
        assert self.process.stdout
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
            if "COVERAGE_PROCESS_CONFIG" in os.environ and self.gone_at is None:
                self._end_measured()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
            self._reader.join(CEILING)
            assert not self._reader.is_alive(), "something outlived the session's SIGKILL"
            assert self.process.stdout
            self.process.stdout.close()
        self._stack.close()

    def _end_measured(self) -> None:
        """A process that is killed saves nothing of what `tox -e coverage` saw in it."""
        with contextlib.suppress(ProcessLookupError, AssertionError):
            self.signal(signal.SIGQUIT)
            self.wait_gone(timeout=3.0)

    # events

    def wait_log(self, pattern: str, count: int = 1, timeout: float = CEILING) -> Line:
        """The ``count``-th line that matches, now or as soon as it comes."""
        with self._change:
            self._change.wait_for(
                lambda: len(self.grep(pattern)) >= count or bool(self.gone_at), timeout
            )
            found = self.grep(pattern)
        if len(found) < count:
            what = "server gone" if self.gone_at else f"{timeout} s passed"
            raise AssertionError(f"{what} with {len(found)} of {count} lines like {pattern!r}")
        return found[count - 1]

    def wait_gone(self, timeout: float = CEILING) -> float:
        """The time at which the arbiter and all workers were gone."""
        with self._change:
            if not self._change.wait_for(lambda: self.gone_at is not None, timeout):
                raise AssertionError(f"still there after {timeout} s")
            assert self.gone_at is not None
            gone_at = self.gone_at
        self.process.wait(CEILING)
        return gone_at

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

    def fetch(self, path: str = "/fast", listener: int = 0, **parts: Any) -> Ending:
        return fetch(self.addresses[listener], path, **parts)

    def knock(self, listener: int = 0, **parts: Any) -> Ending:
        return knock(self.addresses[listener], **parts)
