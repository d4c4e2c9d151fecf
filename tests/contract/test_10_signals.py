"""A second signal, the quick stop, and what is refused once the end has begun (contract 10)."""

from __future__ import annotations

import signal

import pytest
from harness import assert_clean, assert_within, now, wait_until

pytestmark = pytest.mark.contract(10)

LONG = 60.0  # a delay that only a signal ends
QUICK = 1.0  # what "quickly" means here; stock takes 0.3 s and more for its own steps


def quickly(worker):
    """gthread answers what its threads have begun, as stock does, and here within 2 s.

    So does uvicorn, for the application here runs in threads.
    """
    return QUICK + 2 * ("gthread" in worker or "uvicorn" in worker)


def test_a_second_sigterm_is_noise_at_first_and_ends_the_delay_later(serve, worker):
    server = serve(worker, delay=LONG)
    term = server.terminate()
    for _ in range(3):
        server.signal(signal.SIGTERM)
    # The second is what is tested here: should the delay end meanwhile, this wait ends too.
    with pytest.raises(AssertionError, match="passed with 0"):
        server.wait_log("^draining:", timeout=term + 1.1 - now())
    assert server.fetch().kind == "response"
    again = server.signal(signal.SIGTERM)
    assert_within(server.exit_bound, server.wait_gone(), again, "gone after the second SIGTERM")
    assert_clean(server)


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGQUIT), ids=("SIGINT", "SIGQUIT"))
def test_they_stop_quickly_while_a_hup_is_under_way(serve, worker, number):
    """Stock waits in reload() for the old worker's request, as long as graceful_timeout."""
    server = serve(worker)
    _client, _held = server.hold("old")
    server.signal(signal.SIGHUP)
    server.wait_log("^app imported", count=2)
    quick = server.signal(number)
    assert_within(quickly(worker), server.wait_gone(), quick, "gone")


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGQUIT), ids=("SIGINT", "SIGQUIT"))
@pytest.mark.parametrize("phase", ("serving", "lame duck", "draining"))
def test_sigint_and_sigquit_stop_quickly(serve, worker, phase, number):
    """With a request in flight, which is the case in which stock gthread takes all its time."""
    server = serve(worker, delay=0 if phase == "draining" else LONG)
    _client, _held = server.hold("it")
    if phase != "serving":
        server.signal(signal.SIGTERM)
        server.wait_log(f"^{phase}:")
    quick = server.signal(number)
    assert_within(quickly(worker), server.wait_gone(), quick, "gone")
    if phase != "serving":
        assert server.grep("^stopped: quick")


@pytest.mark.control(10)
@pytest.mark.parametrize("stock", ("gthread", "uvicorn"))
def test_sigint_and_sigquit_stop_quickly_on_stock(serve, stock):
    server = serve(stock, config="graceful_timeout = 2\n")
    server.hold("it")
    quick = server.signal(signal.SIGQUIT)
    assert server.wait_gone() - quick > 1.5


def test_sigint_of_a_terminal_reaches_everybody(serve, worker):
    server = serve(worker, workers=2, delay=LONG)
    server.terminate()
    quick = server.killpg(signal.SIGINT)
    assert_within(quickly(worker), server.wait_gone(), quick, "gone")


def test_graceful_sigint_makes_sigint_a_sigterm(serve, worker):
    server = serve(worker, delay=0.4, env={"GRACEFUL_SIGINT": "1"})
    over = server.signal(signal.SIGINT) + 0.4
    server.wait_log("^lame duck:")
    assert server.fetch().closes
    assert_within(server.exit_bound, server.wait_gone(), over, "gone after the delay")
    assert_clean(server)


@pytest.mark.parametrize("phase", ("lame duck", "draining"))
def test_what_is_refused_once_the_end_has_begun(serve, worker, phase):
    server = serve(worker, delay=0 if phase == "draining" else LONG)
    client, held = server.hold("it")
    server.signal(signal.SIGTERM)
    server.wait_log(f"^{phase}:")
    for name in ("SIGHUP", "SIGUSR2", "SIGWINCH"):
        server.signal(getattr(signal, name))
        server.wait_log(f"^{name} refused: shutting down")
    assert len(server.grep("refused: shutting down")) == 3, "more than one line each"
    assert len(server.worker_pids) == 1, "somebody was started"
    if phase == "lame duck":
        server.signal(signal.SIGTTIN)  # the worker that was there stands at the gate
        server.wait_log("^app imported", count=2)
        assert server.fetch().kind == "response"
    held.release()
    assert client.ending().kind == "response"


def test_what_still_works_in_lame_duck(serve, worker, tmp_path):
    access = tmp_path / "access.log"
    server = serve(worker, delay=LONG, options=("--access-logfile", str(access)))
    server.terminate()
    server.signal(signal.SIGTTIN)
    server.wait_log("^app imported", count=2)
    server.signal(signal.SIGTTOU)
    server.wait_log("^Worker exiting")
    access.rename(tmp_path / "old.log")
    server.signal(signal.SIGUSR1)
    wait_until(lambda: access.exists(), "the log was opened anew")
    for _ in range(3):
        assert server.fetch().kind == "response"
    wait_until(lambda: "/fast" in access.read_text(), "the workers write to it")


LATE = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU")

#: Stops where the interpreter has put the defaults back: a finaliser that runs after atexit.
AT_THE_END = """
import os
class Last:
    def __del__(self, getpid=os.getpid, write=os.write, kill=os.kill, pid=os.getpid()):
        if getpid() == pid:
            for number in {numbers}:
                kill(pid, number)
            write(2, b"late signals\\n")
import sys
sys.last = Last()
"""


#: gunicorn's own command does not come to that moment, one that embeds gunicorn does.
EMBEDDED = """
from gunicorn.app.wsgiapp import WSGIApplication
WSGIApplication.__module__ = "embedding"
"""


def test_signals_in_the_last_moment_do_not_change_the_exit_status(serve, worker):
    numbers = [int(getattr(signal, name)) for name in LATE]
    server = serve(worker, delay=0, config=EMBEDDED + AT_THE_END.format(numbers=numbers))
    server.signal(signal.SIGTERM)
    server.wait_log("^late signals")
    assert_clean(server)


@pytest.mark.control(10)
def test_signals_in_the_last_moment_do_not_change_the_exit_status_on_stock(serve):
    server = serve("sync", config=AT_THE_END.format(numbers=[int(signal.SIGHUP)]))
    server.signal(signal.SIGTERM)
    server.wait_gone()
    assert server.status == -signal.SIGHUP


#: A hook that runs when the handlers are there puts its own in front.
IN_FRONT = """
import signal
def when_ready(server):
    theirs = signal.getsignal(signal.SIGTERM)
    def handler(number, frame):
        server.log.info("the hook's")
        theirs(number, frame)
    signal.signal(signal.SIGTERM, handler)
def pre_fork(server, worker):
    server.log.info("supervised: %s", worker.supervisor is not None)
"""


def test_a_hooks_own_handler_may_stand_in_front(serve, worker):
    server = serve(worker, delay=0.4, config=IN_FRONT)
    assert server.grep("^supervised: True")
    server.terminate()
    server.wait_log("^the hook's")
    assert server.fetch().closes
    assert_clean(server)
