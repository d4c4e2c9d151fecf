"""supervisord and honcho for real: the phases hold, and nobody is killed."""

from __future__ import annotations

import configparser
import io
import shlex
from dataclasses import dataclass

import pytest
from harness import summary
from harness.documents import block
from integrations.started import Kept, find_script


@dataclass
class Supervised(Kept):
    """supervisord with the program of docs/platforms.md; `program` is what differs."""

    program: tuple[tuple[str, str], ...] = ()

    def _command(self, command):
        config = configparser.RawConfigParser()
        config.read_string(block("docs/platforms.md", "ini", "[program:web]"))
        config["supervisord"] = {
            "nodaemon": "true",
            "logfile": "/dev/null",
            "logfile_maxbytes": "0",
            "pidfile": str(self.dir / "supervisord.pid"),
        }
        program = {
            "command": shlex.join(command).replace("%", "%%"),
            "directory": str(self.dir),
            "redirect_stderr": "true",
            "stdout_logfile": "/dev/stdout",
            "stdout_logfile_maxbytes": "0",
            **dict(self.program),
        }
        config["program:web"].update(program)
        del config["program:web"]["environment"]  # the test's is inherited
        text = io.StringIO()
        config.write(text)
        path = self.dir / "supervisord.conf"
        path.write_text(text.getvalue())
        return [find_script("supervisord"), "-n", "-c", str(path)], []


@dataclass
class Honchoed(Kept):
    def _command(self, command):
        (self.dir / "Procfile").write_text(f"web: {shlex.join(command)}\n")
        return [find_script("honcho"), "start", "--no-prefix", "--no-colour"], []


@pytest.fixture
def keep(request):
    servers = request.node.servers = []

    def start(kind, worker, **options):
        server = kind(worker, listen=("path",), workers=2, **options)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.close()


def end_with_a_request_in_flight(server):
    client, held = server.hold("last")
    server.terminate()
    assert server.fetch().closes
    server.wait_draining()
    assert server.knock().kind == "refused"
    held.release()
    assert client.ending().status == 200
    client.close()
    server.wait_gone()
    assert server.grep("^stopped: clean after ")
    figures = summary(server)
    assert (figures["served"], figures["cut"]) == (2, 0)


@pytest.mark.contract(9)
@pytest.mark.parametrize("as_group", ("false", "true"))
def test_supervisord(keep, worker, as_group):
    program = (("stopasgroup", as_group),)
    end_with_a_request_in_flight(keep(Supervised, worker, delay=0.5, program=program))


@pytest.mark.contract(9)
def test_honcho(keep, worker):
    end_with_a_request_in_flight(keep(Honchoed, worker, delay=0.5))
