"""The arbiter is killed with SIGKILL: its workers finish what they hold, and none stays."""

from __future__ import annotations

import signal

import pytest


@pytest.mark.parametrize("phase", ("serving", "lame duck", "draining"))
def test_orphans_finish_what_they_hold_and_leave(serve, worker, phase):
    server = serve(worker, delay=0.3 if phase == "draining" else 8.0)
    client, held = server.hold("held")
    if phase != "serving":
        server.terminate()
    if phase == "draining":
        server.wait_draining()
    server.signal(signal.SIGKILL)
    server.process.wait()
    held.release()
    assert client.ending().status == 200
    server.wait_gone()
