"""Probes: ready means that all workers have been up, and a busy service is alive."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from typing import Any

import pytest
from harness import (
    FULL,
    Address,
    Client,
    Storm,
    assert_clean,
    assert_within,
    ends,
    fetch,
    fill,
    knock,
    now,
    request,
    summary,
)
from harness.probes import ask, probe_address, said

PATHS = 'graceful_readiness_path, graceful_liveness_path = "/readyz", "/livez"\n'
BIND = PATHS + 'graceful_probe_bind = "127.0.0.1:0"\n'

#: A hook in which the arbiter stands still until the test lets it go.
BLOCKED = """
import os, socket
def on_reload(server):
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(os.environ["GATE"])
        link.sendall(b"reload 0\\n")
        link.recv(1)
"""


class Prober:
    """Probes each 20 ms from the moment of the start, as long as `wanted` answers are missing."""

    def __init__(self, address, path):
        self.address, self.path = address, path
        self.endings = []

    def until_ready(self, more=10):
        limit = now() + 15
        while more and now() < limit:
            end = fetch(self.address, self.path, timeout=0.5)
            self.endings.append(end)
            more -= end.status == 200
            time.sleep(0.02)
        assert not more, "never ready"
        return self

    def assert_orderly(self):
        """Nothing but yes after the first yes, and the application answered by then."""
        first = next(n for n, end in enumerate(self.endings) if end.status == 200)
        assert {end.status for end in self.endings[first:]} == {200}
        assert {end.status for end in self.endings[:first]} <= {0, 503}
        return self.endings[first]


# -- on the workers' listeners


def test_probes_are_answered_before_the_application(serve, worker):
    server = serve(worker, workers=2, config=PATHS, options=("--access-logfile", "-"))
    Prober(server.addresses[0], "/readyz").until_ready(1)
    body = {"phase": "SERVING", "booted": 2, "expected": 2}
    assert said(server.fetch("/readyz?from=kubelet")) == (200, body | {"reason": "ready"})
    assert said(server.fetch("/livez")) == (200, body | {"reason": "alive"})
    head = server.fetch("/livez", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    posted = server.fetch("/readyz", method="POST", body=b"0123456789")
    assert posted.status == 405 and posted.header("allow") == "GET, HEAD"
    assert server.fetch("/status/404").status == 404  # the application's own
    server.wait_log('"GET /status/404 ')
    assert not server.grep("livez|readyz|Traceback")


def test_probes_are_logged_when_asked_for(serve, worker):
    config = PATHS + "graceful_probe_log = True\n"
    server = serve(worker, config=config, options=("--access-logfile", "-"))
    server.fetch("/livez")
    server.wait_log(r'"GET /livez HTTP/1.1" 200\b')


@pytest.mark.tracker(2602)
def test_probes_are_not_counted_for_max_requests(serve, worker):
    server = serve(worker, config=PATHS, options=("--max-requests", "3"))  # the start asks once
    for path in ("/readyz", "/%72eadyz", "/readyz?a=%72", "/r%65ady%7A", "/readyz"):
        assert server.fetch(path).status == 200
        assert said(server.fetch(path))[0] == 200  # by us
    assert server.fetch("/fast").kind == "response"
    assert len(server.worker_pids) == 1
    server.fetch("/fast")
    server.wait_log("^app imported", count=2)


def test_probes_keep_connections_alive_as_requests_do(serve, keeper):
    server = serve(keeper, config=PATHS)
    client = server.connect()
    assert said(client.ask("/readyz"))[0] == 200
    assert client.ask("/fast").body == b"fast"
    server.terminate()
    end = client.ask("/readyz")
    assert end.status == 200 and end.closes


def test_without_paths_the_application_has_them(serve, worker):
    server = serve(worker, config='graceful_liveness_path = "/livez"\n')
    assert server.fetch("/status/204").status == 204
    assert server.fetch("/livez").status == 200
    assert server.fetch("/readyz").status == 500  # apps.py has no such route


@pytest.mark.parametrize("unready", (False, True))
def test_readiness_in_lame_duck(serve, worker, unready):
    server = serve(worker, delay=60, config=f"{BIND}graceful_unready = {unready}\n")
    server.terminate()
    for status, body in (said(server.fetch("/readyz")), ask(server)):
        assert status == (503 if unready else 200)
        assert body["phase"] == "LAME_DUCK"
        assert body["reason"] == ("shutting down" if unready else "ready")
    assert said(server.fetch("/livez"))[0] == ask(server, "/livez")[0] == 200
    server.signal(signal.SIGQUIT)
    server.wait_log(
        "^stopped: quick .*; served 0 after SIGTERM, no new connection, told to close 0"
    )


# -- the start


#: Each worker says when it has its application; the first one may die of it.
TOLD = """
import os, time
def post_worker_init(worker):
    if worker.age == 1 and "CRASH" in os.environ:
        os.kill(os.getpid(), 9)
    os.write(2, f"has it at {time.monotonic()}\\n".encode())
"""

STARTS: dict[str, dict[str, Any]] = {
    "import": {"env": {"APP_IMPORT": "0.3"}},
    "preload": {"env": {"APP_IMPORT": "0.3"}, "options": ("--preload",)},
    "crash": {"env": {"CRASH": "1"}},
}


@pytest.mark.parametrize("start", STARTS)
def test_ready_means_ready(serve, worker, start):
    server = serve(worker, workers=2, ready=False, config=BIND + TOLD, **STARTS[start])
    front = Prober(server.addresses[0], "/readyz")
    thread = threading.Thread(target=front.until_ready)
    thread.start()
    own = Prober(probe_address(server), "/readyz").until_ready()
    thread.join()
    told = float(server.wait_log("^has it at", count=2).message.split()[-1])
    for prober in (front, own):
        first = prober.assert_orderly()
        assert json.loads(first.body)["booted"] == 2
        assert first.at > told
    assert server.fetch().kind == "response"


def test_not_ready_before_the_last_of_them(serve, worker):
    """The second worker stands at the gate while the first one serves."""
    config = BIND + BLOCKED.replace("on_reload(server)", "post_worker_init(worker)")
    config = config.replace("    with", "    if worker.age == 1: return\n    with")
    server = serve(worker, workers=2, config=config, ready=False)
    held = server.gate.entered("reload")
    assert server.fetch().kind == "response"
    for status, body in (said(server.fetch("/readyz")), ask(server)):
        assert (status, body["booted"], body["expected"]) == (503, 1, 2)
        assert body["reason"] == "1 of 2 workers have booted"
    assert ask(server, "/livez")[0] == said(server.fetch("/livez"))[0] == 200
    held.release()
    Prober(server.addresses[0], "/readyz").until_ready(1)


def test_a_crash_does_not_take_it_back(serve, worker):
    """The successor of the one that crashed stands at the gate."""
    config = BIND + BLOCKED.replace("on_reload(server)", "post_worker_init(worker)")
    config = config.replace("    with", "    if worker.age < 3: return\n    with")
    server = serve(worker, workers=2, config=config)
    Prober(probe_address(server), "/readyz").until_ready(1)
    server.signal(signal.SIGKILL, server.worker_pids[0])
    held = server.gate.entered("reload")
    for status, body in (said(server.fetch("/readyz")), ask(server)):
        assert (status, body["booted"], body["reason"]) == (200, 1, "ready")
    held.release()


# -- while everybody is busy


@pytest.mark.parametrize("path", ("/readyz", "/livez"))
def test_answered_while_every_worker_is_busy(serve, worker, path):
    server = serve(worker, workers=2, threads=1, config=BIND)
    address = probe_address(server)
    Prober(address, "/readyz").until_ready(1)
    busy = server.connect()
    _, held = server.hold("held", "/gated/{}")  # one is held,
    busy.send(request("/hog/0.3"))  # and the other one busy with Python's lock in its hand
    for _ in range(10):
        end = fetch(address, path)
        assert said(end)[0] == 200
        assert_within(0.05, end.at, end.began, "answered")
    held.release()


def test_on_stock_a_probe_waits_with_the_others(serve):
    server = serve("sync")
    server.hold("busy")
    assert server.fetch("/status/204", timeout=0.2).kind == "timeout"


def test_a_default_timeout_of_sockets_does_not_end_it(serve):
    config = BIND + "import socket\nsocket.setdefaulttimeout(0.1)\n"
    server = serve("gracefulworker.gthread", config=config)
    assert ask(server)[0] == 200
    time.sleep(0.3)  # in which nobody asks
    assert ask(server)[0] == 200


def test_answered_while_the_arbiter_stands_still(serve, worker):
    server = serve(worker, config=BIND + BLOCKED)
    address = probe_address(server)
    server.signal(signal.SIGHUP)
    held = server.gate.entered("reload")
    for path in ("/readyz", "/livez"):
        end = fetch(address, path)
        assert said(end)[0] == 200
        assert_within(0.05, end.at, end.began, "answered")
    held.release()


def test_live_means_that_a_heart_beats(serve):
    server = serve("gracefulworker.sync", config=BIND + BLOCKED, options=("--timeout", "1"))
    server.signal(signal.SIGHUP)
    held = server.gate.entered("reload")  # else gunicorn would replace the worker in time
    assert ask(server, "/livez")[0] == 200
    server.signal(signal.SIGSTOP, server.worker_pids[0])
    limit = now() + 5
    while (answer := ask(server, "/livez"))[0] == 200:
        assert now() < limit
        time.sleep(0.02)
    assert answer[0] == 503 and answer[1]["reason"] == "no worker has a heartbeat"
    held.release()


# -- the user's check

CHECK = """
import os
def graceful_readiness_check():
    return eval(open(os.environ["GATE"] + ".said").read())
"""


def test_the_users_check(serve, worker):
    server = serve(worker, config=BIND + CHECK)
    says = server.dir / "gate.said"
    for text, status, reason in (
        ("True", 200, "ready"),
        ("None", 200, "ready"),
        ("False", 503, "graceful_readiness_check returned False"),
        ("'no database'", 503, "no database"),
        ("1 / 0", 503, "graceful_readiness_check failed"),
    ):
        says.write_text(text)
        for got, body in (said(server.fetch("/readyz")), ask(server)):
            assert (got, body["reason"]) == (status, reason)
    server.wait_log("^graceful_readiness_check failed", count=2)
    assert len(server.grep("^graceful_readiness_check failed")) == 2
    says.write_text("False")
    assert said(server.fetch("/livez"))[0] == ask(server, "/livez")[0] == 200


def test_a_check_that_hangs_holds_nobody(serve):
    hang = BLOCKED.replace("on_reload(server)", "graceful_readiness_check()")
    server = serve("gracefulworker.gthread", config=BIND + hang.replace("reload 0", "check 0"))
    client = Client(probe_address(server))
    client.send(request("/readyz"))
    held = server.gate.entered("check")
    assert ask(server, "/livez")[0] == 200
    assert ask(server)[1]["reason"] == "graceful_readiness_check has not come back"
    held.release()
    assert said(client.ending())[0] == 200
    client.close()


CROWD = 140  # more than are attended to at once


@pytest.mark.parametrize("head", (b"", b"GET /livez HTT"), ids=("silent", "half a head"))
def test_a_crowd_of_slow_clients_keeps_no_prober_out(serve, head):
    """They come again as often as they are sent away; a prober gives up after a second."""
    server = serve("gracefulworker.gthread", config=BIND)
    address = probe_address(server)
    crowd = [Client(address) for _ in range(CROWD)]
    for client in crowd:
        client.send(head)
    for path in ("/livez", "/readyz") * 5:
        assert said(fetch(address, path, timeout=1.0))[0] == 200
        for number, end in enumerate(ends(crowd, timeout=0.0)):
            if end.kind != "timeout":
                crowd[number].close()
                crowd[number] = Client(address)
                crowd[number].send(head)
    for client in crowd:
        client.close()


def test_a_crowd_in_a_check_that_hangs_keeps_no_prober_out(serve):
    hang = BLOCKED.replace("on_reload(server)", "graceful_readiness_check()")
    server = serve("gracefulworker.gthread", config=BIND + hang.replace("reload 0", "check 0"))
    address = probe_address(server)
    crowd = []
    for _ in range(CROWD):
        crowd.append(Client(address))
        crowd[-1].send(request("/readyz"))
    held = server.gate.entered("check")
    assert said(fetch(address, "/livez", timeout=1.0))[0] == 200
    held.release()
    for client in crowd:
        client.close()


def test_no_fork_in_the_middle_of_a_check(serve):
    """A lock that the check holds would never be released in the child."""
    check = BLOCKED.replace("on_reload(server)", "graceful_readiness_check()")
    server = serve("gracefulworker.sync", config=BIND + check)
    client = Client(probe_address(server))
    client.send(request("/readyz"))
    held = server.gate.entered("reload")
    server.signal(signal.SIGTTIN)
    with pytest.raises(AssertionError, match="passed with 1"):
        server.wait_log("^Booting worker", count=2, timeout=0.2)
    held.release()
    assert said(client.ending())[0] == 200
    client.close()
    server.wait_log("^app imported", count=2)


# -- the address


@pytest.mark.contract(14)
def test_an_address_that_is_taken_stops_the_start(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        env = {"GRACEFUL_PROBE_BIND": bind}
        server = serve("gracefulworker.gthread", env=env, ready=False)
        server.wait_gone()
    assert server.status == 1
    assert server.grep(
        rf"^Error: graceful_probe_bind = {bind} cannot be listened on \(Address already in use\): "
        "give an address of this machine and a port that is free$"
    )
    assert not server.grep("Traceback|^Booting worker")


def test_default_paths_and_others(serve):
    env = {"GRACEFUL_PROBE_BIND": "127.0.0.1:0"}
    server = serve("gracefulworker.gthread", env=env)
    assert ask(server, "/ready")[0] == ask(server, "/live")[0] == 200
    assert said(fetch(probe_address(server), "/ready", method="POST", body=b"x"))[0] == 405
    assert fetch(probe_address(server), "/ready", method="HEAD").body == b""
    assert ask(server, "/fast")[0] == 404
    assert server.fetch("/ready").status == 500  # on the workers' listeners only when asked for


@pytest.mark.contract(6)
def test_nobody_at_the_address_holds_up_the_exit(serve, worker):
    server = serve(worker, delay=0.1, config=BIND)
    silent = Client(probe_address(server))
    half = Client(probe_address(server))
    half.send(b"GET /readyz HTT")
    over = server.terminate() + 0.1
    assert_within(server.exit_bound, server.wait_gone(), over, "gone")
    assert_clean(server)
    assert knock(probe_address(server)).kind == "refused"
    silent.close()
    half.close()


def test_workers_do_not_hold_the_address(serve, worker):
    server = serve(worker, config=BIND)
    _, held = server.hold("orphan")
    address = probe_address(server)
    server.signal(signal.SIGKILL)
    server.process.wait()
    assert knock(address).kind == "refused"
    held.release()
    server.wait_gone()


def test_draining_is_told(serve, worker):
    server = serve(worker, delay=0, config=BIND)
    _, held = server.hold("last")
    server.signal(signal.SIGTERM)
    server.wait_draining()
    status, body = ask(server)
    assert (status, body["phase"], body["reason"]) == (503, "DRAINING", "shutting down")
    assert ask(server, "/livez")[0] == 200
    held.release()
    assert_clean(server)


def test_hup_moves_it(serve):
    server = serve("gracefulworker.sync", config=BIND)
    # Of another length: in the same second Python would take its cached bytecode for the same.
    (server.dir / "config.py").write_text(BIND.replace("127.0.0.1:0", "127.0.0.2:0") + "# moved\n")
    before = probe_address(server)
    server.signal(signal.SIGHUP)
    at = server.wait_log("^probes at", count=2).message
    port = int(re.search(r"127\.0\.0\.2:(\d+)/", at).group(1))
    assert said(fetch(Address(socket.AF_INET, ("127.0.0.2", port)), "/livez"))[0] == 200
    assert knock(before).kind == "refused"


def test_after_an_upgrade_the_new_arbiter_takes_it_over(serve):
    # An address of this test's alone: both arbiters need the same port.
    host = f"127.77.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
    env = {"GRACEFUL_PROBE_BIND": f"{host}:18081", "GRACEFUL_DELAY": "0"}
    server = serve("gracefulworker.sync", env=env, listen=("path",))
    address = Address(socket.AF_INET, (host, 18081))
    server.signal(signal.SIGUSR2)
    server.wait_log("^app imported", count=2)
    assert said(fetch(address, "/ready"))[0] == 200
    assert not server.grep("^Error|Traceback")
    server.signal(signal.SIGTERM)
    server.wait_log("^probes at", count=2)
    assert said(fetch(address, "/ready"))[0] == 200


# -- warm-up


def test_warm_up(serve, worker):
    config = PATHS + 'graceful_warmup = ["/fast", "/status/302", "/status/404"]\n'
    server = serve(worker, config=config)
    server.wait_log("^warm-up", count=3)
    reason, other = ("", "") if "uvicorn" in worker else (" OK", " Some Reason")
    lines = [line.message for line in server.grep("^warm-up")]
    assert [line.rsplit(" in ", 1)[0] for line in lines] == [
        f"warm-up: GET /fast was answered 200{reason}",
        f"warm-up: GET /status/302 was answered 302{other}",
        f"warm-up: GET /status/404 was answered 404{other}",
    ]


@pytest.mark.contract(14)
@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/status/503", "GET /status/503 was answered 503( Some Reason)?"),
        ("/broken", "GET /broken raised RuntimeError: the application failed"),
    ],
)
def test_a_warm_up_that_fails_fails_the_boot(serve, worker, path, what):
    server = serve(worker, env={"GRACEFUL_WARMUP": f"/fast,{path}"}, ready=False)
    server.wait_gone()
    assert server.status == 3
    assert server.grep(f"^warm-up: {what}, so the worker does not start$")
    assert not server.grep("^warm-up: GET .* 503 .* in ")


def test_warm_up_comes_before_ready(serve, worker):
    config = BIND + 'graceful_warmup = ["/gated/warm"]\n'
    server = serve(worker, config=config, ready=False)
    held = server.gate.entered("warm")
    assert ask(server)[0] == 503
    assert ask(server, "/livez")[0] == 200
    held.release()
    Prober(server.addresses[0], "/readyz").until_ready(1)


@pytest.mark.contract(9)
def test_sigterm_in_the_warm_up_loses_nobody(serve, worker):
    env = {"GRACEFUL_WARMUP": "/gated/warm"}
    server = serve(worker, env=env, delay=0.1, ready=False)
    held = server.gate.entered("warm")
    client = server.connect()
    client.send(request())
    server.terminate()
    server.wait_draining()
    with pytest.raises(AssertionError, match="passed with 0"):
        server.wait_log("^Worker exiting", timeout=0.2)
    held.release()
    end = client.ending()
    assert end.status == 200 and end.closes
    assert_clean(server)


def test_a_storm_of_probes_at_the_end(serve, worker):
    """Probes that cross the end are answered or refused, as requests are."""
    server = serve(worker, delay=0.2, config=PATHS)
    with Storm(server.addresses[0], 3, "/readyz") as storm:
        storm.wait_served(20)
        server.terminate()
        storm.wait_over()
    assert not storm.losses and not storm.out_of_order
    assert summary(server)["served"] == 0


def test_a_probe_from_the_queue_is_no_late_newcomer(serve, worker):
    """Its turn comes after the end of the delay, as behind a busy sync worker."""
    server = serve(worker, delay=1.0, config=PATHS, **FULL)
    busy = fill(server)
    prober = server.connect()
    prober.send(request("/readyz"))
    server.terminate()
    server.wait_draining()
    for _, held in busy:
        held.release()
    assert prober.ending().kind == "response"
    assert_clean(server)
    assert summary(server)["last"] is None
    assert not server.grep("^new connections were still arriving")
