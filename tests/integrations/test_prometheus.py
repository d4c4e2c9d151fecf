"""prometheus_client's multiprocess mode, with `child_exit` as its documentation has it."""

from __future__ import annotations

import subprocess
import sys

import pytest

CONFIG = """
from prometheus_client import multiprocess

def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""
READ = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


@pytest.mark.parametrize("engine", ("sync", "gthread", "gevent"))
def test_counts_hold_and_dead_workers_are_removed(serve_prefixed, tmp_path, engine):
    pytest.importorskip("prometheus_client")
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    worker = f"gracefulworker.{engine}"
    server = serve_prefixed(worker, workers=2, delay=0.5, config=CONFIG, env=env)
    for _ in range(10):
        assert server.fetch("/counted").status == 200
    assert list(tmp_path.glob("gauge_livesum_*.db"))
    server.terminate()
    served = 10
    while server.fetch("/counted").kind == "response":
        served += 1
    assert served > 10
    server.wait_gone()
    assert server.status == 0
    command = [sys.executable, "-c", READ]
    text = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert f"served_total {served}.0" in text
    assert not list(tmp_path.glob("gauge_live*"))
