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


#: A main process that is PID 1 again finds its own older files, as in a container.
READ_ALL = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
for metric in registry.collect():
    for sample in metric.samples:
        if sample.name.startswith("gracefulworker_"):
            print(sample.name, sample.labels, sample.value, sep="|")
"""


def reported(directory):
    """What a scrape would find of ours: a value by name, and the labels."""
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL],
        env={"PROMETHEUS_MULTIPROC_DIR": str(directory)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {name: (float(value), labels) for name, labels, value in rows}


@pytest.mark.parametrize("engine", ("sync", "gthread", "gevent"))
def test_the_report_is_in_the_multiprocess_directory(serve_prefixed, tmp_path, engine):
    pytest.importorskip("prometheus_client")
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for times in (1, 2):
        server = serve_prefixed(f"gracefulworker.{engine}", delay=0.3, config=CONFIG, env=env)
        assert server.fetch("/counted").status == 200
        assert not reported(tmp_path) or times == 2
        server.terminate()
        assert server.fetch("/counted").kind == "response"
        server.wait_gone()
        assert server.status == 0 and not server.grep("^the report could not")
        found = reported(tmp_path)
        service = "'service': 'observed:app'"
        assert found["gracefulworker_requests_served_total"] == (times, f"{{{service}}}")
        assert found["gracefulworker_requests_cut_total"][0] == 0
        value, labels = found["gracefulworker_shutdowns_total"]
        assert value == times and service in labels and "'outcome': 'clean'" in labels
        assert found["gracefulworker_shutdown_seconds_count"][0] == times
        assert 0.3 * times <= found["gracefulworker_shutdown_seconds_sum"][0] < 5 * times
        assert found["gracefulworker_last_connection_seconds_count"][0] == times
        assert not [line for line in server.lines if "ResourceWarning" in line.text]


def test_what_nobody_counts_is_in_neither(serve_prefixed, tmp_path):
    """Another worker class, behind the hook: nothing is said of requests."""
    pytest.importorskip("prometheus_client")
    file = tmp_path / "report.prom"
    server = serve_prefixed(
        "gthread",
        delay=0.3,
        options=("-c", "python:gracefulworker.hooks"),
        env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "GRACEFUL_REPORT": str(file)},
    )
    server.terminate()
    server.wait_gone()
    said = {line.partition("{")[0] for line in file.read_text().splitlines() if line[0] != "#"}
    known = {
        "gracefulworker_shutdown_seconds_sum",
        "gracefulworker_shutdown_seconds_count",
        "gracefulworker_workers_killed_total",
    }
    assert said == reported(tmp_path).keys() == known


def test_files_of_any_state_do_not_spoil_the_end(serve_prefixed, tmp_path):
    pytest.importorskip("prometheus_client")
    config = """
import os
def on_exit(server):
    directory = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    for kind in "counter", "summary":
        with open(f"{directory}/{kind}_{os.getpid()}.db", "wb") as file:
            file.write(b"\\xff" * 100)
"""
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    server = serve_prefixed("gracefulworker.sync", delay=0, config=config, env=env)
    server.terminate()
    server.wait_gone()
    (line,) = server.grep("^the report could not be added to ")
    assert line.level == "WARNING" and str(tmp_path) in line.message
    assert server.status == 0 and server.grep("^stopped: clean")


def test_a_directory_that_is_not_there_is_nobodys(serve_prefixed, tmp_path):
    pytest.importorskip("prometheus_client")
    gone = (
        "import os\ndef on_exit(server):\n    os.environ['PROMETHEUS_MULTIPROC_DIR'] += '/gone'\n"
    )
    env = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    server = serve_prefixed("gracefulworker.sync", delay=0, config=gone, env=env)
    server.terminate()
    server.wait_gone()
    assert server.status == 0 and not server.grep("^the report could not")
    assert not reported(tmp_path)
