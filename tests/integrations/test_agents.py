"""ddtrace-run, newrelic-admin and opentelemetry-instrument in front of gunicorn.

Each of them replaces itself by gunicorn (exec), so the process that gets SIGTERM is the arbiter.
None of them reaches its vendor here; what is sent is seen at a server of the test, or printed.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from harness import assert_clean, summary
from integrations.started import find_script


class Agent(ThreadingHTTPServer):
    """A Datadog agent, as far as ddtrace needs one: keeps all that it was sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Taker)
        self.taken: list[bytes] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return "http://{}:{}".format(*self.server_address)


class Taker(BaseHTTPRequestHandler):
    server: Agent

    def take(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.taken.append(body)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = do_PUT = take

    def log_message(self, *args):
        pass


@pytest.fixture
def agent():
    server = Agent()
    yield server
    server.shutdown()
    server.server_close()


OTEL = {
    "OTEL_TRACES_EXPORTER": "console",  # to stdout, which is in the server's log
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
}
NEW_RELIC = {
    "NEW_RELIC_LICENSE_KEY": 40 * "0",
    "NEW_RELIC_DEVELOPER_MODE": "true",  # takes all its data and sends none
    "NEW_RELIC_APP_NAME": "test",
}


def end_with_a_request_in_flight(server):
    """The phases and the figures, as without any agent."""
    client, held = server.hold("last")
    term = server.terminate()
    during = server.fetch()
    assert (during.status, during.closes) == (200, True)
    server.wait_draining()
    assert server.knock().kind == "refused"
    held.release()
    end = client.ending()
    assert (end.status, end.closes, end.body) == (200, True, b"gated")
    client.close()
    assert_clean(server)
    assert server.gone_at - term < 10
    figures = summary(server)
    assert (figures["served"], figures["told"], figures["cut"]) == (2, 2, 0)
    # PID 1 in a container is gunicorn itself.
    assert f"[{server.pid}] [INFO] stopped: " in server.log


ENGINES = pytest.mark.parametrize("engine", ("gthread", "gevent"))


@ENGINES
def test_ddtrace_run(serve_prefixed, agent, engine):
    """The trace of the last request reaches the agent before the exit."""
    env = {"DD_TRACE_AGENT_URL": agent.url, "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false"}
    run = find_script("ddtrace-run")
    server = serve_prefixed(f"gracefulworker.{engine}", run, delay=0.5, env=env)
    assert b"ddtrace" in server.fetch("/modules").body.split()
    end_with_a_request_in_flight(server)
    assert any(b"/gated/last" in body for body in agent.taken)


@ENGINES
def test_newrelic_admin(serve_prefixed, engine):
    run = find_script("newrelic-admin")
    worker = f"gracefulworker.{engine}"
    server = serve_prefixed(worker, run, "run-program", delay=0.5, env=NEW_RELIC)
    assert b"newrelic" in server.fetch("/modules").body.split()
    end_with_a_request_in_flight(server)


@ENGINES
def test_opentelemetry_instrument(serve_prefixed, engine):
    """The span of the last request is exported before the exit."""
    run = find_script("opentelemetry-instrument")
    server = serve_prefixed(f"gracefulworker.{engine}", run, delay=0.5, env=OTEL)
    assert b"opentelemetry" in server.fetch("/modules").body.split()
    end_with_a_request_in_flight(server)
    assert any("/gated/last" in line.text for line in server.lines)
