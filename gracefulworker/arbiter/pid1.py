"""What the process finds around it in a container: a shell that keeps SIGTERM to itself.

What may be changed here: the list of shells, and the sentence. A check must never stop the start:
where /proc is absent or unreadable the answer is that nothing is wrong.

``CMD gunicorn app`` in a Dockerfile, and a start script without ``exec``, make a shell PID 1. The
platform sends SIGTERM to PID 1 alone, the shell does not pass it on, and the service is killed at
the end of the grace period without ever having begun its shutdown. Nothing else shows that.
"""

from __future__ import annotations

from pathlib import Path

#: Names of shells, as programs are named in /proc.
SHELLS = frozenset(
    {"sh", "ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "tcsh", "yash", "zsh"}
)

#: Steps from a process up to PID 1, at the most: a process table that is read while it changes can
#: show a circle.
MAX_ANCESTORS = 64


def shell_as_pid1(pid: int, proc: Path = Path("/proc")) -> str | None:
    """Return a sentence, with the fix, when SIGTERM ends at a shell above `pid`; else None.

    :param pid: the arbiter's.
    :param proc: where procfs is mounted (proc(5)).
    """
    if pid == 1:
        return None
    try:
        shell = _shell(proc / "1")
        if shell is None or not _descends_from_pid1(pid, proc):
            return None
    except (OSError, ValueError, IndexError):
        # No procfs (macOS), one that hides other users' processes, or something else in its place.
        return None
    return (
        f"SIGTERM will not arrive: PID 1 is a shell ({shell}), which receives it and does not pass "
        "it on (unless it has a trap for it): start with `exec gunicorn ...` in the script, or "
        'with CMD ["gunicorn", ...] (the exec form) in the Dockerfile'
    )


def _shell(process: Path) -> str | None:
    """Return the name of the shell that the process is, or None."""
    # A script that is started by its #! line bears its own name in comm; its interpreter is the
    # first argument then. A login shell has a dash before its name there.
    comm = (process / "comm").read_bytes().strip()
    interpreter = (process / "cmdline").read_bytes().split(b"\0")[0].rsplit(b"/")[-1]
    for name in (comm, interpreter.lstrip(b"-")):
        text = name.decode(errors="replace")
        if text in SHELLS:
            return text
    return None


def _descends_from_pid1(pid: int, proc: Path) -> bool:
    """Tell whether PID 1 is an ancestor. What `docker exec` starts descends from outside."""
    for _ in range(MAX_ANCESTORS):
        if pid <= 1:
            break
        # comm, the second field, stands in parentheses and may hold spaces and parentheses
        # itself; state and parent follow the last one.
        fields = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        pid = int(fields[1])
    return pid == 1
