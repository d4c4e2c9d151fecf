"""A SIGTERM that reaches the whole group, or others than the arbiter (contract 9)."""

from __future__ import annotations

import signal

import pytest
from harness import Storm, assert_clean

pytestmark = pytest.mark.contract(9)

LONG = 60.0  # a delay that only a signal ends


def test_sigterm_to_the_whole_group(serve, worker):
    """Heroku, systemd's control-group, dumb-init: the workers get it too, before or after."""
    server = serve(worker, workers=2, delay=0.6)
    client, held = server.hold("it")
    with Storm(server.addresses[0], clients=3, path="/sleep/0.01") as storm:
        storm.wait_served(10)
        term = server.killpg(signal.SIGTERM)
        server.wait_log("^lame duck:")
        storm.wait_over()
    assert not storm.losses, storm.census()
    assert not storm.out_of_order
    served = [end for mine in storm.endings for end in mine if end.kind == "response"]
    assert max(end.at for end in served) - term > 0.5
    assert len(server.worker_pids) == 2, "a worker left and was replaced"
    held.release()
    assert client.ending().closes
    assert_clean(server)
    assert len(server.grep("^lame duck:")) == 1


def test_sigterm_to_one_worker_does_not_stop_the_service(serve, worker):
    server = serve(worker, delay=LONG)
    victim = server.worker_pids[0]
    server.signal(signal.SIGTERM, victim)
    server.wait_log(rf"^Worker exiting \(pid: {victim}\)")  # it retired when its successor served
    end = server.fetch("/pid")
    assert end.status == 200 and int(end.body) != victim
    assert not server.grep("lame duck")
    server.terminate()
    server.killpg(signal.SIGINT)
    server.wait_gone()


def test_sigterm_to_a_booting_worker_does_not_stop_the_service(serve, worker):
    """Until its own handlers are there a worker has the arbiter's; the hook keeps it there."""
    hook = "import time\ndef post_fork(server, worker):\n    time.sleep(0.3)\n"
    server = serve(worker, delay=LONG, config=hook, ready=False)
    server.wait_log("^Booting worker with pid")
    server.signal(signal.SIGTERM, server.worker_pids[0])
    assert server.fetch().kind == "response"
    assert not server.grep("lame duck")
    server.terminate()
    assert server.fetch().kind == "response"


@pytest.mark.contract(6)
def test_an_application_that_takes_sigterm_for_itself_changes_nothing(serve, worker):
    server = serve(worker, delay=0.3, env={"APP_SIGTERM": "stolen"})
    client, held = server.hold("it")
    server.killpg(signal.SIGTERM)
    server.wait_draining()
    held.release()
    assert client.ending().closes
    assert_clean(server)
