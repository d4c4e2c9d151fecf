"""What the uvicorn worker has to do for many, or while it waits, costs little."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from harness import CEILING, assert_clean, now, request, wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

WORKER = "gracefulworker.uvicorn"
DESCRIPTORS = 64
FEW = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS}))
"""


def seconds_of_processor(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime


def listens(pid):
    """Whether a process has a listener of the Unix domain."""
    table = Path("/proc/net/unix").read_text().splitlines()[1:]
    # Flags are those of __SO_ACCEPTCON where it listens, and the inode comes after the state.
    inodes = {line.split()[6] for line in table if line.split()[3] == "00010000"}
    links = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
    return any(link.startswith("socket:[") and link[8:-1] in inodes for link in links)


@pytest.mark.contract(3)
def test_a_gated_listener_costs_nothing_until_the_seal(serve):
    """It is readable all the time; here long, for the arbiter dies before it could seal it."""
    server = serve(WORKER, delay=0.2, listen=("unix",))
    (pid,) = server.worker_pids
    client, held = server.hold("it")
    server.terminate()
    server.wait_draining()
    server.signal(signal.SIGKILL)
    before, at = seconds_of_processor(pid), now()
    wait_until(lambda: not listens(pid), "sealed", CEILING)
    assert seconds_of_processor(pid) - before < 0.25 * (now() - at)
    held.release()
    assert client.ending().body == b"gated"
    server.wait_gone()


@pytest.mark.contract(11)
@pytest.mark.parametrize("listen", ("tcp", "unix"))
def test_after_a_pause_for_want_of_descriptors_others_are_accepted(serve, listen):
    """Several times, for it is a matter of parts of a millisecond."""
    server = serve(WORKER, delay=10, listen=(listen,), config=FEW)
    server.terminate()
    for number in range(1, 6):
        assert server.fetch(f"/starve/{number}").status == 200
        held = server.gate.entered(str(number))
        client = server.connect()
        client.send(request())
        server.wait_log("^no descriptor is free", count=number)
        held.release()
        assert client.ending().status == 200
    assert not server.grep("^draining")


CROWD = 5000
LATE = 2.0  # seconds


@pytest.mark.contract(4)
def test_a_crowd_that_is_waited_for_leaves_the_loop_to_others(serve, descriptors):
    if descriptors < CROWD + 500:
        pytest.skip(f"no more than {descriptors} descriptors are allowed")
    server = serve(WORKER, delay=0.2, env={"GRACEFUL_FIRST_BYTE": str(LATE)})
    (pid,) = server.worker_pids
    crowd = [server.connect() for _ in range(CROWD)]
    server.terminate()
    server.wait_draining()
    before, at = seconds_of_processor(pid), now()
    assert crowd[0].end(timeout=CEILING).kind == "eof"
    assert seconds_of_processor(pid) - before < 0.35 * (now() - at)
    assert_clean(server)


MANY = 300


@pytest.mark.contract(7)
def test_many_that_are_cut_are_named_in_time(serve):
    """Each task in another thread, which has to be found among as many."""
    server = serve(WORKER, delay=0.2, env={"GRACEFUL_KILL_AFTER": "3"})
    clients = [server.hold(str(number))[0] for number in range(MANY)]
    server.terminate()
    assert [client.ending().status for client in clients] == [503] * MANY
    server.wait_gone()
    assert server.status == 5
    assert any("in gate" in line.text for line in server.lines)
    assert server.grep(r"^cut at the deadline: \d+ more, which are not named here")
    assert not server.grep("has not ended in time")
