"""Files, limits and odd names: what a report, a probe bind or the page has to do with."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import CEILING, assert_clean

SERVED = Path(__file__).parent.parent / "served"


def test_a_report_to_stdout_is_written_into_it(serve, tmp_path):
    """A link that leads there stays what it is, as /dev/stdout does for root."""
    link = tmp_path / "stdout"
    link.symlink_to("/dev/stdout")
    server = serve("gracefulworker.sync", delay=0, env={"GRACEFUL_REPORT": str(link)})
    server.signal(signal.SIGTERM)
    server.wait_gone()
    (line,) = server.grep('^{"outcome"')
    assert json.loads(line.message)["outcome"] == "clean"
    assert link.is_symlink() and os.readlink(link) == "/dev/stdout"
    assert Path("/dev/stdout").is_symlink()
    assert [entry.name for entry in tmp_path.iterdir()] == ["stdout"]


def test_a_report_into_a_pipe(serve, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        server = serve("gracefulworker.sync", delay=0, env={"GRACEFUL_REPORT": str(pipe)})
        server.terminate()
        assert_clean(server)
        assert json.loads(os.read(reader, 65536))["outcome"] == "clean"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_pipe_that_nobody_reads_does_not_hold_the_exit_up(serve, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    server = serve("gracefulworker.sync", delay=0, env={"GRACEFUL_REPORT": str(pipe)})
    server.terminate()
    assert_clean(server)
    assert server.grep("^the report could not be written: ")


def test_a_planted_link_is_not_followed(serve, tmp_path):
    """In a directory of everybody's: neither the file's own name nor that of its beginning."""
    victim, path = tmp_path / "victim", tmp_path / "report.json"
    victim.write_text("precious")
    path.symlink_to(victim)
    server = serve("gracefulworker.sync", delay=0, env={"GRACEFUL_REPORT": str(path)})
    (tmp_path / f"report.json.{server.pid}").symlink_to(victim)
    server.terminate()
    assert_clean(server)
    assert victim.read_text() == "precious"
    assert not path.is_symlink() and json.loads(path.read_text())["outcome"] == "clean"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.json", "victim"]


def start_fails(tmp_path, config):
    """The sentence with which a start ends."""
    (tmp_path / "gunicorn.conf.py").write_text(config)
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-k", "gracefulworker.sync", "a:b"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    (sentence,) = re.findall("^Error: (.*)", done.stderr, re.MULTILINE)
    return sentence


@pytest.mark.contract(14)
@pytest.mark.parametrize("host", (r"a\0b", r"\ud800x", "..", "x" * 300, "[zz]", "[::1%nowhere]"))
def test_a_probe_bind_with_an_odd_name_is_one_sentence(tmp_path, host):
    sentence = start_fails(tmp_path, f'graceful_probe_bind = "{host}:8081"\n')
    assert sentence.startswith("graceful_probe_bind = ") and ": give " in sentence


@pytest.mark.contract(14)
@pytest.mark.parametrize("path", (r"/tmp/a\0b", r"/tmp/\ud800"))
def test_a_report_with_an_impossible_name_is_one_sentence(tmp_path, path):
    sentence = start_fails(tmp_path, f'graceful_report = "{path}"\n')
    assert "has a character that no file's name can have: give one" in sentence


#: Bytes that a file may have, where that is limited.
SMALL = 100 * 1024


def limited(config=""):
    return (
        f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({SMALL}, {SMALL}))\n{config}"
    )


def test_a_limit_on_the_size_of_files(serve, worker):
    """The page is larger. (It loses its name, by which `drain` would find it.)"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    server = serve(worker, delay=0, config=limited())
    assert server.fetch().kind == "response"
    server.terminate()
    assert_clean(server)


def test_a_limit_on_the_size_of_files_on_stock(serve):
    server = serve("sync", config=limited())
    assert server.fetch().kind == "response"


#: gevent must not find it patched: it belongs to the arbiter, and so to whom workers inherit from.
TOO_OLD = "import ssl\nclass Own(ssl.SSLContext): ...\n"


@pytest.mark.parametrize("kind", ("gracefulworker.gevent", "gevent"))
def test_gevents_warning_of_a_late_patch_is_seen(serve, kind):
    server = serve(kind, config=TOO_OLD)
    server.wait_log("MonkeyPatchWarning")


@pytest.mark.parametrize("kind", ("gracefulworker.sync", "sync"))
def test_an_arbiters_own_handler_is_called(kind):
    """And what gunicorn's own does after it is ours: with a delay of none, the end."""
    with subprocess.Popen(
        [sys.executable, "-u", str(SERVED / "own_arbiter.py"), kind],
        env={**os.environ, "GRACEFUL_DELAY": "0.2"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        said = []
        for line in process.stderr:
            said.append(line)
            if "Booting worker" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(CEILING) == 0
    assert len([line for line in said if "own handle_term" in line]) == 1
    assert any("lame duck: SIGTERM" in line for line in said) == kind.startswith("graceful")
