"""`gracefulworker drain`: the delay before SIGTERM, and one delay, not two."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from harness import Server, Storm, assert_clean, assert_within, now

from gracefulworker.shared.page import Page
from gracefulworker.tools import cli
from gracefulworker.tools.cli.drain import _is_within

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux's /proc")

HOOK = "from gracefulworker.hooks import when_ready\n"


@pytest.fixture
def drain(capsys):
    """Runs the command; returns its status and what it said."""

    def run(*arguments):
        status = cli.main(["drain", *map(str, arguments)])
        return status, capsys.readouterr().err

    return run


def begin(server, *arguments, **options):
    """The command as a process of its own, which waits."""
    command = [sys.executable, "-m", "gracefulworker", "drain", "--pid", str(server.pid)]
    # In the background of a script SIGINT is ignored, and so it would be here.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([*command, *arguments], preexec_fn=heed, **options)
    server.wait_log("^lame duck:")
    return process


@pytest.mark.contract(1)
def test_then_sigterm_one_delay_and_nothing_lost(serve, worker, drain):
    server = serve(worker, workers=2, delay=0.6)
    with Storm(server.addresses[0], clients=3, path="/sleep/0.01") as storm:
        storm.wait_served(10)
        began = now()
        assert drain("--pid", server.pid) == (0, "")
        over = now()
        assert 0.6 <= over - began
        assert_within(0.75, over, began, "the delay")
        storm.wait_served(10)  # until SIGTERM
        term = server.signal(signal.SIGTERM)
        assert_within(0.1, server.wait_draining().at, term, "draining")
        storm.wait_over()
    assert not storm.losses, storm.census()
    assert not storm.out_of_order
    assert_within(0.5, server.wait_gone(), term, "gone")
    assert_clean(server)
    assert server.wait_log("^lame duck: ").message == (
        "lame duck: drain request received, serving for 0.6 s more, and on until SIGTERM"
    )


def test_in_the_delay_the_answers_say_close_and_what_restarts_is_refused(serve, worker):
    server = serve(worker, delay=0)
    with begin(server) as process:
        assert process.wait(10) == 0
    assert server.fetch().closes
    server.signal(signal.SIGHUP)
    server.wait_log("^SIGHUP refused")
    assert server.fetch().kind == "response"
    assert not server.grep("^draining")
    server.signal(signal.SIGTERM)
    assert_clean(server)


def test_a_sigterm_in_the_delay_does_not_cut_it_short(serve):
    server = serve("gracefulworker.gthread", delay=0.8)
    began = now()
    with begin(server) as process:
        server.signal(signal.SIGTERM)
        assert server.wait_draining().at - began >= 0.79
        assert process.wait(10) == 0
    assert_clean(server)


def test_stop_sends_sigterm_too(serve, worker, drain):
    server = serve(worker, delay=0.3)
    began = now()
    assert drain("--pid", server.pid, "--stop") == (0, "")
    assert server.wait_gone() - began >= 0.3
    assert_clean(server)


def test_after_a_late_sigterm_there_is_all_the_time_to_finish(serve):
    """The time until SIGTERM is nobody's: a deadline that counts it would cut at once."""
    server = serve("gracefulworker.gthread", delay=0, config="graceful_timeout = 1\n")
    client, held = server.hold("it")
    with begin(server) as process:
        assert process.wait(10) == 0
    with pytest.raises(AssertionError, match="passed with 0"):
        server.wait_log("^draining", timeout=1.2)
    server.signal(signal.SIGTERM)
    server.wait_draining()
    held.release()
    assert client.ending().closes
    assert_clean(server)


def test_in_a_service_that_is_stopping_it_waits_for_the_delay(serve, drain):
    server = serve("gracefulworker.sync", delay=0.4)
    server.terminate()
    assert drain("--pid", server.pid) == (0, "")
    assert now() - server.term_at >= 0.39


def test_by_pidfile_and_for_another_worker_class(serve, drain, tmp_path):
    pidfile = tmp_path / "pid"
    server = serve("gthread", delay=0.2, config=HOOK, options=("--pid", str(pidfile)))
    assert drain("--pidfile", pidfile) == (0, "")
    assert server.fetch().kind == "response"
    term = server.signal(signal.SIGTERM)
    assert_within(0.1, server.wait_draining().at, term, "draining")


def test_with_quiet_it_returns_early(serve, drain):
    server = serve("gracefulworker.gthread", delay=60, env={"GRACEFUL_QUIET": "0.3"})
    began = now()
    assert drain("--pid", server.pid) == (0, "")
    assert_within(0.6, now(), began, "the delay")


def test_what_has_been_asked_for_is_not_taken_back(serve):
    server = serve("gracefulworker.sync", delay=60)
    with begin(server, "--stop", stderr=subprocess.PIPE, text=True) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert said == (
        f"gracefulworker drain: interrupted; process {server.pid} goes on all the same, and is a"
        " lame duck until SIGTERM\n"
    )
    assert server.fetch().closes
    assert not server.grep("^Handling signal: term")


# -- one that stands still


@pytest.mark.parametrize("timeout", (None, "0.2"))
def test_it_gives_up_when_the_main_process_stands_still(serve, drain, monkeypatch, timeout):
    monkeypatch.setattr("gracefulworker.tools.cli.drain.PATIENCE", 0.2)
    server = serve("gracefulworker.sync", delay=0.1)
    server.signal(signal.SIGSTOP)
    status, said = drain("--pid", server.pid, *(["--timeout", timeout] if timeout else []))
    assert status == 1
    form = rf"process {server.pid} has not heard of it in [\d.]+ s: it is stopped \(SIGSTOP"
    assert re.search(form, said)
    server.signal(signal.SIGCONT)
    assert server.wait_log("^lame duck: drain request")


def test_it_gives_up_when_the_delay_does_not_end(serve, monkeypatch, capsys):
    monkeypatch.setattr("gracefulworker.tools.cli.drain.PATIENCE", 0.2)
    server = serve("gracefulworker.sync", delay=0.1)
    server.signal(signal.SIGURG)
    server.wait_log("^lame duck")
    # As if it had been stopped within the delay.
    monkeypatch.setattr(Page, "delay_over_at", 0)
    assert cli.main(["drain", "--pid", str(server.pid)]) == 1
    said = capsys.readouterr().err
    assert "has not ended its delay after" in said and "its main thread stands still" in said


def test_a_timeout_shorter_than_the_delay(serve, drain):
    server = serve("gracefulworker.sync", delay=60)
    status, said = drain("--pid", server.pid, "--timeout", "0.2")
    assert status == 1
    assert re.search(r"goes on for 5\d\.\d s more, which is longer than --timeout allows", said)
    with pytest.raises(SystemExit):
        drain("--timeout", "0")


def test_stop_is_for_one_that_stands_still_too(serve, drain):
    server = serve("gracefulworker.sync", delay=0.1)
    server.signal(signal.SIGSTOP)
    assert drain("--pid", server.pid, "--timeout", "0.1", "--stop")[0] == 1
    server.signal(signal.SIGCONT)
    assert_clean(server)


# -- whom it finds


def only(monkeypatch, tmp_path, *pids):
    """A /proc with these processes only: the machine has other people's services."""
    for pid in {*pids, os.getpid()}:
        (tmp_path / str(pid)).symlink_to(f"/proc/{pid}")
    (tmp_path / "self").symlink_to(str(os.getpid()))
    monkeypatch.setattr("gracefulworker.tools.cli.drain.PROC", tmp_path)


def test_it_looks_for_the_arbiter(serve, drain, monkeypatch, tmp_path):
    server = serve("gracefulworker.gthread", workers=2, delay=0.1)
    only(monkeypatch, tmp_path, server.pid, *server.worker_pids)
    assert drain() == (0, "")
    assert server.grep("^lame duck")


def test_several_and_none(serve, drain, monkeypatch, tmp_path):
    servers = [serve("gracefulworker.sync") for _ in range(2)]
    first, second = sorted(server.pid for server in servers)
    only(monkeypatch, tmp_path, first, second)
    status, said = drain()
    assert status == 1
    assert f"there are several to choose from ({first}, {second}): give --pid or --pidfile" in said
    for name in (first, second):
        (tmp_path / str(name)).unlink()
    status, said = drain()
    assert status == 1
    assert "no gunicorn that gracefulworker looks after is running here" in said
    assert not any(server.grep("^lame duck") for server in servers)


def test_a_stock_gunicorn_is_left_alone(serve, drain):
    server = serve("sync")
    status, said = drain("--pid", server.pid)
    assert status == 1
    assert re.search(rf"process {server.pid}, '.*gunicorn.*', is no gunicorn that grace", said)
    assert "just starting or ending: start it with -k gracefulworker.gthread" in said
    server.signal(signal.SIGURG)  # nor would it mind
    assert server.fetch().kind == "response"


def test_a_worker_is_not_the_main_process(serve, drain):
    server = serve("gracefulworker.sync")
    status, said = drain("--pid", server.worker_pids[0])
    assert status == 1
    assert f"is not gunicorn's main process: that is {server.pid}" in said


def test_nobody_there(drain, tmp_path):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert drain("--pid", process.pid) == (
        1,
        f"gracefulworker drain: there is no process {process.pid}\n",
    )
    status, said = drain("--pidfile", tmp_path / "none")
    assert status == 1 and "there is no process id in" in said


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"gunicorn\n", "it begins with 'gunicorn\\n'"),
        (b"12 34", "it begins with '12 34'"),
        (b"\xff\xfe", "it begins with "),
        (b"1" * 100_000, "it begins with '1111"),
        ("directory", "Is a directory"),
        ("pipe", "it is empty"),  # nobody writes into it
        ("/dev/zero", "it begins with "),
    ],
)
def test_what_is_no_pidfile(drain, tmp_path, content, why):
    path = tmp_path / "pid"
    match content:
        case bytes():
            path.write_bytes(content)
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case device:
            path = Path(device)
    status, said = drain("--pidfile", path)
    assert status == 1
    assert said.startswith(f"gracefulworker drain: there is no process id in {path}: {why}")


def test_the_arbiter_goes_meanwhile(serve):
    server = serve("gracefulworker.sync", delay=60)
    process = begin(server)
    server.signal(signal.SIGKILL)  # and nobody reaps it yet
    assert process.wait(10) == 1


def test_elsewhere_it_says_what_it_needs(drain, monkeypatch, tmp_path):
    monkeypatch.setattr("gracefulworker.tools.cli.drain.PROC", tmp_path)
    status, said = drain()
    assert status == 1 and "this needs Linux" in said


#: Holds pages that are none, and is asked for nothing; the arguments name the kinds. "perfect" is
#: all that a gunicorn of ours shows, of another user; "ending" and "deaf" have lost their handlers.
PRETENDER = """
import ctypes, os, signal, sys
from gracefulworker.phases import Phase
from gracefulworker.shared.page import HEAD_CELLS, NAME, Page
for kind in {*sys.argv[1:]} - {"perfect", "ending", "deaf"}:
    fd = os.memfd_create(NAME)
    if kind == "empty":
        continue
    os.ftruncate(fd, 8 * HEAD_CELLS if kind != "short" else 8)
    if kind == "nonsense":
        os.pwrite(fd, b"\\xff" * 8 * HEAD_CELLS, 0)
if "perfect" in sys.argv:
    os.setgid(65534), os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, as after an exec
    page = Page()  # its name shows among the mappings' descriptors
    page.arbiter = os.getpid()
    signal.signal(signal.SIGURG, lambda *_: print("asked", flush=True))
elif {"ending", "deaf"} & {*sys.argv}:
    page = Page()
    page.arbiter = os.getpid()
    page.phase = Phase.STOPPED if "ending" in sys.argv else Phase.SERVING
print("pretends", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def pretend():
    """Starts somebody who pretends; all are gone when the test is over."""
    processes = []

    def start(*kinds):
        process = subprocess.Popen(
            [sys.executable, "-c", PRETENDER, *kinds],
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "pretends\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_files_of_the_same_name_are_not_taken_for_a_page(
    serve, drain, pretend, monkeypatch, tmp_path
):
    server = serve("gracefulworker.sync", delay=0.1)
    other = pretend("empty", "short", "zeros", "nonsense")
    only(monkeypatch, tmp_path, server.pid, other.pid)
    assert drain() == (0, "")
    assert server.grep("^lame duck")
    status, said = drain("--pid", other.pid)
    assert status == 1 and "is no gunicorn that gracefulworker looks after" in said


def test_one_that_has_lost_its_handler(drain, pretend):
    """At its very end it need not be asked any more; before, it cannot be."""
    assert drain("--pid", pretend("ending").pid) == (0, "")
    deaf = pretend("deaf")
    status, said = drain("--pid", deaf.pid)
    assert status == 1
    assert f"process {deaf.pid} is gunicorn's main process, and something has taken its" in said


#: As another user, where /proc shows less.
HIDDEN = """
import os, sys
from gracefulworker.tools import cli
cli.main(["drain", "--pid", "0"])  # imports what that user may not read, perhaps
os.setgid(65534), os.setuid(65534)
sys.exit(cli.main(["drain", *sys.argv[1:]]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a second user")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.parametrize(("hidepid", "what"), [(1, "of other users: "), (2, "that /proc hides ")])
def test_what_proc_hides_is_said(hidepid, what):
    script = f'mount -o remount,hidepid={hidepid} /proc && "$@"; exit $?'  # a shell as PID 1
    contain = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
    for arguments, sentence in (
        ([], f"; not looked at: .*{what}.*run this as the service's user"),
        (["--pid", "1"], "process 1 is another user's: run this as that user"),
    ):
        command = [*contain, "sh", sys.executable, "-c", HIDDEN, *arguments]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 1
        assert re.search(f"\ngracefulworker drain: .*{sentence}.*\n$", ran.stderr), ran.stderr


@pytest.fixture
def cgroup():
    """A cgroup below our own, in some hierarchy: its directory."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in (names or "unified", "."):
            directory = Path("/sys/fs/cgroup", name, path.lstrip("/"), f"gw-{uuid.uuid4().hex}")
            if (directory.parent / "cgroup.procs").exists() and os.access(
                directory.parent, os.W_OK
            ):
                directory.mkdir()
                yield directory
                directory.rmdir()
                return
    pytest.skip("there is no cgroup that may be made here")


def drain_within(cgroup, *arguments):
    """The command in a container's cgroup, with the machine's own /proc."""
    script = 'echo $$ > "$0"/cgroup.procs && exec "$@"'
    command = [sys.executable, "-m", "gracefulworker", "drain", *arguments]
    done = subprocess.run(
        ["sh", "-c", script, str(cgroup), *command], capture_output=True, text=True
    )
    return done.returncode, done.stderr


def test_it_looks_in_its_own_container_only(serve, cgroup):
    theirs = serve("gracefulworker.sync")
    status, said = drain_within(cgroup)
    assert status == 1
    assert "; not looked at: " in said and "in other containers or cgroups: " in said
    ours = serve("gracefulworker.sync", delay=0.1)
    for pid in (ours.pid, *ours.worker_pids):
        (cgroup / "cgroup.procs").write_text(str(pid))
    assert drain_within(cgroup) == (0, "")
    assert ours.grep("^lame duck") and not theirs.grep("^lame duck")
    ours.close()  # before its cgroup


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a second user")
def test_another_user_cannot_come_between_root_and_its_own(serve, pretend, cgroup):
    server = serve("gracefulworker.sync", delay=0.1)
    other = pretend("perfect")
    for pid in (other.pid, server.pid, *server.worker_pids):
        (cgroup / "cgroup.procs").write_text(str(pid))
    assert drain_within(cgroup) == (0, "")
    assert server.grep("^lame duck")
    server.signal(signal.SIGTERM)
    server.wait_gone()
    # Now that there is nobody else, root acts for that user: images give root up for gunicorn.
    status, said = drain_within(cgroup, "--timeout", "0.1")
    assert status == 1 and f"process {other.pid} has not heard of it" in said
    assert other.stdout.readline() == "asked\n"
    other.kill()
    other.wait()  # before its cgroup


@pytest.mark.parametrize(
    ("theirs", "answer"),
    [
        ({"": "/a"}, True),
        ({"": "/a/b"}, True),
        ({"": "/ab"}, False),
        ({"": "/"}, False),
        ({"": "/../c"}, False),
        ({"": "/a", "pids": "/a"}, False),
    ],
)
def test_within_a_cgroup(theirs, answer):
    assert _is_within(theirs, {"": "/a"}) is answer
    assert _is_within({"": "/../c"}, {"": "/"}) is False, "a neighbour, from a cgroup namespace"


class Contained(Server):
    """In a PID namespace of its own, where gunicorn is PID 1."""

    def _command(self, command):
        return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command], []

    @property
    def arbiter(self):
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text())


@pytest.fixture
def contained(request):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    server = Contained("gracefulworker.sync", delay=0.1)
    request.node.servers = [server]
    try:
        yield server.start()
    finally:
        server.close()


def test_a_container_is_drained_from_inside(contained, drain, monkeypatch, tmp_path):
    pid = contained.arbiter
    status, said = drain("--pid", pid)
    assert status == 1
    assert f"process {pid} is in a container of its own, where its number is 1" in said
    only(monkeypatch, tmp_path, pid)
    status, said = drain()
    assert status == 1 and "in other containers or cgroups: 1 (run this where the" in said
    enter = ["nsenter", f"--target={pid}"]
    command = [sys.executable, "-m", "gracefulworker", "drain"]
    for half in ("--pid", "--mount"):
        outside = subprocess.run([*enter, half, *command], capture_output=True, text=True)
        assert outside.returncode == 1
        assert "the /proc here is that of another PID namespace" in outside.stderr
    inside = subprocess.run([*enter, "--pid", "--mount", *command], capture_output=True, text=True)
    assert (inside.returncode, inside.stderr) == (0, "")
    assert contained.wait_log("^lame duck: drain request")
