"""`gracefulworker drain`: LAME_DUCK begins now; returns when the delay is over.

For Kubernetes' `preStop.exec` and for scripts: the SIGTERM that follows begins DRAINING at once.

The arbiter's shared page is a file in memory whose name shows in /proc, and which only processes
of the same service have: so the page tells whether a process is supervised by us, which of them is
the arbiter, and in which phase it is. Anybody can make a file of that name, so nothing of it is
believed before the rest fits: the page's first words, the process that it names, that process's
user, and that it listens to the signal. The page is copied out and never mapped, as its owner may
cut it short. It is only read; what is asked of the arbiter is asked with a signal.

"Here" is the container that this runs in: the processes of its PID namespace and of its cgroups.
What may be changed here: how an arbiter is found, and what is said.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gracefulworker.phases import SECOND, Phase
from gracefulworker.shared.page import ASK, HEAD_CELLS, NAME, Page

#: Seconds between two looks at the phase.
STEP = 0.02

#: Seconds that the arbiter is given to hear the request, and to end the delay when it is over. Only
#: one that stands still takes as long: it is asked in a signal handler.
PATIENCE = 10.0

PROC = Path("/proc")


class DrainError(Exception):
    """Nothing has been asked of anybody, or it was of no use: one sentence."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: which arbiter, how long to wait, and whether to stop it."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--pid", type=int, help="gunicorn's main process; else it is looked for")
    which.add_argument("--pidfile", type=Path, metavar="FILE", help="gunicorn's --pid FILE")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="give up after so many seconds (default: when the delay should have been over for"
        f" {PATIENCE:g} s)",
    )
    parser.add_argument(
        "--stop",
        action="store_true",
        help="then send SIGTERM, too: for images in which PID 1 does not pass it on",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Begin the delay and wait for its end; 1 when there is nobody to drain, or it stands still."""
    try:
        with contextlib.ExitStack() as opened:
            arbiter = _choose(arguments, opened)
            trouble = _ask(arbiter, arguments.timeout)
            # Also to one that stands still: it will find the signal when it goes on.
            if arguments.stop:
                arbiter.signal(signal.SIGTERM)
            if trouble is not None:
                raise trouble
    except DrainError as error:
        print(f"gracefulworker drain: {error}", file=sys.stderr)
        return 1
    return 0


def _ask(arbiter: Arbiter, timeout: float | None) -> DrainError | None:
    """Ask for the delay, and wait until it is over.

    :returns: why that has not been seen.
    :raises DrainError: it may not be asked.
    :raises KeyboardInterrupt: after a sentence, since what has been asked for is not taken back.
    """
    is_asked = False
    # An interruption is held up until it is known whether there is something to say.
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        try:
            arbiter.signal(ASK)
            is_asked = True
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, kept)
        try:
            _watch(arbiter, timeout)
        except DrainError as error:
            return error
    except KeyboardInterrupt:
        if is_asked:
            print(
                f"gracefulworker drain: interrupted; process {arbiter.pid} goes on all the same,"
                " and is a lame duck until SIGTERM",
                file=sys.stderr,
            )
        raise
    return None


def _watch(arbiter: Arbiter, timeout: float | None) -> None:
    """:raises DrainError: it has gone before, or time is over."""
    began = time.monotonic()
    while True:
        has_gone = arbiter.process.has_gone()  # before its page is read: the last word is there
        page = arbiter.page()
        if page.phase >= Phase.DRAINING or page.delay_over_at:
            return
        if has_gone:
            raise DrainError(f"process {arbiter.pid} has gone before the delay was over")
        if timeout is not None:
            until = began + timeout
        elif page.phase == Phase.SERVING:
            until = began + PATIENCE
        else:
            until = page.delay_ends / SECOND + PATIENCE
        if time.monotonic() > until:
            raise DrainError(_stands_still(arbiter, page, time.monotonic() - began))
        time.sleep(STEP)


def _stands_still(arbiter: Arbiter, page: Page, waited: float) -> str:
    left = (page.delay_ends - time.monotonic_ns()) / SECOND
    if page.phase == Phase.SERVING:
        what = f"process {arbiter.pid} has not heard of it in {waited:.1f} s"
    elif left > 0:
        return (
            f"the delay of process {arbiter.pid} goes on for {left:.1f} s more, which is longer"
            " than --timeout allows"
        )
    else:
        what = f"process {arbiter.pid} has not ended its delay after {waited:.1f} s"
    if arbiter.state() in ("T", "t"):
        return f"{what}: it is stopped (SIGSTOP, or a debugger); SIGCONT lets it go on"
    return f"{what}: its main thread stands still, in a function of the config file perhaps"


# Processes


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it; `started` tells it from a later one of the same number."""

    pid: int
    started: bytes

    @classmethod
    def of(cls, pid: int) -> Process:
        """:raises ProcessLookupError: there is none, or only what is left of it."""
        process = cls(pid, _stat(pid)[19])
        if process.has_gone():
            raise ProcessLookupError
        return process

    @property
    def directory(self) -> Path:
        return PROC / str(self.pid)

    def state(self) -> str:
        """R, S, D, T and so on, see proc(5).

        :raises ProcessLookupError: it has gone.
        """
        return _stat(self.pid)[0].decode()

    def has_gone(self) -> bool:
        """Whether it has ended, also if its parent has not looked yet."""
        try:
            fields = _stat(self.pid)
        except ProcessLookupError:
            return True
        return fields[0] in (b"Z", b"X") or fields[19] != self.started

    def status(self) -> dict[str, str]:
        """/proc/PID/status by its names.

        :raises ProcessLookupError: it has gone.
        """
        lines = _read(self.directory / "status").decode(errors="replace").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def command(self) -> str:
        """Its command line, or what it calls itself; cut to 60 characters.

        :raises ProcessLookupError: it has gone.
        """
        line = _read(self.directory / "cmdline").replace(b"\0", b" ").decode(errors="replace")
        words = line.strip() or self.status()["Name"]
        return words if len(words) <= 60 else f"{words[:57]}..."

    def numbers(self) -> list[int]:
        """Its process id here, and then those in the PID namespaces below, the innermost last.

        :raises ProcessLookupError: it has gone.
        """
        return [int(number) for number in self.status().get("NSpid", str(self.pid)).split()]

    def owner(self) -> int:
        """The user that it runs as, by number.

        :raises ProcessLookupError: it has gone.
        """
        return int(self.status()["Uid"].split()[1])

    def is_listening(self) -> bool:
        """Whether it has a handler for the request, as far as is known (gVisor does not say).

        :raises ProcessLookupError: it has gone.
        """
        caught = self.status().get("SigCgt")
        return caught is None or bool(int(caught, 16) >> (ASK - 1) & 1)


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on.

    :raises ProcessLookupError: there is no such process.
    """
    return _read(PROC / str(pid) / "stat").rpartition(b")")[2].split()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError from None


@dataclass(frozen=True)
class Arbiter:
    """A process that is gunicorn's main one, under our supervision."""

    process: Process
    descriptor: int  #: of its page

    @property
    def pid(self) -> int:
        return self.process.pid

    def page(self) -> Page:
        """What its page says now, or has said last.

        :raises DrainError: it has spoilt its page.
        """
        page = _read_page(self.descriptor)
        if page is None:
            raise DrainError(f"process {self.pid} has spoilt its page: nobody knows its phase")
        return page

    def state(self) -> str:
        with contextlib.suppress(ProcessLookupError):
            return self.process.state()
        return "X"

    def signal(self, number: signal.Signals) -> None:
        """Send it, if there is still somebody to hear it.

        :raises DrainError: it is another user's.
        """
        try:
            if not self.process.has_gone():
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            raise _forbidden(self.pid) from None


def _forbidden(pid: int) -> DrainError:
    """What the kernel has not allowed."""
    try:
        owner = Process.of(pid).owner()
    except (ProcessLookupError, PermissionError):  # hidepid, see proc(5)
        return DrainError(f"process {pid} is another user's: run this as that user")
    if owner == os.geteuid():
        return DrainError(
            f"process {pid} has rights that this has not, so it may not be looked at (capabilities"
            " of its program, perhaps): send SIGTERM instead"
        )
    return DrainError(f"process {pid} is another user's: run this as user {owner}")


# Which arbiter


def _choose(arguments: argparse.Namespace, opened: contextlib.ExitStack) -> Arbiter:
    if not os.path.lexists(PROC / "self"):
        raise DrainError("this needs Linux, and its /proc: send SIGTERM instead")
    try:
        is_ours = os.readlink(PROC / "self") == str(os.getpid())
    except FileNotFoundError:
        is_ours = False  # of a PID namespace in which we have no number
    if not is_ours:
        raise DrainError(
            "the /proc here is that of another PID namespace: mount one of this namespace, or run"
            " this in the container itself, with docker exec or kubectl exec"
        )
    if arguments.pidfile is not None:
        pid = _read_pidfile(arguments.pidfile)
        return _look_at(pid, f"process {pid} (so says {arguments.pidfile})", opened)
    if arguments.pid is not None:
        return _look_at(arguments.pid, f"process {arguments.pid}", opened)
    return _look_around(opened)


def _read_pidfile(path: Path) -> int:
    try:
        # It may be a pipe that nobody writes into, or a device without an end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            text = os.read(descriptor, 64)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DrainError(f"there is no process id in {path}: {error.strerror}") from None
    if re.fullmatch(rb"\s*[0-9]{1,10}\s*", text):
        return int(text)
    what = f"it begins with {text.decode(errors='replace')[:20]!r}" if text else "it is empty"
    raise DrainError(f"there is no process id in {path}: {what}")


def _look_at(pid: int, name: str, opened: contextlib.ExitStack) -> Arbiter:
    """The arbiter that the user has named."""
    try:
        process = Process.of(pid)
        numbers = process.numbers()
        if len(numbers) > 1:
            raise DrainError(
                f"{name} is in a container of its own, where its number is {numbers[-1]}: run this"
                " in there, with docker exec or kubectl exec"
            )
        command = process.command()
        arbiter, others = _find_page(process, opened)
    except ProcessLookupError:
        if _is_hidden(pid):
            raise _forbidden(pid) from None
        raise DrainError(f"there is no {name}") from None
    except PermissionError:
        raise _forbidden(pid) from None
    if arbiter is not None:
        return arbiter
    if not others:
        raise DrainError(
            f"{name}, {command!r}, is no gunicorn that gracefulworker looks after, if it is not"
            " just starting or ending: start it with -k gracefulworker.gthread, .sync, .gevent or"
            " .uvicorn, or with gracefulworker.hooks"
        )
    if others[0] == pid:
        raise DrainError(
            f"{name} is gunicorn's main process, and something has taken its handler of"
            f" {ASK.name}, with which it would be asked: send SIGTERM instead"
        )
    if others[0]:
        raise DrainError(f"{name} is not gunicorn's main process: that is {others[0]}")
    raise DrainError(f"{name} is still starting")


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process, and /proc does not show it (hidepid, see proc(5))."""
    if pid <= 0 or (PROC / str(pid)).exists():
        return False
    try:
        os.getpgid(pid)
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _look_around(opened: contextlib.ExitStack) -> Arbiter:
    """The only arbiter that is running in this container, or the only one of the nearest user."""
    processes: dict[int, list[Process]] = {}  # by user
    of_others = elsewhere = 0
    here = _cgroups("self")
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            process = Process.of(int(entry.name))
            owner = process.owner()
            if len(process.numbers()) > 1 or not _is_within(_cgroups(entry.name), here):
                elsewhere += 1
            elif os.geteuid() in (0, owner):
                processes.setdefault(owner, []).append(process)
            else:
                of_others += 1
        except ProcessLookupError:
            continue
        except PermissionError:  # hidepid=1, see proc(5)
            of_others += 1
    for group in _by_nearness(processes):
        found = []
        for process in group:
            try:
                arbiter, _ = _find_page(process, opened)
            except ProcessLookupError:
                continue
            except PermissionError:
                of_others += 1
                continue
            if arbiter is not None:
                found.append(arbiter)
        if len(found) == 1:
            return found[0]
        if found:
            pids = ", ".join(map(str, sorted(arbiter.pid for arbiter in found)))
            raise DrainError(f"there are several to choose from ({pids}): give --pid or --pidfile")
    not_seen = []
    as_its_user = "(run this as the service's user)"
    if of_others:
        not_seen.append(f"processes of other users: {of_others} {as_its_user}")
    if _is_hidden(1):
        not_seen.append(f"those that /proc hides {as_its_user}")
    if elsewhere:
        not_seen.append(
            f"in other containers or cgroups: {elsewhere} (run this where the service runs, with"
            " docker exec or kubectl exec, or give --pid or --pidfile)"
        )
    sentence = "no gunicorn that gracefulworker looks after is running here"
    if not_seen:
        sentence += f"; not looked at: {', '.join(not_seen)}"
    raise DrainError(sentence)


def _by_nearness(processes: dict[int, list[Process]]) -> list[list[Process]]:
    """Our own processes, those of the user that PID 1 runs as, and then all others'.

    Root acts for anybody. But where the service is root's, or that of the container's own user,
    nobody else can come between by pretending to be a gunicorn.
    """
    nearest = [os.geteuid()]
    with contextlib.suppress(ProcessLookupError, PermissionError):
        nearest.append(Process.of(1).owner())
    groups = [processes.pop(owner, []) for owner in nearest]
    return [*groups, [process for group in processes.values() for process in group]]


def _cgroups(pid: str) -> dict[str, str]:
    """A process's path in each hierarchy of cgroups, see cgroups(7); none where there are none."""
    lines: list[str] = []
    with contextlib.suppress(ProcessLookupError):
        lines = _read(PROC / pid / "cgroup").decode(errors="replace").splitlines()
    return {name: path for _, name, path in (line.split(":", 2) for line in lines)}


def _is_within(theirs: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    """Whether each of their cgroups is ours, or below it."""
    return theirs.keys() == ours.keys() and all(
        f"{theirs[name]}/".startswith(f"{path.rstrip('/')}/") and "/.." not in theirs[name]
        for name, path in ours.items()
    )


# The page


def _find_page(process: Process, opened: contextlib.ExitStack) -> tuple[Arbiter | None, list[int]]:
    """The process as an arbiter, if it is one; else those that its pages name (0: none yet).

    :raises ProcessLookupError: it has gone.
    :raises PermissionError: it is another user's.
    """
    others = []
    try:
        owner = process.directory.stat()
        with _acting_as(owner.st_uid, owner.st_gid):
            for entry in (process.directory / "fd").iterdir():
                descriptor = _open_page(entry)
                if descriptor is None:
                    continue
                page = _read_page(descriptor)
                if page is not None and page.arbiter == process.pid and _hears(process, page):
                    opened.callback(os.close, descriptor)
                    return Arbiter(process, descriptor), []
                os.close(descriptor)
                if page is not None:
                    others.append(page.arbiter)
    except FileNotFoundError:
        raise ProcessLookupError from None
    return None, others


def _hears(process: Process, page: Page) -> bool:
    """Whether it may be asked; one that ends need not be, and has given up its handlers by then."""
    return page.phase >= Phase.DRAINING or process.is_listening()


def _open_page(entry: Path) -> int | None:
    """A descriptor, if that of the other process is called like a page."""
    try:
        if os.readlink(entry).startswith(f"/memfd:{NAME} "):
            # It may be something else by now, on which an open would block.
            return os.open(entry, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, ProcessLookupError):
        pass  # closed meanwhile
    except OSError as error:
        if error.errno != errno.ENXIO:  # a socket by now
            raise
    return None


def _read_page(descriptor: int) -> Page | None:
    """What the page says now; None when it is none of ours, or of another version."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    head = os.pread(descriptor, 8 * HEAD_CELLS, 0)
    if len(head) < 8 * HEAD_CELLS:
        return None
    page = Page(head)
    return page if page.is_one() else None


@contextlib.contextmanager
def _acting_as(uid: int, gid: int) -> Iterator[None]:
    """As root in a container, look with the eyes of the process's own user.

    Another user's /proc/PID/fd takes CAP_SYS_PTRACE, which containers do not have; an image whose
    entry point gives root up for gunicorn has its preStop hook run as root.
    """
    if os.geteuid() != 0 or uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
