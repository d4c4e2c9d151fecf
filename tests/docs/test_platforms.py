"""What docs/platforms.md says of platforms, as far as it needs nothing but this machine.

Elsewhere: SIGINT (Fly.io, Nomad) in contract/test_10_signals.py, `--timeout 0` (Cloud Run) in
service/test_timeout_0.py, a listener of systemd's in contract/test_13_outlived.py, PID 1 in
unit/test_pid1.py, and process managers, agents and nginx in integrations.
"""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
import yaml
from gunicorn.config import Config
from harness import Server, assert_clean, summary
from harness.documents import block

from gracefulworker import settings

PAGE = "docs/platforms.md"


@dataclass
class InShell(Server):
    """A dyno's process: a shell that stays above gunicorn."""

    def _command(self, command):
        return ["sh", "-c", f"{shlex.join(command)}; true"], []


@pytest.fixture
def dyno(request):
    servers = request.node.servers = []

    def start(worker):
        server = InShell(worker, workers=2, delay=0.5)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.close()


@pytest.mark.contract(9)
@pytest.mark.parametrize("engine", ("sync", "gevent"))
def test_heroku_sends_sigterm_to_the_shell_and_to_everybody_below_it(dyno, engine):
    server = dyno(f"gracefulworker.{engine}")
    client, held = server.hold("last")
    server.killpg(signal.SIGTERM)
    server.wait_log("^lame duck:")
    assert server.fetch().closes
    server.wait_draining()
    held.release()
    assert client.ending().status == 200
    client.close()
    server.wait_gone()
    assert server.grep("^stopped: clean after ")
    assert (summary(server)["served"], summary(server)["cut"]) == (2, 0)


@pytest.mark.contract(3)
def test_cloud_run_has_ten_seconds_and_no_delay(serve):
    """With the words of the page."""
    words = shlex.split(block(PAGE, "", "--timeout 0"))
    env = dict(word.split("=") for word in words if word.startswith("GRACEFUL"))
    assert env == {"GRACEFUL_DELAY": "0", "GRACEFUL_KILL_AFTER": "10"}
    server = serve("gracefulworker.gthread", options=("--timeout", "0"), env=env)
    plan = "^shutdown plan: accept 0.0 s, finish within 9.0 s, exit by 9.0 s of 10.0 s$"
    assert server.grep(plan)
    client, held = server.hold("last")
    server.terminate()
    server.wait_draining()
    assert server.knock().kind == "refused"
    held.release()
    assert client.ending().status == 200
    client.close()
    assert_clean(server)


def needed(environment):
    """The seconds from SIGTERM to SIGKILL that these variables need."""
    return settings.read(Config(), environment, {}).needed


def test_the_systemd_unit(tmp_path):
    """systemd knows all its words, and waits as long as it says."""
    text = block(PAGE, "ini", "ExecStart=")
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as its documentation says
    unit.read_string(text)
    environment = dict(x.split("=") for x in unit["Service"]["Environment"].split())
    assert needed(environment) <= float(unit["Service"]["TimeoutStopSec"])
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    path = tmp_path / "web.service"
    gunicorn = "/srv/app/.venv/bin/gunicorn"
    assert gunicorn in text
    path.write_text(text.replace(gunicorn, sys.executable).replace("/srv/app", str(tmp_path)))
    done = subprocess.run([analyze, "verify", str(path)], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if str(path) in line or "web.service" in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_the_other_waits_are_long_enough():
    compose = yaml.safe_load(block(PAGE, "yaml", "stop_grace_period"))["services"]["web"]
    assert compose["stop_grace_period"] == "30s"
    assert isinstance(compose["command"], list)
    assert needed(compose["environment"]) <= 30

    program = configparser.RawConfigParser()
    program.read_string(block(PAGE, "ini", "[program:web]"))
    web = program["program:web"]
    pairs = (pair.split("=") for pair in web["environment"].split(","))
    environment = {name: value.strip('"') for name, value in pairs}
    assert needed(environment) <= float(web["stopwaitsecs"])

    sidecar, app = yaml.safe_load(block(PAGE, "yaml", '["sleep", "5"]'))["containers"]
    assert quits_after(sidecar) < float(app["env"][0]["value"])

    pod = yaml.safe_load(block(PAGE, "yaml", "restartPolicy: Always"))
    (sidecar,), (app,) = pod["initContainers"], pod["containers"]
    assert quits_after(sidecar) < float(app["env"][0]["value"])


def quits_after(container):
    """Seconds, the first figure among the words of its preStop hook."""
    words = " ".join(container["lifecycle"]["preStop"]["exec"]["command"])
    return float(re.findall(r"\d+", words)[0])
