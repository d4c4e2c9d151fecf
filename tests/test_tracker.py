"""Complaints on gunicorn's tracker, by number; docs/tracker.md is the table of them.

Most are shown by a test elsewhere, which carries the marker ``tracker`` with the numbers. Here are
those that are about nothing else, and the test that keeps the table and the markers in step.
"""

from __future__ import annotations

import importlib
import re
import signal
from pathlib import Path

import pytest
from harness import assert_clean, cross_the_end, ends

HERE = Path(__file__).parent
LONG = ("--keep-alive", "75")


# -- the table -------------------------------------------------------------------------------------


def rows():
    """The table's rows: the issues' numbers, and the tests that are named for them."""
    table = (HERE.parent / "docs" / "tracker.md").read_text()
    for line in table.splitlines():
        if line.startswith("| #"):
            numbers, *_, tests = line.strip("|").split("|")
            yield (
                {int(number) for number in re.findall(r"#(\d+)", numbers)},
                set(re.findall(r"`(test_\w+)\.py::(test_\w+)`", tests)),
            )


def marked():
    """Every test that carries the marker, and its numbers."""
    for path in HERE.glob("test_*.py"):
        for name, test in vars(importlib.import_module(path.stem)).items():
            if name.startswith("test_"):
                for mark in getattr(test, "pytestmark", ()):
                    if mark.name == "tracker":
                        yield (path.stem, name), set(mark.args)


def test_the_table_and_the_markers_are_in_step():
    named: dict[tuple[str, str], set[int]] = {}
    for numbers, tests in rows():
        assert tests, f"no test is named for {numbers}"
        for test in tests:
            named.setdefault(test, set()).update(numbers)
    assert named == dict(marked())


# -- a replaced worker's idle connections ----------------------------------------------------------


def crossing(server):
    """How the connection ends when a request crosses the end of the worker that HUP replaced."""
    return cross_the_end(server, signal.SIGHUP, lambda: server.wait_log("^Worker exiting"))


@pytest.mark.contract(8)
@pytest.mark.tracker(3394, 2296)
def test_a_request_that_crosses_the_end_of_a_replaced_worker(serve, keeper):
    """A clean end of file, so that the client may send it again to the new one."""
    server = serve(keeper, delay=0, options=LONG)
    end = crossing(server)
    assert (end.kind, end.body) == ("eof", b"")
    server.terminate()
    assert_clean(server)


@pytest.mark.contract(8)
@pytest.mark.tracker(3394, 2296)
@pytest.mark.parametrize("stock", ("gthread", "gevent"))
def test_a_request_that_crosses_the_end_of_a_replaced_worker_on_stock(serve, stock):
    server = serve(stock, options=(*LONG, "--graceful-timeout", "1"))
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


@pytest.mark.contract(8)
@pytest.mark.tracker(2839, 1493)
def test_timeout_does_not_kill_a_dismissed_worker(serve):
    server = serve("gracefulworker.sync", workers=2, delay=0, options=("--timeout", "1"))
    older, client, held = dismiss_while_busy(server)
    # The arbiter looks once a second; that nothing comes of it is what is tested here.
    assert [end.kind for end in ends([client], 1.1)] == ["timeout"]
    assert not server.grep(rf"^WORKER TIMEOUT \(pid:{older}\)")
    held.release()
    assert client.ending().status == 200


@pytest.mark.contract(8)
@pytest.mark.tracker(2839, 1493)
def test_timeout_does_not_kill_a_dismissed_worker_on_stock(serve):
    server = serve("sync", workers=2, options=("--timeout", "1"))
    older, client, _ = dismiss_while_busy(server)
    server.wait_log(rf"^WORKER TIMEOUT \(pid:{older}\)")
    assert client.ending().status != 200
