"""Out of descriptors: whoever is not accepted waits, and is served when one is free (1, 3)."""

from __future__ import annotations

import os
import resource

import pytest
from harness import Server, request, wait_until

pytestmark = pytest.mark.contract(1, 3)


def take_all_descriptors(server: Server) -> list:
    """Silent connections, some more of them than the only worker may have descriptors."""
    (pid,) = server.worker_pids
    taken = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    limit = max(taken) + 5
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    silent = [server.connect() for _ in range(limit - len(taken) + 3)]
    # From SIGTERM on sync gives up the one that has been silent for longest, for the next one.
    wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) >= limit - 1, "no descriptor is left")
    return silent


@pytest.mark.parametrize("ended", (False, True), ids=("serving", "lame duck"))
def test_a_worker_without_descriptors_serves_on_when_it_has_some(serve, worker, ended):
    server = serve(worker, delay=20)
    pids = server.worker_pids
    if ended:
        server.terminate()
    elif worker.endswith("sync"):
        pytest.skip("before SIGTERM it has one connection at a time")
    elif worker.endswith("uvicorn"):
        pytest.skip("before SIGTERM libuv closes whom it has no descriptor for")
    silent = take_all_descriptors(server)
    late = server.connect()
    late.send(request(headers=("Connection: close",)))
    for client in silent:
        client.close()
    assert late.ending().status == 200
    assert server.worker_pids == pids
    assert not server.grep("Exception in worker process")
