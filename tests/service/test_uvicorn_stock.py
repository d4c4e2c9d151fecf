"""Controls: what uvicorn's own worker loses, where gunicorn's have nothing of the kind to lose.

The others are beside those of gunicorn's workers, in contract/, with "uvicorn" among their `stock`.
"""

from __future__ import annotations

import signal

import pytest
from harness import request

LONG = ("--keep-alive", "75")


@pytest.mark.control(5)
@pytest.mark.parametrize("before", (b"", request()), ids=("its first", "the next"))
def test_half_a_head_is_cut(serve, before):
    """It closes every connection that has no whole request, at its next tick."""
    server = serve("uvicorn", options=LONG)
    half = server.connect()
    half.send(before + request()[:7])
    if before:
        assert half.ending().status == 200
    server.signal(signal.SIGTERM)
    assert half.end().kind in ("eof", "reset")
    half.send(request()[7:])
    assert half.ending().kind != "response"


@pytest.mark.control(6)
def test_the_users_exit_code_is_not_run(serve):
    """It raises its SIGTERM again, and dies of that."""
    config = "def worker_exit(server, worker):\n    print('user worker_exit', flush=True)\n"
    server = serve("uvicorn", config=config, env={"APP_ATEXIT": "user's atexit"})
    server.signal(signal.SIGTERM)
    server.wait_gone()
    assert not server.grep("^user")


@pytest.mark.control(9)
def test_a_worker_that_gets_sigterm_alone_leaves_a_gap(serve):
    """Its successor begins to import when it has gone; ours is there before."""
    server = serve("uvicorn", env={"APP_IMPORT": "0.6"})
    server.signal(signal.SIGTERM, server.worker_pids[0])
    slowest = 0.0
    while len(server.worker_pids) < 2:
        slowest = max(slowest, server.fetch().took)
    assert slowest > 0.5
