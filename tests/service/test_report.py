"""The report: a file, metrics, the log record, systemd; and the word about a short delay."""

from __future__ import annotations

import json
import re
import socket

import pytest
from harness import CEILING, assert_clean, now, summary

KEYS = {
    "outcome", "signal", "seconds", "last_connection", "accepted", "served", "told_to_close",
    "closed_idle", "from_queue", "websockets_told", "cut", "killed",
}  # fmt: skip


def test_the_file_has_the_figures_of_the_last_line(serve, worker, tmp_path):
    path = tmp_path / "report.json"
    server = serve(worker, delay=0.3, env={"GRACEFUL_REPORT": str(path)})
    server.terminate()
    assert server.fetch().kind == "response"
    assert_clean(server)
    report = json.loads(path.read_text())
    assert report.keys() == KEYS
    assert (report["outcome"], report["signal"]) == ("clean", "SIGTERM")
    figures = summary(server)
    assert (report["served"], report["cut"]) == (figures["served"], figures["cut"]) == (1, 0)
    assert abs(report["seconds"] - figures["after"]) < 0.1
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("path", ("/nowhere/report.json", "/dev/null/report.json"))
def test_a_file_that_cannot_be_written_is_a_log_line(serve, path):
    server = serve("gracefulworker.sync", delay=0, config=f"graceful_report = {path!r}\n")
    server.terminate()
    assert_clean(server)
    (line,) = server.grep("^the report could not be written: ")
    assert line.level == "WARNING" and path in line.message


def test_statsd_and_systemd(serve, tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            statsd.bind(("127.0.0.1", 0))
            notify.bind(str(tmp_path / "notify"))
            server = serve(
                "gracefulworker.gthread",
                delay=0.3,
                env={"NOTIFY_SOCKET": str(tmp_path / "notify")},
                options=("--statsd-host", "{}:{}".format(*statsd.getsockname())),
            )
            server.terminate()
            assert server.fetch().kind == "response"
            assert_clean(server)
            metrics = received(statsd, "gunicorn.graceful.outcome")
            states = received(notify, "STOPPING")
    assert states[-1] == "STOPPING=1"
    ours = {m.split(":")[0]: m.split(":")[1] for m in metrics if "gunicorn.graceful." in m}
    assert ours["gunicorn.graceful.served"] == "1|c|@1.0"
    assert ours["gunicorn.graceful.cut"] == "0|c|@1.0"
    assert ours["gunicorn.graceful.outcome.clean"] == "1|c|@1.0"
    assert re.fullmatch(r"[\d.]+\|g", ours["gunicorn.graceful.seconds"])
    assert not [line for line in server.lines if line.level and not line.message]


def received(sock, last):
    """The datagrams up to the first one that begins with `last`."""
    sock.settimeout(CEILING)
    found = [""]
    while not found[-1].startswith(last):
        found.append(sock.recv(4096).decode())
    return found


JSON = """
import json, logging
class Formatter(logging.Formatter):
    def format(self, record):
        mine = {k: v for k, v in vars(record).items() if k.startswith("graceful_")}
        return "extra " + json.dumps(mine) if mine else super().format(record)
def on_starting(server):
    for handler in server.log.error_log.handlers:
        handler.setFormatter(Formatter())
"""


def test_the_log_record_has_the_figures_too(serve):
    server = serve("gracefulworker.sync", delay=0, config=JSON)
    server.signal(15)
    server.wait_gone()
    (line,) = server.grep("^extra ")
    assert json.loads(line.message[6:]).keys() == {f"graceful_{key}" for key in KEYS}


def test_late_newcomers_are_a_warning(serve, worker):
    server = serve(worker, delay=1.0)
    term = server.terminate()
    while now() < term + 0.9:
        assert server.fetch().kind == "response"
    assert_clean(server)
    (line,) = server.grep("^new connections were still arriving")
    assert line.level == "WARNING"
    assert re.search(r"arriving (0\.[89]|1\.0) s after SIGTERM", line.message)
    assert "raise graceful_delay (to 2, say)" in line.message


def test_early_newcomers_are_not(serve, worker):
    server = serve(worker, delay=1.0)
    server.terminate()
    assert server.fetch().kind == "response"
    assert_clean(server)
    assert not server.grep("^new connections were")


def test_a_file_for_prometheus_is_added_to(serve, worker, tmp_path):
    """node_exporter's text-file collector reads it: whole, and as counters that go on."""
    path = tmp_path / "shop.prom"
    for times in (1, 2):
        env = {"GRACEFUL_REPORT": str(path)}
        server = serve(worker, delay=0.3, options=("--name", "shop"), env=env)
        server.terminate()
        assert server.fetch().kind == "response"
        assert_clean(server)
        lines = path.read_text().splitlines()
        assert f'gracefulworker_requests_served_total{{service="shop"}} {times}' in lines
        assert f'gracefulworker_shutdowns_total{{service="shop",outcome="clean"}} {times}' in lines
        assert 'gracefulworker_requests_cut_total{service="shop"} 0' in lines
        assert [entry.name for entry in tmp_path.iterdir()] == ["shop.prom"]


def test_an_old_file_that_cannot_be_read_is_replaced(serve, tmp_path):
    path = tmp_path / "shop.prom"
    path.write_bytes(b"\xff\xfe gracefulworker_requests_served_total 5\n")
    server = serve("gracefulworker.sync", delay=0, env={"GRACEFUL_REPORT": str(path)})
    server.terminate()
    assert_clean(server)
    assert path.read_text().startswith("# HELP gracefulworker_shutdown_seconds ")
    assert not server.grep("^the report could not")
