"""``gracefulworker.hooks.when_ready``: the delay for worker classes that are not ours."""

from __future__ import annotations

import json
import re
import signal
from importlib.util import find_spec

import gunicorn
import pytest
from harness import assert_clean, assert_within, fetch, now, request
from harness.probes import ask, probe_address, said

PLAIN = "from gracefulworker.hooks import when_ready\n"
CALLED = """
from gracefulworker import hooks
def when_ready(server):
    server.log.info("user's when_ready")
    hooks.when_ready(server)
"""


@pytest.mark.contract(1)
@pytest.mark.parametrize("config", (PLAIN, CALLED), ids=("imported", "called"))
@pytest.mark.parametrize("stock", ("gthread", "sync"))
def test_any_worker_class_gets_the_delay(serve, stock, config):
    server = serve(stock, delay=0.6, config=config)
    assert len(server.grep("^shutdown plan: accept 0.6 s")) == 1
    assert len(server.grep("^user's when_ready")) == (config == CALLED)
    term = server.terminate()
    endings = [server.fetch()]
    while endings[-1].kind == "response":
        endings.append(server.fetch())
    assert len(endings) > 1 and endings[-1].began - term >= 0.59
    server.wait_gone()
    assert server.status == 0


@pytest.mark.contract(13)
@pytest.mark.parametrize("stock", ("gthread", "sync"))
def test_a_unix_path_of_another_worker_class(serve, stock):
    server = serve(stock, listen=("path",), delay=0.3, config=PLAIN)
    path = server.addresses[0].path
    server.terminate()
    assert server.fetch().kind == "response" and path.exists()
    server.wait_gone()
    assert not path.exists()
    assert server.status == 0
    assert server.grep("^stopped: ") and not server.grep("Traceback")


@pytest.mark.contract(1)
def test_a_killed_worker_is_replaced_in_the_delay(serve):
    server = serve("gthread", delay=60, config=PLAIN)
    server.terminate()
    server.signal(signal.SIGKILL, server.worker_pids[0])
    server.wait_log("^app imported", count=2)
    assert server.fetch().kind == "response"


@pytest.mark.contract(10)
def test_a_second_sigterm_ends_the_delay(serve):
    server = serve("gthread", delay=60, config=PLAIN)
    term = server.terminate()
    server.signal(signal.SIGTERM)
    with pytest.raises(AssertionError, match="passed with 0"):
        server.wait_log("^draining:", timeout=term + 1.1 - now())
    assert server.fetch().kind == "response"
    again = server.signal(signal.SIGTERM)
    assert server.wait_gone() - again < 2.5  # stock polls, and gthread lingers
    assert server.status == 0


def test_with_our_own_workers_it_changes_nothing(serve, worker):
    def life(config):
        server = serve(worker, delay=0.3, config=config)
        server.terminate()
        assert server.fetch().closes
        assert_clean(server)
        lines = [line.message for line in server.lines if line.level]
        # Sorted, for gunicorn may say which signal it handles after the phase has moved.
        return sorted(line.split(":")[0] for line in lines if not re.search(r"pid|\[\d+\]", line))

    with_hook, without = life(PLAIN), life("")
    assert with_hook == without
    assert with_hook.count("shutdown plan") == 1


# -- with nothing but the command line, and probes


def by_option(serve, stock, **settings):
    env = {"GRACEFUL_PROBE_BIND": "127.0.0.1:0"}
    options = ("-c", "python:gracefulworker.hooks", *settings.pop("options", ()))
    return serve(stock, env=env, options=options, **settings)


@pytest.fixture(params=("uvicorn_worker.UvicornWorker", "asgi"))
def foreign(request):
    if request.param == "asgi" and gunicorn.version_info < (25,):
        pytest.skip("this gunicorn has no asgi worker")
    for package in ("fastapi", request.param.split(".")[0]):
        if package != "asgi" and not find_spec(package):
            pytest.skip(f"{package} is not installed")
    return request.param


def test_asgi_workers_get_the_delay_and_probes(serve, foreign):
    # gunicorn 25's asgi worker waits for idle connections for all of that, and so may be killed.
    options = ("--graceful-timeout", "2")
    server = by_option(serve, foreign, app="asgi_app:app", workers=2, delay=0.4, options=options)
    while (answer := ask(server, "/ready"))[0] == 503:
        assert answer[1]["reason"] in ("0 of 2 workers have booted", "1 of 2 workers have booted")
    assert answer[1] == {"phase": "SERVING", "booted": 2, "expected": 2, "reason": "ready"}
    term = server.terminate()
    assert ask(server, "/ready") == (200, {**answer[1], "phase": "LAME_DUCK"})
    endings = [server.fetch()]
    while endings[-1].kind == "response":
        endings.append(server.fetch())
    assert len(endings) > 1 and endings[-1].began - term >= 0.39
    server.wait_gone()
    assert server.status == (5 if server.grep("^worker .* has not ended in time: killed") else 0)
    assert not server.grep("Traceback")


def test_a_busy_event_loop_is_ready_and_alive(serve, foreign):
    server = by_option(serve, foreign, app="asgi_app:app", delay=0)
    client = server.connect()
    client.send(request("/blocked/loop"))
    held = server.gate.entered("loop")
    for path in ("/ready", "/live"):
        end = fetch(probe_address(server), path)
        assert said(end)[0] == 200
        assert_within(0.05, end.at, end.began, "answered")
    held.release()
    assert client.ending().body == b"blocked"


def test_probes_while_hup_waits_for_old_workers(serve):
    """gunicorn's reload() blocks the main loop until they have gone."""
    server = by_option(serve, "sync")
    client, held = server.hold("old")
    server.signal(signal.SIGHUP)
    server.wait_log("^app imported", count=2)
    for path in ("/ready", "/live"):
        end = fetch(probe_address(server), path)
        assert said(end)[0] == 200
        assert_within(0.05, end.at, end.began, "answered")
    held.release()
    assert client.ending().body == b"gated"


def test_settings_that_only_our_workers_follow_are_named(serve):
    config = PLAIN + 'graceful_readiness_path = "/readyz"\ngraceful_warmup = "/"\n'
    server = serve("sync", config=config)
    server.wait_log("^graceful_readiness_path, graceful_warmup: needs a worker class of gracefulw")


def test_what_is_not_known_is_not_said(serve, tmp_path):
    path = tmp_path / "report.json"
    server = serve("gthread", delay=0, config=PLAIN, env={"GRACEFUL_REPORT": str(path)})
    server.terminate()
    server.wait_gone()
    (line,) = server.grep("^stopped: after ")
    assert line.message.endswith("what workers of another class have served and lost is not known")
    report = json.loads(path.read_text())
    unknown = {"outcome", "last_connection", "accepted", "served", "told_to_close"}
    unknown |= {"closed_idle", "from_queue", "websockets_told", "cut"}
    assert {key for key, value in report.items() if value is None} == unknown
    assert report["killed"] == 0 and server.status == 0


@pytest.mark.contract(7)
def test_a_worker_that_had_to_be_killed_is_said_and_the_status_tells(serve):
    options = ("--graceful-timeout", "1")
    server = serve("sync", delay=0, config=PLAIN, options=options)
    _, held = server.hold("it")
    (pid,) = server.worker_pids
    server.terminate()
    server.wait_gone()
    held.release()
    assert server.status == 5
    assert server.grep(rf"^worker \(pid: {pid}\) has not ended in time: killed")
    (line,) = server.grep("^stopped: cut after ")
    assert line.message.endswith("workers killed 1")


@pytest.mark.control(7)
def test_a_worker_that_had_to_be_killed_on_stock(serve):
    server = serve("sync", options=("--graceful-timeout", "1"))
    _, held = server.hold("it")
    server.signal(signal.SIGTERM)
    server.wait_gone()
    held.release()
    assert server.status == 0
