"""LAME_DUCK: from SIGTERM to the end of the delay the service serves as before (contract 1)."""

from __future__ import annotations

import signal

import pytest
from harness import Storm, assert_clean, assert_within, summary

pytestmark = pytest.mark.contract(1)


def fetch_until_turned_away(server):
    """One request after the other, each on a new connection; the last one is not an answer."""
    endings = [server.fetch()]
    while endings[-1].kind == "response":
        endings.append(server.fetch())
    return endings


@pytest.mark.tracker(2884, 3181, 1757)
def test_newcomers_are_served_until_the_delay_is_over(serve, worker):
    server = serve(worker, delay=0.5)
    term = server.terminate()
    *served, last = fetch_until_turned_away(server)
    assert last.kind == "refused"
    assert served and all(end.status == 200 and end.closes for end in served)
    assert last.at - term >= 0.5
    assert_within(0.6, served[-1].began, term, "the last answer")
    assert_clean(server)


@pytest.mark.control(1)
@pytest.mark.tracker(2884, 3181, 1757)
@pytest.mark.parametrize("stock", ("sync", "gthread", "gevent", "uvicorn"))
def test_newcomers_are_served_until_the_delay_is_over_on_stock(serve, stock):
    server = serve(stock, delay=2.0)  # which it does not know
    term = server.signal(signal.SIGTERM)
    *_, last = fetch_until_turned_away(server)
    assert last.kind in ("refused", "reset", "eof")
    assert last.at - term < 1.5


def ended_after_a_kill(server):
    """The harness's first request was answered, but it may still have been on the killed worker's
    books, and then it counts as cut: that is a matter of microseconds, and not the point here."""
    server.wait_gone()
    assert server.status in (0, 5)
    assert summary(server)["cut"] <= 1


@pytest.mark.parametrize("workers", (1, 2))
def test_a_killed_worker_is_replaced(serve, worker, workers):
    server = serve(worker, workers=workers, delay=0.7)
    server.terminate()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_log("^app imported", count=workers + 1)
    *served, last = fetch_until_turned_away(server)
    assert last.kind == "refused"
    assert served and all(end.status == 200 and end.closes for end in served)
    ended_after_a_kill(server)


def test_the_only_worker_is_killed_and_nobody_notices(serve, worker):
    """Who knocks while no worker lives waits in the queue for the replacement."""
    server = serve(worker, delay=0.7)
    server.terminate()
    victim = server.worker_pids[0]
    server.signal(signal.SIGKILL, victim)
    server.wait_log(rf"Worker \(pid:{victim}\) was sent SIGKILL")
    end = server.fetch("/pid")
    assert end.status == 200 and int(end.body) != victim
    ended_after_a_kill(server)


@pytest.mark.parametrize("workers", (1, 2))
def test_max_requests_goes_on_recycling(serve, worker, workers):
    server = serve(worker, workers=workers, delay=1.5, options=("--max-requests", "5"))
    with Storm(server.addresses[0], clients=4, path="/sleep/0.01") as storm:
        storm.wait_served(12)
        server.terminate()
        before = len(server.worker_pids)
        storm.wait_over()
    assert not storm.losses, storm.census()
    assert not storm.out_of_order
    assert len(server.worker_pids) > before, "nobody was recycled in LAME_DUCK"
    assert_clean(server)


def test_a_replacement_that_cannot_boot_does_not_end_the_service(serve, worker, tmp_path):
    server = serve(worker, workers=2, delay=8.0, env={"APP_BROKEN": str(tmp_path / "broken")})
    server.terminate()
    (tmp_path / "broken").touch()
    boots = len(server.worker_pids)
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_log("^Booting worker with pid", count=boots + 1)
    failed = server.worker_pids[boots]
    server.wait_log(rf"Worker \(pid:{failed}\) exited with code 3")
    assert [server.fetch().status for _ in range(5)] == [200] * 5
    (tmp_path / "broken").unlink()
    server.wait_log("^app imported", count=3)  # tried again
    assert [server.fetch().status for _ in range(5)] == [200] * 5
    server.signal(signal.SIGTERM)  # more than a second after the first one: ends the delay
    server.wait_draining()
    ended_after_a_kill(server)


@pytest.mark.control(1)
def test_a_replacement_that_cannot_boot_does_not_end_the_service_on_stock(serve, tmp_path):
    """Stock has no delay, so it is shown while it serves: one bad boot ends the service."""
    server = serve("sync", workers=2, env={"APP_BROKEN": str(tmp_path / "broken")})
    (tmp_path / "broken").touch()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_gone()
    assert server.status == 3
    assert server.fetch().kind == "refused"


def test_who_is_to_be_recycled_serves_until_a_successor_has_booted(serve, worker, tmp_path):
    """However often that fails, and however late it is: here graceful_overlap is over at once."""
    broken = tmp_path / "broken"
    env = {"APP_BROKEN": str(broken), "GRACEFUL_OVERLAP": "0"}
    server = serve(worker, delay=8.0, env=env, options=("--max-requests", "3"))
    server.terminate()
    broken.touch()
    (old,) = server.worker_pids
    for _ in range(4):
        assert server.fetch().kind == "response"
    server.wait_log("exited with code 3", count=2)
    assert int(server.fetch("/pid").body) == old
    broken.unlink()
    server.wait_log(rf"^Worker exiting \(pid: {old}\)")
    assert int(server.fetch("/pid").body) != old


NO_FORK = """
import os
real_fork, forks = os.fork, []
def fork():
    forks.append(1)
    if len(forks) == 3:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return real_fork()
os.fork = fork
"""


def test_a_fork_that_fails_is_tried_again(serve, worker):
    """The pod's limit of processes is reached; those that serve must not pay for that."""
    server = serve(worker, workers=2, delay=2.5, config=NO_FORK)
    server.terminate()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_log("^A worker could not be started")
    assert [server.fetch().status for _ in range(5)] == [200] * 5
    server.wait_log("^app imported", count=3)
    server.signal(signal.SIGTERM)
    assert_clean(server)


@pytest.mark.parametrize(
    "hook", ("pre_fork(server, worker)", "post_fork(server, worker)", "post_worker_init(worker)")
)
@pytest.mark.parametrize(
    "what", ("1 / 0", "raise SystemExit(9)", "raise KeyboardInterrupt", "raise StopIteration")
)
def test_a_hook_that_fails_while_a_worker_is_spawned_ends_nothing(serve, tmp_path, hook, what):
    flag = tmp_path / "flag"
    config = (
        f"import os\ndef {hook}:\n    if os.path.exists('{flag}'):\n        {what}\n"
        "    os.write(1, b'let through\\n')\n"
    )
    server = serve("gracefulworker.sync", workers=2, delay=30, config=config)
    server.terminate()
    server.wait_log("^let through", count=2)  # the second one may still boot
    flag.touch()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_log("Next try in", count=2)
    assert [server.fetch().status for _ in range(5)] == [200] * 5
    flag.unlink()
    booted = len(server.grep("^app imported")) + 1
    server.wait_log("^app imported", count=booted)
    server.signal(signal.SIGTERM)
    ended_after_a_kill(server)
