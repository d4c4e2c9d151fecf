"""`gracefulworker drain`: LAME_DUCK begins now; returns when the delay is over.

For Kubernetes' `preStop.exec` and for scripts: the SIGTERM that follows begins DRAINING at once.

The arbiter's shared page is a file in memory whose name shows in /proc, and which only processes
of the same service have: so the page tells whether a process is supervised by us, which of them is
the arbiter, and in which phase it is. What may be changed here: how an arbiter is found, and what
is said. The page is only read; what is asked of the arbiter is asked with a signal.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gracefulworker.phases import Phase
from gracefulworker.shared.page import ASK, NAME, SIZE, Page

#: Seconds between two looks at the phase.
STEP = 0.02

PROC = Path("/proc")


class DrainError(Exception):
    """Nothing has been asked of anybody, or it was of no use: one sentence."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments: which arbiter, and whether to stop it."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--pid", type=int, help="gunicorn's main process; else it is looked for")
    which.add_argument("--pidfile", type=Path, metavar="FILE", help="gunicorn's --pid FILE")
    parser.add_argument(
        "--stop",
        action="store_true",
        help="then send SIGTERM, too: for images in which PID 1 does not pass it on",
    )


def run(arguments: argparse.Namespace) -> int:
    """Begin the delay and wait for its end; 1 when there is nobody to drain."""
    try:
        pid, page = _choose(arguments)
        with _asking(pid):
            os.kill(pid, ASK)
            _wait(pid, page)
            if arguments.stop:
                os.kill(pid, signal.SIGTERM)
    except DrainError as error:
        print(f"gracefulworker drain: {error}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _asking(pid: int) -> Iterator[None]:
    """:raises DrainError: when the process has gone meanwhile, or is another user's."""
    try:
        yield
    except ProcessLookupError:
        raise DrainError(f"process {pid} has gone before the delay was over") from None
    except PermissionError:
        raise _not_ours(pid) from None


def _not_ours(pid: int) -> DrainError:
    return DrainError(f"process {pid} is another user's: run this as that user")


def _wait(pid: int, page: Page) -> None:
    """Wait until the delay is over.

    :raises ProcessLookupError: the arbiter has gone before.
    """
    while page.phase < Phase.DRAINING and not page.delay_over_at:
        if _is_dead(pid):
            raise ProcessLookupError
        time.sleep(STEP)


# Which arbiter


def _choose(arguments: argparse.Namespace) -> tuple[int, Page]:
    if not (PROC / "self" / "fd").is_dir():
        raise DrainError("this needs Linux, and its /proc: send SIGTERM instead")
    pid = arguments.pid
    if arguments.pidfile is not None:
        pid = _read_pidfile(arguments.pidfile)
    return _look_around() if pid is None else _look_at(pid)


def _read_pidfile(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise DrainError(f"there is no process id in {path}: {error}") from None


def _look_at(pid: int) -> tuple[int, Page]:
    """The arbiter that the user has named."""
    try:
        page = _find_page(pid)
    except ProcessLookupError:
        raise DrainError(f"there is no process {pid}") from None
    except PermissionError:
        raise _not_ours(pid) from None
    if page is None:
        raise DrainError(
            f"process {pid} ({_name(pid)}) is no gunicorn that gracefulworker looks after: start it"
            " with -k gracefulworker.gthread, .sync or .gevent, or with gracefulworker.hooks"
        )
    if page.arbiter != pid:
        raise DrainError(
            f"process {pid} is not gunicorn's main process: that is {page.arbiter}"
            if page.arbiter
            else f"process {pid} is still starting"
        )
    return pid, page


def _look_around() -> tuple[int, Page]:
    """The only arbiter that is running."""
    found: list[tuple[int, Page]] = []
    hidden = 0
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        try:
            page = _find_page(pid)
        except ProcessLookupError:
            continue
        except PermissionError:
            hidden += 1
            continue
        if page is not None and page.arbiter == pid:
            found.append((pid, page))
    if len(found) == 1:
        return found[0]
    if found:
        pids = ", ".join(str(pid) for pid, _ in sorted(found, key=lambda each: each[0]))
        raise DrainError(f"there are several to choose from ({pids}): give --pid or --pidfile")
    others = f" ({hidden} processes are other users', and were not looked at)" if hidden else ""
    raise DrainError(f"no gunicorn that gracefulworker looks after is running here{others}")


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (PROC / str(pid) / "comm").read_text().strip()
    return "?"


# The page


def _find_page(pid: int) -> Page | None:
    """The page that the process has, None if it has none.

    :raises ProcessLookupError: there is no such process, or only what is left of it.
    :raises PermissionError: it is another user's.
    """
    process = PROC / str(pid)
    try:
        owner = process.stat()
        with _acting_as(owner.st_uid, owner.st_gid):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    if os.readlink(descriptor).startswith(f"/memfd:{NAME} "):
                        return _read_page(descriptor)
    except FileNotFoundError:
        raise ProcessLookupError from None
    if _is_dead(pid):
        raise ProcessLookupError
    return None


def _read_page(path: Path) -> Page:
    with open(path, "rb") as file:
        return Page(mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ))


def _is_dead(pid: int) -> bool:
    """Whether it has ended, also if its parent has not looked yet."""
    try:
        state = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in (b"Z", b"X")


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
