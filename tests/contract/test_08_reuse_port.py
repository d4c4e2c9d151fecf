"""With --reuse-port no listener is ever without a worker behind it (contracts 3 and 8)."""

from __future__ import annotations

import signal

import gunicorn
import pytest
from harness import FULL, Ending, Storm, assert_clean, fill, line_up, request

pytestmark = pytest.mark.contract(8)

#: Before, workers shared the listeners with --reuse-port, too.
SINCE_24 = pytest.mark.skipif(gunicorn.version_info < (24,), reason="nothing is lost here")


@pytest.fixture
def reuse(serve):
    """Starts a server that binds a port of its own with --reuse-port."""

    def start(worker, *options, **parts):
        parts = {"workers": 3, "delay": 0, **parts}
        return serve(worker, listen=("port",), options=("--reuse-port", *options), **parts)

    return start


def assert_nothing_lost(storm):
    assert not storm.losses and "refused" not in storm.census(), storm.census()


def stop(server):
    server.terminate()
    assert_clean(server)


@pytest.mark.tracker(3612)
def test_max_requests_loses_nobody_3612(reuse, worker):
    server = reuse(worker, "--max-requests", "20")
    with Storm(server.addresses[0], clients=6) as storm:
        server.wait_log("^Worker exiting")
        storm.wait_served(50)
    assert_nothing_lost(storm)
    stop(server)


@pytest.mark.control(8)
@SINCE_24
@pytest.mark.tracker(3612)
@pytest.mark.parametrize("stock", ("sync", "uvicorn"))
def test_max_requests_loses_nobody_3612_on_stock(reuse, stock):
    server = reuse(stock, "--max-requests", "20")
    with Storm(server.addresses[0], clients=6) as storm:
        storm.wait_over()
    assert storm.losses


def test_hup_loses_nobody(reuse, worker):
    server = reuse(worker)
    with Storm(server.addresses[0], clients=6) as storm:
        storm.wait_served(50)
        server.signal(signal.SIGHUP)
        server.wait_log("^Worker exiting", count=3)
        storm.wait_served(50)
    assert_nothing_lost(storm)
    stop(server)


@pytest.mark.skipif(gunicorn.version_info < (24,), reason="one set: see test_08_recycling.py")
def test_ttou_and_ttin_lose_nobody(reuse, worker):
    """With TTOU there is a set too many: two workers are followed by one that has both sets."""
    server = reuse(worker)
    with Storm(server.addresses[0], clients=6) as storm:
        storm.wait_served(30)
        server.signal(signal.SIGTTOU)
        server.wait_log("^Worker exiting", count=2)
        storm.wait_served(30)
        for booted in (5, 6):
            server.signal(signal.SIGTTIN)
            server.wait_log("^app imported", count=booted)
            storm.wait_served(30)
    assert_nothing_lost(storm)
    stop(server)


def test_the_set_of_a_killed_worker_waits_for_the_next(reuse, worker):
    server = reuse(worker, *FULL["options"], workers=1, threads=2)
    fill(server)
    queued = line_up(server, 3)
    server.signal(signal.SIGKILL, server.worker_pids[0])
    assert [client.ending().kind for client in queued] == ["response"] * 3
    stop(server)


@pytest.mark.control(8)
@SINCE_24
def test_the_set_of_a_killed_worker_waits_for_the_next_on_stock(reuse):
    server = reuse("sync", workers=1)
    fill(server)
    queued = line_up(server, 3)
    server.signal(signal.SIGKILL, server.worker_pids[0])
    assert [client.ending().kind for client in queued] == ["reset"] * 3


@pytest.mark.contract(3)
def test_the_set_of_a_worker_that_is_killed_in_draining_is_served(reuse, worker):
    """Its sibling has a set of its own to empty, and cannot do it."""
    if "uvicorn" in worker:
        pytest.skip("it accepts all that come, and a kill takes them along")
    server = reuse(worker, *FULL["options"], workers=2, threads=2)
    clients = [server.connect() for _ in range(24)]  # the kernel deals them out by chance
    for client in clients:
        client.send(request("/gated/it"))
    each = 1 if "sync" in worker else 2
    busy = [server.gate.entered("it") for _ in range(2 * each)]
    server.signal(signal.SIGSTOP, busy[0].pid)  # so that it does not take them from the queue
    server.terminate()
    server.wait_draining()
    server.signal(signal.SIGKILL, busy[0].pid)
    for held in busy:
        held.release()
    for _ in clients[2 * each :]:
        server.gate.entered("it").release()
    kinds = [client.ending().kind for client in clients]
    assert kinds.count("response") == len(clients) - each  # but for those that were killed
    server.wait_gone()


@pytest.mark.contract(3)
def test_the_sets_of_all_that_are_killed_in_draining_are_served(reuse, worker):
    """One that follows them serves them all, not the first one again and again."""
    server = reuse(worker, delay=0.3)
    server.wait_log("^app imported", count=3)
    for pid in server.worker_pids:
        server.signal(signal.SIGSTOP, pid)
    clients = line_up(server, 30)
    server.terminate()
    server.wait_draining()
    for pid in server.worker_pids:
        server.signal(signal.SIGKILL, pid)
    assert {client.ending().kind for client in clients} == {"response"}
    assert_clean(server)


@pytest.mark.contract(3)
def test_nothing_is_lost_in_two_shutdowns(reuse, worker):
    for _ in range(2):
        server = reuse(worker, delay=0.2)
        with Storm(server.addresses[0], 12) as storm:
            storm.wait_served(60)
            server.terminate()
            storm.wait_over()
        assert not storm.losses, storm.census()
        assert not storm.out_of_order
        assert_clean(server)


@pytest.mark.control(3)
@pytest.mark.contract(3)
def test_nothing_is_lost_in_shutdowns_on_stock(reuse):
    losses: list[Ending] = []
    while not losses:  # in each of them, mostly
        server = reuse("sync")
        with Storm(server.addresses[0], 12) as storm:
            storm.wait_served(60)
            server.signal(signal.SIGTERM)
            storm.wait_over()
        losses = storm.losses


@pytest.mark.contract(13)
def test_usr2_leaves_the_port_to_the_new_arbiter(reuse):
    """Since 24 the new one of stock fails at once: it looks for listeners where there are none."""
    server = reuse("gracefulworker.sync", workers=2)
    server.signal(signal.SIGUSR2)
    server.wait_log("^app imported", count=4)
    server.terminate()
    server.wait_log("^stopped: clean")
    new = {str(pid).encode() for pid in server.worker_pids[2:]}
    # On 23 they share one listener, and one of them may take all.
    assert {server.fetch("/pid").body for _ in range(30)} <= new
