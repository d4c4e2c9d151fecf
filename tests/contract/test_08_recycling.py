"""Workers that are recycled while the service goes on (contract 8)."""

from __future__ import annotations

import signal

import pytest
from harness import CONTROL, OFFERS_CONTROL, Storm, assert_clean, cross_the_end, ends

pytestmark = pytest.mark.contract(8)

KINDS = ("sync", "gthread", "gevent")
LONG = ("--keep-alive", "75")


def stop(server):
    server.terminate()
    assert_clean(server)


@pytest.mark.tracker(3038, 3380)
@pytest.mark.parametrize("workers", (1, 2))
def test_max_requests_loses_nobody(serve, worker, workers):
    server = serve(worker, workers=workers, delay=0, options=("--max-requests", "20"))
    with Storm(server.addresses[0], clients=6) as storm:
        server.wait_log("^Worker exiting", count=3)
        storm.wait_served(50)
    assert not storm.losses and "refused" not in storm.census(), storm.census()
    stop(server)


@pytest.mark.tracker(2422, 1754)
def test_the_old_worker_serves_until_its_successor_has_booted_2422(serve, worker):
    """Stock starts the next one when the last one has gone: everybody waits for the import."""
    server = serve(worker, delay=0, options=("--max-requests", "5"), env={"APP_IMPORT": "0.6"})
    slowest = max(server.fetch().took for _ in range(30))
    server.wait_log("^app imported", count=2)
    assert slowest < 0.4
    stop(server)


@pytest.mark.control(8)
@pytest.mark.tracker(2422, 1754)
@pytest.mark.parametrize("stock", ("sync", "uvicorn"))
def test_the_old_worker_serves_until_its_successor_has_booted_2422_on_stock(serve, stock):
    server = serve(stock, options=("--max-requests", "5"), env={"APP_IMPORT": "0.6"})
    slowest = 0.0
    while len(server.worker_pids) < 2:
        slowest = max(slowest, server.fetch().took)
    assert slowest > 0.5


@pytest.mark.tracker(3394, 2296)
def test_hup_loses_nobody_3394(serve, worker):
    server = serve(worker, workers=2, delay=0)
    with Storm(server.addresses[0], clients=6) as storm:
        for round_ in range(1, 4):
            storm.wait_served(50)
            server.signal(signal.SIGHUP)
            server.wait_log("^Worker exiting", count=2 * round_)
        storm.wait_served(50)
    assert not storm.losses and "refused" not in storm.census(), storm.census()
    stop(server)


def test_hup_leaves_the_old_ones_at_work_until_the_new_ones_have_booted(serve, worker):
    server = serve(worker, workers=2, delay=0, env={"APP_IMPORT": "0.6"})
    old = set(server.worker_pids)
    server.signal(signal.SIGHUP)
    server.wait_log("^Booting worker", count=4)
    ends = [server.fetch("/pid") for _ in range(10)]
    assert {int(end.body) for end in ends} <= old
    assert max(end.took for end in ends) < 0.4
    server.wait_log("^Worker exiting", count=2)
    assert {int(server.fetch("/pid").body) for _ in range(10)}.isdisjoint(old)
    stop(server)


def test_a_new_one_that_dies_as_it_boots_keeps_no_old_one(serve, worker):
    """It is replaced, and the old ones leave as soon as all the new ones are there."""
    server = serve(worker, workers=2, delay=0, env={"APP_IMPORT": "0.6"})
    old = set(server.worker_pids)
    server.signal(signal.SIGHUP)
    server.wait_log("^Booting worker", count=4)
    server.signal(signal.SIGKILL, server.worker_pids[2])
    for pid in old:
        server.wait_log(rf"^Worker exiting \(pid: {pid}\)")
    assert len(server.worker_pids) == 5
    stop(server)


def test_hup_does_not_hold_up_the_shutdown(serve, worker):
    """reload() waits for old workers for as long as graceful_timeout."""
    server = serve(worker, delay=0)
    client, held = server.hold("old")
    server.signal(signal.SIGHUP)
    server.wait_log("^Booting worker", count=2)
    server.terminate()
    server.wait_draining()
    held.release()
    assert client.ending().status == 200
    assert_clean(server)


def test_a_keep_alive_request_on_its_way_to_a_leaving_worker_is_answered(serve, keeper):
    server = serve(keeper, delay=0)
    client = server.keep_alive()
    server.signal(signal.SIGHUP)
    server.wait_log("^app imported", count=2)
    end = client.ask()
    assert end.status == 200
    stop(server)


def test_ttou_loses_nobody(serve, worker):
    server = serve(worker, workers=3, delay=0)
    with Storm(server.addresses[0], clients=6) as storm:
        for left in (1, 2):
            storm.wait_served(30)
            server.signal(signal.SIGTTOU)
            server.wait_log("^Worker exiting", count=left)
        server.signal(signal.SIGTTIN)
        server.wait_log("^Booting worker", count=4)
        storm.wait_served(30)
    assert not storm.losses and "refused" not in storm.census(), storm.census()
    stop(server)


def test_an_operator_s_sigterm_to_one_worker_is_honoured_after_a_second(serve, worker):
    server = serve(worker, workers=2, delay=0)
    victim = server.worker_pids[0]
    with Storm(server.addresses[0], clients=4) as storm:
        storm.wait_served(20)
        server.signal(signal.SIGTERM, victim)
        server.wait_log(rf"^Worker exiting \(pid: {victim}\)")
        server.wait_log("^Booting worker", count=3)
        storm.wait_served(20)
    assert not storm.losses and "refused" not in storm.census(), storm.census()
    assert not server.grep("^lame duck")
    stop(server)


def test_a_second_hup_replaces_those_who_serve_and_not_those_who_leave(serve, worker):
    server = serve(worker, delay=0)
    client, held = server.hold("old")
    server.signal(signal.SIGHUP)
    server.wait_log("^app imported", count=2)
    second = server.worker_pids[1]
    while int(server.fetch("/pid").body) != second:
        assert server.gone_at is None
    server.signal(signal.SIGHUP)
    server.wait_log(rf"^Worker exiting \(pid: {second}\)")
    assert int(server.fetch("/pid").body) == server.worker_pids[2]
    held.release()
    assert client.ending().status == 200
    stop(server)


def test_hups_in_quick_succession_do_not_pile_up(serve, worker):
    server = serve(worker, delay=0, env={"APP_IMPORT": "0.5"})
    for number in range(2, 6):
        server.signal(signal.SIGHUP)
        server.wait_log("^Booting worker", count=number)
    server.wait_log("^Worker exiting", count=1)
    assert server.fetch().status == 200
    stop(server)
    assert len(server.grep("^Worker exiting")) <= 5


@pytest.mark.parametrize("threads", ("gthread", "gevent"))
def test_max_requests_sends_no_signal_to_the_application(serve, threads):
    """One that leaves at once at SIGTERM would take its requests with it."""
    server = serve(
        f"gracefulworker.{threads}",
        delay=0,
        options=("--max-requests", "3"),
        env={"APP_SIGTERM": "exit"},
    )
    client, held = server.hold("it")
    for _ in range(4):
        assert server.fetch().status == 200
    server.wait_log("^app imported", count=2)
    assert server.fetch().status == 200
    held.release()
    assert client.ending().status == 200
    server.signal(signal.SIGINT)
    server.wait_gone()


@pytest.mark.contract(9)
def test_sigterm_to_a_process_of_the_application_is_not_the_worker_s(serve, worker):
    server = serve(worker, delay=0)
    before = server.fetch("/pid").body
    assert server.fetch("/child").body == b"ended"
    client, held = server.hold("it")  # longer than a SIGTERM is held back
    server.gate.listener.settimeout(1.5)
    with pytest.raises(TimeoutError):
        server.gate.listener.accept()  # nothing can come: this is the second and a half
    held.release()
    assert client.ending().status == 200
    assert server.fetch("/pid").body == before
    assert len(server.worker_pids) == 1
    stop(server)


@pytest.mark.tracker(2839, 1493)
def test_timeout_does_not_kill_a_worker_inside_its_graceful_time_2839(serve):
    server = serve("gracefulworker.sync", delay=0, options=("--timeout", "1"))
    client = server.connect()
    client.send(b"GET /sleep/0.7 HTTP/1.1\r\nHost: x\r\n\r\n")
    stop_it = server.connect()
    stop_it.send(b"GET /sleep/2 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.ending().status == 200
    server.terminate()
    assert stop_it.ending().status == 200
    assert_clean(server)


@pytest.mark.skipif(not OFFERS_CONTROL, reason="gunicornc comes with gunicorn 25")
@pytest.mark.parametrize("reuse_port", ((), ("--reuse-port",)), ids=("shared", "reuse_port"))
def test_gunicornc_loses_nobody(serve, worker, reuse_port):
    """`worker kill` is a SIGTERM to the worker, the others are TTIN and TTOU."""
    server = serve(
        worker,
        workers=2,
        delay=0,
        listen=("port",) if reuse_port else ("tcp",),
        options=("--control-socket", CONTROL, *reuse_port),
    )
    with Storm(server.addresses[0], clients=6) as storm:
        storm.wait_served(30)
        victim = server.worker_pids[0]
        server.control(f"worker kill {victim}")
        server.control("worker add")
        server.wait_log(rf"^Worker exiting \(pid: {victim}\)")
        server.wait_log("^app imported", count=4)
        server.control("worker remove")
        server.wait_log("^Worker exiting", count=3 if reuse_port else 2)
        storm.wait_served(30)
    assert not storm.losses and "refused" not in storm.census(), storm.census()
    stop(server)


# -- a replaced worker's idle connections ----------------------------------------------------------


def crossing(server):
    """How the connection ends when a request crosses the end of the worker that HUP replaced."""
    # uvicorn's own dies of a signal that it sends itself, and gunicorn's last word is not said.
    last = "^Finished server process" if server.worker == "uvicorn" else "^Worker exiting"
    return cross_the_end(server, signal.SIGHUP, lambda: server.wait_log(last))


@pytest.mark.tracker(3394, 2296)
def test_a_request_that_crosses_the_end_of_a_replaced_worker(serve, keeper):
    """A clean end of file, so that the client may send it again to the new one."""
    server = serve(keeper, delay=0, options=LONG, threads=1)
    end = crossing(server)
    assert (end.kind, end.body) == ("eof", b"")
    server.terminate()
    assert_clean(server)


@pytest.mark.control(8)
@pytest.mark.tracker(3394, 2296)
@pytest.mark.parametrize("stock", ("gthread", "gevent", "uvicorn"))
def test_a_request_that_crosses_the_end_of_a_replaced_worker_on_stock(serve, stock):
    server = serve(stock, options=(*LONG, "--graceful-timeout", "1"), threads=1)
    assert crossing(server).kind == "reset"


# -- timeout and the graceful time -----------------------------------------------------------------


def dismiss_while_busy(server):
    """Both workers stand at the gate when TTOU dismisses the older one.

    The other one is aborted by --timeout in any case: only the graceful time is longer than that.
    """
    both = {held.pid: (client, held) for client, held in (server.hold(n) for n in ("one", "two"))}
    older, other = server.worker_pids
    server.signal(signal.SIGTTOU)
    server.wait_log(rf"^WORKER TIMEOUT \(pid:{other}\)")
    return older, *both[older]


@pytest.mark.tracker(2839, 1493)
def test_timeout_does_not_kill_a_dismissed_worker(serve):
    server = serve("gracefulworker.sync", workers=2, delay=0, options=("--timeout", "1"))
    older, client, held = dismiss_while_busy(server)
    # The arbiter looks once a second; that nothing comes of it is what is tested here.
    assert [end.kind for end in ends([client], 1.1)] == ["timeout"]
    assert not server.grep(rf"^WORKER TIMEOUT \(pid:{older}\)")
    held.release()
    assert client.ending().status == 200


@pytest.mark.control(8)
@pytest.mark.tracker(2839, 1493)
def test_timeout_does_not_kill_a_dismissed_worker_on_stock(serve):
    server = serve("sync", workers=2, options=("--timeout", "1"))
    older, client, _ = dismiss_while_busy(server)
    server.wait_log(rf"^WORKER TIMEOUT \(pid:{older}\)")
    assert client.ending().status != 200
