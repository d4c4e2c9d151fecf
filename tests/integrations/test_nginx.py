"""nginx in front, in the same pod, over a unix socket."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess

import pytest
from harness import CEILING, Address, Client, Storm, assert_clean, fetch, knock, request
from harness.documents import block

AROUND = """
daemon off;
pid {directory}/nginx.pid;
error_log stderr notice;
user root;  # else it may not reach the socket
worker_processes 1;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {servers}
}}
"""


@pytest.fixture
def nginx(tmp_path):
    """Starts nginx with the servers of docs/platforms.md; its address and its process."""
    command = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if command is None:
        pytest.skip("nginx is not installed")
    front = tmp_path / "front.sock"

    with contextlib.ExitStack() as stack:

        def start(upstream):
            servers = block("docs/platforms.md", "nginx", "upstream app")
            servers = servers.replace("unix:/run/app/gunicorn.sock", f"unix:{upstream.path}")
            servers = servers.replace("listen 8080", f"listen unix:{front}")
            config = tmp_path / "nginx.conf"
            config.write_text(AROUND.format(directory=tmp_path, servers=servers))
            process = subprocess.Popen(
                [command, "-c", str(config), "-e", "stderr"],
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.callback(end, process)
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "start worker process " in line:
                    break
            else:
                raise AssertionError("".join(lines))
            return Address(socket.AF_UNIX, str(front)), process

        yield start


def end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


@pytest.mark.contract(1)
@pytest.mark.contract(13)
def test_nginx_goes_on_for_the_delay(serve, nginx, worker):
    """Its preStop sleep is over before our delay is; nobody sees anything but 200."""
    server = serve(worker, listen=("path",), workers=2, delay=1)
    front, process = nginx(server.addresses[0])
    with contextlib.closing(Client(front)) as slow:
        slow.send(request("/gated/slow"))
        held = server.gate.entered("slow")
        with Storm(front, 4) as storm:
            storm.wait_served(20)
            server.terminate()
            storm.wait_served(20)
            # The balancer has heard; then the sleep ends, and nginx is told to go.
        process.send_signal(signal.SIGQUIT)
        server.wait_draining()
        held.release()
        last = slow.ending()
        assert (last.status, last.body) == (200, b"gated")
    assert {end.status for mine in storm.endings for end in mine} == {200}, storm.census()
    assert process.wait(CEILING) == 0
    assert_clean(server)


def test_an_nginx_that_stops_first_refuses_everybody(serve, nginx):
    server = serve("gracefulworker.gthread", listen=("path",), delay=60)
    front, process = nginx(server.addresses[0])
    assert fetch(front).status == 200
    server.terminate()
    process.send_signal(signal.SIGQUIT)
    assert process.wait(CEILING) == 0
    assert knock(front).kind == "refused"
    assert server.fetch().status == 200
