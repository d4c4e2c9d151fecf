"""A successor that cannot be forked, fails to boot or hangs (contract 8)."""

from __future__ import annotations

import functools
import itertools
import os
import signal

import pytest
from harness import Storm, assert_clean, line_up, wait_until

pytestmark = pytest.mark.contract(8)

#: A resource that only one process can hold: an abstract name, as good as a port of its own.
EXCLUSIVE = """
import os, socket
def post_fork(server, worker):
    worker.only = socket.socket(socket.AF_UNIX)
    worker.only.bind("\\0" + os.environ["GATE"] + ".only")
"""

#: While the file FLAG exists.
FLAGGED = """
import os, signal, time
from gunicorn.errors import HaltServer
def {hook}(server, worker):
    if os.path.exists(os.environ["FLAG"]):
        {what}
def on_exit(server):
    server.log.info("on_exit in %s", os.getpid())
"""

#: No process is to be had: with a pids cgroup, or RLIMIT_NPROC, fork itself says so.
NO_ROOM = 'raise BlockingIOError(11, "Resource temporarily unavailable")'

LEAVE_FIRST = "^No worker has booted beside those that it shall replace"
LEARNT = "^A worker has booted as soon as another had left"
TRIED_AGAIN = "Next try in"


def stop(server):
    server.terminate()
    assert_clean(server)


def flagged(tmp_path, hook, what):
    """The flag, and what a server of `FLAGGED` needs."""
    flag = tmp_path / "flag"
    options = {"config": FLAGGED.format(hook=hook, what=what), "env": {"FLAG": str(flag)}}
    return flag, options


def ask_until(server, pattern, count=1):
    """Requests that are all answered, until there are so many such lines."""
    while len(server.grep(pattern)) < count:
        assert server.fetch().status == 200


# -- a resource that only one can hold -------------------------------------------------------------


def test_who_wants_what_its_predecessor_holds_boots_after_it(serve, worker):
    """It is tried beside it once in the service's life, in the time of an overlap."""
    server = serve(
        worker,
        delay=0,
        config=EXCLUSIVE,
        options=("--max-requests", "3"),
        env={"GRACEFUL_OVERLAP": "1"},
    )
    ask_until(server, "^app imported", 2)
    server.wait_log(LEARNT)
    boots = len(server.worker_pids)
    assert boots > 2 and len(server.grep(TRIED_AGAIN)) == boots - 2
    ask_until(server, "^app imported", 5)
    assert len(server.worker_pids) == boots + 3, "it was tried again"
    assert len(server.grep(LEAVE_FIRST)) == len(server.grep(LEARNT)) == 1
    stop(server)


@pytest.mark.parametrize("whose", ("", "gracefulworker."), ids=("stock", "ours"))
@pytest.mark.parametrize("engine", ("sync", "gthread", "gevent"))
def test_without_overlap_the_order_is_as_on_stock(serve, whose, engine):
    server = serve(
        whose + engine,
        config=EXCLUSIVE,
        options=("--max-requests", "3"),
        env={"GRACEFUL_OVERLAP": "0", "GRACEFUL_DELAY": "0"},
    )
    while len(server.grep("^app imported")) < 5:
        assert server.fetch().kind != "refused"
    assert not server.grep("exited with code")


def test_hup_too(serve, worker):
    server = serve(worker, delay=0, config=EXCLUSIVE, env={"GRACEFUL_OVERLAP": "1"})
    old = server.fetch("/pid").body
    with Storm(server.addresses[0], clients=4) as storm:
        server.signal(signal.SIGHUP)
        server.wait_log("^app imported", count=2)
        storm.wait_served(20)
    assert not storm.losses and "refused" not in storm.census(), storm.census()
    assert server.fetch("/pid").body != old
    stop(server)


@pytest.mark.control(8)
def test_hup_too_on_stock(serve):
    server = serve("sync", config=EXCLUSIVE, options=("--graceful-timeout", "1"))
    server.hold("it")  # so that the old one is still there
    server.signal(signal.SIGHUP)
    server.wait_gone()
    assert server.status == 3


def test_a_developer_s_reload_too(serve, worker, tmp_path):
    """The new one is tried at once, and again when the old one has gone."""
    source = tmp_path / "source.py"
    source.touch()
    config = EXCLUSIVE + f"reload = True\nreload_engine = 'poll'\nreload_extra_files = ['{source}']"
    server = serve(worker, delay=0, config=config)
    times = itertools.count(2_000_000_000)

    def changed(boots):
        """The reloader has to have seen the source before it sees that it has changed."""
        os.utime(source, 2 * (next(times),))
        return len(server.grep("^app imported")) >= boots

    for boots in (2, 3):
        wait_until(functools.partial(changed, boots), "a new worker")
        assert server.fetch().kind == "response"
    stop(server)


# -- no process to be had --------------------------------------------------------------------------


@pytest.mark.parametrize("what", (NO_ROOM, "1 / 0"), ids=("fork", "hook"))
def test_one_that_died_is_followed_as_soon_as_that_is_possible(serve, worker, tmp_path, what):
    flag, options = flagged(tmp_path, "pre_fork", what)
    server = serve(worker, workers=2, delay=0, **options)
    flag.touch()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_log("^A worker could not be started: .* Next try in 0.4 s", count=1)
    assert [server.fetch().status for _ in range(5)] == [200] * 5
    assert bool(server.grep("^Exception while a worker was started")) == (what != NO_ROOM)
    flag.unlink()
    server.wait_log("^app imported", count=3)
    stop(server)


@pytest.mark.control(8)
@pytest.mark.parametrize("what", (NO_ROOM, "1 / 0"), ids=("fork", "hook"))
def test_one_that_died_is_followed_as_soon_as_that_is_possible_on_stock(serve, tmp_path, what):
    flag, options = flagged(tmp_path, "pre_fork", what)
    server = serve("sync", workers=2, **options)
    flag.touch()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_gone()
    assert server.status == 255


def test_where_there_is_no_room_for_one_more_each_is_recycled(serve, worker):
    config = f"def pre_fork(server, worker):\n    if server.WORKERS:\n        {NO_ROOM}\n"
    server = serve(
        worker,
        delay=0,
        config=config,
        options=("--max-requests", "3"),
        env={"GRACEFUL_OVERLAP": "1"},
    )
    ask_until(server, "^app imported", 4)
    assert len(server.grep(LEAVE_FIRST)) == 1
    stop(server)


# -- a boot that fails -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    (
        "raise ValueError",
        "raise KeyboardInterrupt",
        "raise StopIteration",
        "raise HaltServer('why', 7)",
        "raise SystemExit('words')",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ),
)
def test_one_that_fails_to_boot_is_tried_again_with_back_off(serve, worker, tmp_path, what):
    """However it fails; it never goes on as a second arbiter, which would end its siblings."""
    flag, options = flagged(tmp_path, "post_fork", what)
    server = serve(worker, delay=0, options=("--max-requests", "3"), **options)
    (old,) = server.worker_pids
    flag.touch()
    ask_until(server, TRIED_AGAIN, 3)
    assert int(server.fetch("/pid").body) == old
    assert len(server.worker_pids) - 1 == len(server.grep(TRIED_AGAIN)) <= 4
    flag.unlink()
    ask_until(server, "^app imported", 2)
    server.wait_log(rf"^Worker exiting \(pid: {old}\)")
    assert not server.grep(LEAVE_FIRST)
    stop(server)
    assert [line.message for line in server.grep("^on_exit")] == [f"on_exit in {server.pid}"]


@pytest.mark.control(8)
def test_one_that_fails_to_boot_is_tried_again_with_back_off_on_stock(serve, tmp_path):
    flag, options = flagged(tmp_path, "post_fork", "raise HaltServer('why', 7)")
    server = serve("sync", workers=2, **options)
    flag.touch()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    # The new one runs the arbiter's end, and that begins with its siblings.
    server.wait_log(rf"^Worker exiting \(pid: {server.worker_pids[1]}\)")


@pytest.mark.parametrize(
    ("kind", "workers"), (("sync", 1), ("gracefulworker.sync", 1), ("gracefulworker.sync", 2))
)
def test_the_last_one_that_cannot_boot_ends_the_service_as_on_stock(serve, tmp_path, kind, workers):
    """So that whoever started it hears of it."""
    broken = tmp_path / "broken"
    server = serve(kind, workers=workers, env={"APP_BROKEN": str(broken)})
    broken.touch()
    for pid in server.worker_pids:
        server.signal(signal.SIGKILL, pid)
    server.wait_gone()
    assert server.status == 3


@pytest.mark.parametrize("what", ("pass", "raise KeyboardInterrupt"), ids=("import", "hook"))
def test_the_first_boot_fails_as_on_stock(serve, worker, tmp_path, what):
    flag, options = flagged(tmp_path, "post_fork", what)
    flag.touch()
    options["env"]["APP_BROKEN"] = str(flag)
    server = serve(worker, workers=3, ready=False, **options)
    server.wait_gone()
    assert server.status == 3
    assert [line.message for line in server.grep("^on_exit")] == [f"on_exit in {server.pid}"]
    assert not server.grep(TRIED_AGAIN)


# -- a boot that hangs -----------------------------------------------------------------------------

#: Once.
HANG = "os.unlink(os.environ['FLAG']); server.log.info('hangs'); time.sleep(60)"


def test_one_that_hangs_keeps_no_other_from_being_recycled(serve, worker, tmp_path):
    flag, options = flagged(tmp_path, "post_fork", HANG)
    options["env"]["GRACEFUL_OVERLAP"] = "1"
    server = serve(worker, workers=2, delay=0, options=("--max-requests", "3"), **options)
    flag.touch()
    ask_until(server, "^hangs")
    ask_until(server, "^Worker exiting", 4)
    assert not flag.exists()
    stop(server)


# -- in DRAINING -----------------------------------------------------------------------------------


@pytest.mark.contract(3)
@pytest.mark.parametrize("hook", ("pre_fork", "post_fork"))
@pytest.mark.parametrize("what", ("1 / 0", "raise SystemExit(3)", "raise KeyboardInterrupt"))
def test_who_waits_is_served_though_a_hook_fails_at_first(serve, worker, tmp_path, hook, what):
    flag, options = flagged(tmp_path, hook, what)
    server = serve(worker, delay=0.5, **options)
    server.terminate()
    flag.touch()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_log("^Worker .* SIGKILL")
    queued = line_up(server, 3)
    draining = server.wait_draining().at
    wait_until(
        lambda: any(line.at > draining for line in server.grep(TRIED_AGAIN)), "a try in DRAINING"
    )
    flag.unlink()
    assert {client.ending().kind for client in queued} == {"response"}
    server.wait_gone()
