"""PID 1 is a shell: read from a made-up /proc, and seen in a PID namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gracefulworker.arbiter.pid1 import SHELLS, shell_as_pid1


@pytest.fixture
def add_process(tmp_path):
    """Adds a process to the made-up /proc in tmp_path."""

    def add(pid, parent, comm, *arguments):
        directory = tmp_path / str(pid)
        directory.mkdir()
        (directory / "comm").write_text(f"{comm}\n")
        (directory / "cmdline").write_text("".join(f"{word}\0" for word in arguments))
        (directory / "stat").write_text(f"{pid} ({comm}) S {parent} 1 1 0 -1 4194304 75 0\n")

    return add


@pytest.mark.parametrize("shell", sorted(SHELLS))
def test_shell_is_named_with_the_fix(add_process, tmp_path, shell):
    add_process(1, 0, shell, f"/bin/{shell}", "-c", "gunicorn app; true")
    add_process(7, 1, "gunicorn")
    assert shell_as_pid1(7, tmp_path) == (
        f"SIGTERM will not arrive: PID 1 is a shell ({shell}), which receives it and does not "
        "pass it on (unless it has a trap for it): start with `exec gunicorn ...` in the script, "
        'or with CMD ["gunicorn", ...] (the exec form) in the Dockerfile'
    )


@pytest.mark.parametrize(
    ("interpreter", "shell"), [("/bin/sh", "sh"), ("bash", "bash"), ("-bash", "bash")]
)
def test_script_is_known_by_its_interpreter(add_process, tmp_path, interpreter, shell):
    add_process(1, 0, "docker-entrypoi", interpreter, "./docker-entrypoint.sh")
    add_process(7, 1, "gunicorn")
    sentence = shell_as_pid1(7, tmp_path)
    assert sentence and f"PID 1 is a shell ({shell})" in sentence


def test_shell_further_up_and_odd_names_between(add_process, tmp_path):
    add_process(1, 0, "sh", "sh")
    add_process(7, 1, "a) S 99 (b c")
    add_process(8, 7, ") (")
    add_process(9, 8, "gunicorn")
    assert shell_as_pid1(9, tmp_path) is not None


@pytest.mark.parametrize(
    ("comm", "arguments"),
    [
        ("tini", ["/sbin/tini", "--", "sh", "-c", "gunicorn app"]),
        ("systemd", ["/sbin/init"]),
        ("start.py", ["/usr/bin/python3", "start.py"]),
        ("kthreadd", []),
        ("pwsh-like", ["/opt/sh/run"]),
    ],
)
def test_what_is_no_shell(add_process, tmp_path, comm, arguments):
    add_process(1, 0, comm, *arguments)
    add_process(7, 1, "gunicorn")
    assert shell_as_pid1(7, tmp_path) is None


def test_we_are_pid1(add_process, tmp_path):
    add_process(1, 0, "sh", "sh")
    assert shell_as_pid1(1, tmp_path) is None


def test_shell_that_is_no_ancestor(add_process, tmp_path):
    # `docker exec` starts a process whose parent is outside the PID namespace.
    add_process(1, 0, "sh", "sh")
    add_process(7, 0, "gunicorn")
    assert shell_as_pid1(7, tmp_path) is None


def test_circle_of_parents_ends(add_process, tmp_path):
    add_process(1, 0, "sh", "sh")
    add_process(7, 8, "gunicorn")
    add_process(8, 7, "gunicorn")
    assert shell_as_pid1(7, tmp_path) is None


def test_no_procfs(tmp_path):
    assert shell_as_pid1(7, tmp_path / "absent") is None


def test_parent_that_has_gone(add_process, tmp_path):
    add_process(1, 0, "sh", "sh")
    add_process(7, 6, "gunicorn")
    assert shell_as_pid1(7, tmp_path) is None


@pytest.mark.parametrize("stat", ["", "7 (gunicorn", "7 (gunicorn) S", "7 (gunicorn) S x"])
def test_something_else_than_procfs(add_process, tmp_path, stat):
    add_process(1, 0, "sh", "sh")
    add_process(7, 1, "gunicorn")
    (tmp_path / "7" / "stat").write_text(stat)
    assert shell_as_pid1(7, tmp_path) is None


def test_here():
    """Whatever the machine of this test run has for PID 1, the real /proc is read."""
    answer = shell_as_pid1(os.getpid())
    assert answer is None or "exec" in answer


UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc"]


def in_pid_namespace(*command):
    """Run `command` as PID 1 of a PID namespace of its own, and return what it printed."""
    try:
        subprocess.run([*UNSHARE, "true"], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs util-linux's unshare")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs the right to make a PID namespace: {error.stderr.strip()}")
    done = subprocess.run(
        [*UNSHARE, *command],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip()


PROBE = """
import os
from gracefulworker.arbiter.pid1 import shell_as_pid1
print(os.getpid(), shell_as_pid1(os.getpid()))
"""


@pytest.fixture
def probe(tmp_path):
    path = tmp_path / "probe.py"
    path.write_text(PROBE)
    return f"{sys.executable} {path}"


def test_shell_as_real_pid1(probe):
    answer = in_pid_namespace("sh", "-c", f"{probe}; true")
    assert "PID 1 is a shell (sh)" in answer
    assert not answer.startswith("1 ")


def test_script_as_real_pid1(probe, tmp_path):
    script = tmp_path / "start"
    script.write_text(f"#!/bin/sh\n{probe}\ntrue\n")
    script.chmod(0o755)
    answer = in_pid_namespace(str(script))
    assert "PID 1 is a shell (sh)" in answer
    assert not answer.startswith("1 ")


def test_exec_is_the_cure(probe):
    assert in_pid_namespace("sh", "-c", f"exec {probe}") == "1 None"
