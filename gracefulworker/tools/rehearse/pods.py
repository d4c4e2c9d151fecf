"""One pod: a gunicorn process of the user's application, from its start to its exit.

What the kubelet does is done here: start, readiness probe, SIGTERM, SIGKILL at the grace period.
gunicorn is started as a user would start it, see `configured`. The benchmarks put another server in
its place.

What may be changed here: what is noted of a pod. Signals go to the arbiter alone, as in a
container; SIGKILL goes to all of its process group, as the container's end does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

#: Seconds between two readiness probes, and the time that one may take.
PROBE_PERIOD = 0.05
PROBE_TIMEOUT = 5.0

#: Bytes that it reads, as the kubelet's: an answer may have no end.
PROBE_BODY = 10240

#: Where a pod of ours stands, by what a log line says somewhere (it may be in JSON).
PHASE_LINES = {
    "lame_duck": re.compile(r"lame duck: .+ received, serving"),
    "gate": re.compile(r"draining: .+ newcomers"),
    "stopped": re.compile(r"stopped: .+ after SIGTERM"),
}

#: Bytes of a log line that are kept.
LINE_MOST = 65536

#: Seconds in which a pod's last log lines are read.
LAST_LINES = 1.0

_LIBC = ctypes.CDLL(None)  # loaded here, not between fork and exec
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


#: Lines of its log that are shown of a pod which fails.
TAIL = 15

#: So many workers of a pod that is not ready yet end by themselves before it is given up.
FALLEN = 20
_FELL = re.compile(r"Worker \(pid: ?(\d+)\) (?:exited with code [1-9]|was sent)")

#: The variable that all processes of a pod have in their environment.
MARK = "GRACEFULWORKER_REHEARSAL"

#: An exception's last line, where it is not a traceback's: as gunicorn writes it.
_RAISED = re.compile(
    r"(?:gunicorn: e|E|TypeE)rror: .+|Failed to find (?:attribute|application object).+"
    r"|Failed to parse .+ as an attribute.+|Application object must be callable\."
)
#: The frame in which os.environ does not find a name.
_IN_ENVIRON = re.compile(r'  File "(?:.*\bos\.py|<frozen os>)", line \d+, in __getitem__')

#: An application and a worker class that do not speak the same language.
_MISMATCH = re.compile(r"missing 1 required positional argument: '(?:send|start_response)'")

#: What to do about an exception.
ADVICE = {
    "class uri 'gracefulworker' invalid": "give -k gracefulworker.gthread, or put the line `import"
    " gracefulworker` into gunicorn.conf.py",
    "argument: 'send'": "the application is an ASGI one: -k gracefulworker.uvicorn",
    "argument: 'start_response'": "the application is a WSGI one: -k gracefulworker.gthread",
    "No module named": "it has to be installed in this environment, or be in this directory (else"
    " -- --chdir DIRECTORY)",
    "Address already in use": "the application binds an address of its own, which another pod or"
    " process has here; with --service iptables each pod has its own network, as in a cluster",
}


class NotReady(Exception):
    """The pod cannot be rehearsed with; the argument is a sentence, followed by its log."""


def why(log: list[str], *, is_over: bool = False) -> str:
    """What a log says of the reason for its end: an exception, or the variable that is missing.

    :param is_over: the process has ended by it, so that the lines that follow belong to it.
    """
    reason = ""
    in_traceback = in_environ = False
    for number, line in enumerate(log):
        if line.startswith("Traceback (most recent call last)"):
            in_traceback = True
        elif _IN_ENVIRON.match(line):
            in_environ = True
        elif (in_traceback and not line.startswith(" ")) or _RAISED.fullmatch(line):
            missing = re.fullmatch(r"KeyError: '(\w+)'", line)
            if in_environ and missing:
                return f"the variable {missing[1]} is not set: set it for this command"
            reason = _in_full(line, log[number + 1 :]) if is_over else line
            in_traceback = in_environ = False
    for words, advice in ADVICE.items():
        if words in reason:
            reason = f"{reason.rstrip(' :')}: {advice}"
    return reason


def _in_full(line: str, following: list[str]) -> str:
    """An exception's last line, with what else it says: up to the next line of gunicorn's.

    That may be the same once more, of a SyntaxError with its place.
    """
    kind, _, message = line.partition(": ")
    rest = []
    for later in following[:TAIL]:
        if later.startswith("["):
            break
        if message and later.startswith(message):
            line = f"{kind}: {later}"
            break
        rest.append(later.strip())
    return " ".join([line, *rest])


@dataclass
class Place:
    """Where a pod lives: its address as the Service knows it, and how gunicorn comes by it."""

    address: tuple[str, int]
    bind: str  #: for gunicorn's -b
    prefix: tuple[str, ...] = ()  #: a command that leads into the pod's namespace
    listener: socket.socket | None = None  #: handed down, if `bind` is a descriptor
    #: Where probes have an address of their own, and how gunicorn comes by it.
    probes: tuple[str, int] = ("", 0)
    probe_bind: str = ""
    files: str = ""  #: a directory of its own

    def fill(self, word: str) -> str:
        """A word of a command, with this place in it. Not str.format: a user's may have braces."""
        host, port = self.address
        for name, value in (
            ("bind", self.bind),
            ("host", host),
            ("port", str(port)),
            ("probe_bind", self.probe_bind),
            ("files", self.files),
        ):
            word = word.replace(f"{{{name}}}", value)
        return word


@dataclass
class Pod:
    """A pod. `marks` has the times of what happened to it, by name, in the journal's seconds:

    started, ready, sigterm, endpoint_gone, lame_duck, gate, stopped, sigkill, exit.
    """

    name: str
    place: Place
    clock: Callable[[], float]
    marks: dict[str, float] = field(default_factory=dict)
    log: list[tuple[float, str]] = field(default_factory=list)
    status: int | None = None

    def start(self, command: tuple[str, ...]) -> None:
        """Start a server in a session of its own.

        In `command`, {bind} stands for the address as gunicorn takes it; a server that takes none
        of gunicorn's has {host} and {port}. {probe_bind} is an address for probes alone, {files} a
        directory of the pod's own.
        """
        listener = self.place.listener
        if listener is not None and "{bind}" not in command:
            listener.close()
            listener = None
        self.marks["started"] = self.clock()
        self._mark = uuid.uuid4().hex
        self._process = subprocess.Popen(
            [*self.place.prefix, *map(self.place.fill, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, MARK: self._mark},
            pass_fds=() if listener is None else [listener.fileno()],
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )
        if listener is not None:
            listener.close()  # else it would go on accepting when the pod has gone
        loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = loop.create_future()
        threading.Thread(target=self._wait, args=(loop,), daemon=True).start()
        self._reader = asyncio.ensure_future(self._read_log())

    async def wait_ready(self, address: tuple[str, int], path: str, within: float) -> None:
        """Probe `path` until it is answered with less than 500: who asks for "/" may get a 404.

        :raises NotReady: it has exited, or `within` seconds are over.
        """
        give_up = self.clock() + within
        seen = f"nothing answered GET {path}"
        while True:
            # Not wait_for, which forgets a cancellation that comes together with the result.
            probe = asyncio.ensure_future(self._probe(address, path))
            patience = min(PROBE_TIMEOUT, max(0.0, give_up - self.clock()))
            await asyncio.wait([probe], timeout=patience)
            if probe.done() and (status := probe.result()):
                if status < 500:
                    break
                seen = f"GET {path} was answered {status}"
            probe.cancel()
            sentence = self._hopeless()
            if self.gone.done():
                await asyncio.wait([self._reader], timeout=LAST_LINES)
                sentence = f"{self.name} exited with status {self.status} at its start"
            elif not sentence and self.clock() >= give_up:
                sentence = f"{self.name} was not ready within {within:g} s: {seen} (give it longer"
                sentence += " with --ready-within N, or ask for something else, --ready-path PATH)"
            if sentence:
                raise NotReady(sentence + self.last_words())
            await asyncio.sleep(PROBE_PERIOD)
        self.marks["ready"] = self.clock()

    def _hopeless(self) -> str:
        """Why its log says that it will never be ready; empty if it does not."""
        lines = [line for _, line in self.log]
        if any(map(_MISMATCH.search, lines)):
            return f"{self.name} cannot serve this application"
        fallen = {fell[1] for line in lines if (fell := _FELL.search(line))}
        if len(fallen) >= FALLEN:
            return f"{len(fallen)} workers of {self.name} have ended at its start"
        return ""

    async def _probe(self, address: tuple[str, int], path: str) -> int:
        """:returns: the answer's status, or 0."""
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        try:
            reader, writer = await asyncio.open_connection(*address)
        except OSError:
            return 0
        try:
            writer.write(request.encode())
            line = await reader.readline()
            await reader.read(PROBE_BODY)
        except OSError:
            return 0
        finally:
            writer.close()
        digits = line[9:12]
        return int(digits) if digits.isdigit() else 0

    def last_words(self) -> str:
        """What its log says of a failure, and the tail of it, to follow a sentence."""
        lines = [line for _, line in self.log]
        reason = why(lines, is_over=self.gone.done())
        words = f": {reason}" if reason else ""
        words = "\n".join([words, *self.tail()])
        if lines and not reason:
            words += "\n(That came to stdout and stderr; the application may log elsewhere.)"
        return words

    def tail(self) -> list[str]:
        """The end of its log, with a heading; empty if there is none."""
        lines = [line for _, line in self.log[-TAIL:]]
        return [f"The end of {self.name}'s log:", *lines] if lines else []

    def is_leaving(self, at: float) -> bool:
        """Whether it had got SIGTERM and was still an endpoint, at that time."""
        return self.marks.get("sigterm", at) < at <= self.marks.get("endpoint_gone", at)

    def signal(self, number: int, mark: str) -> None:
        """Send a signal to the arbiter, if it is still there."""
        if self.status is None:
            self.marks[mark] = self.clock()
            self._process.send_signal(number)

    async def stop(self, grace: float) -> None:
        """SIGTERM, and SIGKILL if it is still there after `grace` seconds."""
        self.signal(signal.SIGTERM, "sigterm")
        await asyncio.wait([self.gone], timeout=grace)
        if not self.gone.done():
            self.marks["sigkill"] = self.clock()
            self.kill()
            await asyncio.wait([self.gone])

    def quit(self) -> None:
        """SIGQUIT: gunicorn ends at once, but for its hooks and what is done at exit.

        One that still boots may not know the signal yet, and would leave a core file.
        """
        if "ready" not in self.marks:
            self.kill()
        elif not self.gone.done():
            self._process.send_signal(signal.SIGQUIT)

    def kill(self) -> None:
        """SIGKILL to all its processes, as the end of a container does; none is left once gone."""
        if not self.gone.done():
            self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _kill_strays(self) -> None:
        """Also those that have left its process group, where there is a /proc to find them in."""
        mark = f"{MARK}={self._mark}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)

    async def clean_up(self) -> None:
        """End whatever is left, and reap it."""
        self.kill()
        await self.gone
        # A process that has left the pod's group may hold the pipe for ever.
        await asyncio.wait([self._reader], timeout=LAST_LINES)
        self._reader.cancel()
        await asyncio.wait([self._reader])

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own: wait for the arbiter, end what it left behind, and reap it."""
        if hasattr(os, "waitid"):
            # Until it is reaped its number is nobody else's.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        else:  # macOS before Python 3.13
            self._process.wait()
        at = self.clock()
        self._kill_group()
        self._kill_strays()
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._exited, status, at)

    def _exited(self, status: int, at: float) -> None:
        self.status, self.marks["exit"] = status, at
        if not self.gone.done():
            self.gone.set_result(None)

    async def _read_log(self) -> None:
        """Note each line, up to the end of all processes that hold the pipe."""
        assert self._process.stdout is not None, "it was asked for"
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout
        )
        rest = b""
        try:
            while data := await reader.read(LINE_MOST):
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[:LINE_MOST]
                for line in lines:
                    self._note(line.decode(errors="replace"))
            self._note(rest.decode(errors="replace"))
        finally:
            transport.close()

    def _note(self, line: str) -> None:
        if not line:
            return
        self.log.append((self.clock(), line))
        for mark, form in PHASE_LINES.items():
            if form.search(line):
                self.marks.setdefault(mark, self.clock())


def end_with_parent(number: int = signal.SIGQUIT) -> None:
    """In the child: get this signal should its parent die (prctl(2)).

    At SIGQUIT gunicorn ends its workers.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)
