"""Each way in which a request can end has its own name, straight and through the balancer."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct

import pytest

from gracefulworker.tools.cli.rehearse_common import read_requests
from gracefulworker.tools.rehearse.balancer import Balancer
from gracefulworker.tools.rehearse.journal import Close, Ending, Exchange, Journal, slept_through
from gracefulworker.tools.rehearse.kubeproxy import _rules
from gracefulworker.tools.rehearse.pods import Place, Pod, why
from gracefulworker.tools.rehearse.wire import Connection, Direct, Lost, Request, content_type

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSING = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
TIMEOUT = 5.0


class Server:
    """Answers the requests of a connection one by one with what it is given, then ends it."""

    def __init__(self, *answers: bytes, end: str = "fin") -> None:
        self.answers, self.end = answers, end
        self.ended = asyncio.Event()

    async def __aenter__(self) -> Server:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = self.server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.wait_for(self.ended.wait(), TIMEOUT)
        self.server.close()

    async def _serve(self, reader, writer) -> None:
        for answer in self.answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        if self.end == "rst after a request":
            await reader.readuntil(b"\r\n\r\n")
        if self.end.startswith("rst"):
            linger = struct.pack("ii", 1, 0)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        elif self.end == "fin after a request":
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
        elif self.end == "fin":
            writer.close()
        else:
            await reader.read()  # up to the client's own end
            writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.ended.set()


@contextlib.asynccontextmanager
async def service_for(address, through: str):
    if through == "straight":
        yield Direct(address)
        return
    async with Balancer(seed=1) as balancer:
        await balancer.add(Pod("pod 1", Place(address, ""), lambda: 0.0))
        yield balancer


async def endings(service, requests: int) -> tuple[list[str], Journal]:
    """Ask so many times on one connection; the names of what came of it."""
    journal, found = Journal(), []
    track = journal.open("test")
    with contextlib.ExitStack() as stack:
        try:
            connection = await Connection.open(journal, service, track)
            stack.callback(connection.transport.abort)
            for _ in range(requests):
                exchange = Exchange("test", "GET /", 0.0, 0.0)
                asked = connection.ask(Request("GET", "/"), exchange)
                answer = await asyncio.wait_for(asked, TIMEOUT)
                found.append(f"{answer.status} {answer.body.decode()}")
        except Lost as lost:
            found.append(lost.ending.name)
    return found, journal


@pytest.mark.parametrize("through", ["straight", "balancer"])
@pytest.mark.parametrize(
    ("answers", "end", "expected"),
    [
        ([], "rst after a request", ["RESET_FRESH"]),
        ([], "fin after a request", ["CLOSED_FRESH"]),
        ([OK], "rst after a request", ["200 ok", "RESET_REUSED"]),
        ([OK], "fin after a request", ["200 ok", "CLOSED_REUSED"]),
        ([OK[:-1]], "fin", ["TRUNCATED"]),
        ([OK[:-1]], "rst", ["TRUNCATED"]),
        ([OK[:9]], "fin", ["TRUNCATED"]),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"],
            "fin",
            ["TRUNCATED"],
        ),
        ([b"HTTP/1.0 200 OK\r\n\r\nok"], "fin", ["200 ok"]),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + OK], "wait", ["200 ok"]),
        ([b"nonsense\r\n\r\n"], "wait", ["WRONG"]),
        ([OK, CLOSING], "wait", ["200 ok", "200 ok"]),
    ],
)
def test_endings(through, answers, end, expected):
    async def run():
        async with Server(*answers, end=end) as server:
            async with service_for(server.address, through) as service:
                return await endings(service, len(expected))

    found, _ = asyncio.run(run())
    assert found == expected


@pytest.mark.parametrize("through", ["straight", "balancer"])
def test_refused(through):
    async def run():
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # bound and not listening
            async with service_for(nobody.getsockname(), through) as service:
                return await endings(service, 1)

    found, _ = asyncio.run(run())
    assert found == ["REFUSED"]


def test_no_endpoints_is_refused():
    async def run():
        async with Balancer(seed=1) as balancer:
            return await endings(balancer, 1)

    assert asyncio.run(run())[0] == ["REFUSED"]


@pytest.mark.parametrize("through", ["straight", "balancer"])
@pytest.mark.parametrize(
    ("answer", "end", "close"),
    [(OK, "fin", Close.UNANNOUNCED), (OK, "rst", Close.RESET), (CLOSING, "fin", Close.ANNOUNCED)],
)
def test_the_end_of_an_idle_connection(through, answer, end, close):
    async def run():
        async with Server(answer, end=end) as server:
            async with service_for(server.address, through) as service:
                journal = Journal()
                track = journal.open("test")
                connection = await Connection.open(journal, service, track)
                await connection.ask(Request("GET", "/"), Exchange("test", "GET /", 0.0, 0.0))
                while track.closed is None:
                    await asyncio.sleep(0.01)
                connection.close()
                return track

    track = asyncio.run(asyncio.wait_for(run(), TIMEOUT))
    assert track.close is close
    if close is Close.UNANNOUNCED:
        assert slept_through(track, told=track.idle_since)
        assert not slept_through(track, told=track.idle_since - 1)


def test_an_established_connection_stays_with_a_pod_that_is_no_endpoint_any_more():
    async def run():
        async with Server(OK, OK, end="wait") as old, Server(OK, end="wait") as new:
            async with Balancer(seed=1) as balancer:
                pods = [
                    Pod(name, Place(server.address, ""), lambda: 0.0)
                    for name, server in (("old", old), ("new", new))
                ]
                await balancer.add(pods[0])
                journal = Journal()
                kept = await Connection.open(journal, balancer, journal.open("kept"))
                await kept.ask(Request("GET", "/"), Exchange("kept", "GET /", 0.0, 0.0))
                await balancer.add(pods[1])
                await balancer.remove(pods[0])
                await kept.ask(Request("GET", "/"), Exchange("kept", "GET /", 0.0, 0.0))
                fresh = await Connection.open(journal, balancer, journal.open("fresh"))
                await fresh.ask(Request("GET", "/"), Exchange("fresh", "GET /", 0.0, 0.0))
                journal.settle(balancer.pods_by_port())
                kept.close()
                fresh.close()
                return [track.pod for track in journal.tracks]

    assert asyncio.run(run()) == ["old", "new"]


def test_everything_but_ok_and_left_is_a_loss():
    for ending in Ending:
        exchange = Exchange("test", "GET /", 0.0, 0.0, ending=ending, status=503)
        assert exchange.lost is (ending not in (Ending.OK, Ending.LEFT))
    assert exchange.label == "wrong answer"
    assert Exchange("test", "", 0.0, 0.0, ending=Ending.SERVER_ERROR, status=503).label == "503"


def test_requests_from_a_file():
    text = "# the usual ones\nGET /\n\nPOST /cart  a=1 b=2\n"
    assert read_requests(text) == (("GET", "/", b""), ("POST", "/cart", b"a=1 b=2"))
    for wrong in ("", "# nothing", "get /", "GET", "GET cart", "GET /caf\xe9", "GET /\x01"):
        with pytest.raises(ValueError):
            read_requests(wrong)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"item": 1}', "application/json"),
        (b"[1, 2]", "application/json"),
        (b"1", "application/octet-stream"),
        (b"a=1&b%5B%5D=2", "application/x-www-form-urlencoded"),
        (b"a=1 b=2", "application/octet-stream"),
        (b"\xff\x00", "application/octet-stream"),
    ],
)
def test_the_type_of_a_body(body, kind):
    assert content_type(body) == kind
    assert ("Content-Type", kind) in Request("POST", "/", body).fields()


def test_header_fields_of_the_users_own():
    own = (("host", "shop.example"), ("Content-Type", "text/csv"), ("Cookie", "a=1"))
    fields = Request("POST", "/", b"a=1", own).fields()
    assert [field for field in fields if field[0].lower() in ("host", "content-type")] == [*own[:2]]
    assert ("Content-Length", "3") in fields and ("Cookie", "a=1") in fields
    assert [name for name, _ in Request("GET", "/", headers=own).fields()] == [
        "User-Agent",
        "host",
        "Cookie",
    ], "of nothing there is no type"


TRACEBACK = """\
[2026-11-22 10:43:12 +0000] [7] [ERROR] Exception in worker process
Traceback (most recent call last):
  File "/shop/app.py", line 3, in <module>
    URL = {source}
  File "{frame}", line 679, in __getitem__
    raise KeyError(key) from None
KeyError: 'DATABASE_URL'
[2026-11-22 10:43:12 +0000] [7] [INFO] Worker exiting (pid: 7)
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            TRACEBACK.format(source="os.environ['DATABASE_URL']", frame="<frozen os>"),
            "the variable DATABASE_URL is not set: set it for this command",
        ),
        (
            TRACEBACK.format(source="os.environ['DATABASE_URL']", frame="/usr/lib/python3/os.py"),
            "the variable DATABASE_URL is not set: set it for this command",
        ),
        (TRACEBACK.format(source="URLS['DATABASE_URL']", frame="/x/urls.py"), "KeyError: 'DATA"),
        (
            "Traceback (most recent call last):\n  x\nModuleNotFoundError: No module named 'shop'",
            "ModuleNotFoundError: No module named 'shop': it has to be installed in this",
        ),
        (
            "Traceback (most recent call last):\n  x\n"
            "django.core.exceptions.ImproperlyConfigured: Set SECRET_KEY",
            "django.core.exceptions.ImproperlyConfigured: Set SECRET_KEY",
        ),
        ("Error: gracefulworker.gthread needs gunicorn 24.1", "Error: gracefulworker.gthread"),
        (
            "Traceback (most recent call last):\n  x\nshop.Unset: two\n  TILL_URL: empty\ntwo\n",
            "shop.Unset: two TILL_URL: empty",
        ),
        (
            "Traceback (most recent call last):\n  x\nSyntaxError: bad\nbad (till.py, line 2)\n",
            "SyntaxError: bad (till.py, line 2)",
        ),
        ("gunicorn: error: argument -w/--workers: invalid", "gunicorn: error: argument -w"),
        ("Failed to find attribute 'app' in 'shop'.", "Failed to find attribute 'app'"),
        ("Error handling request /\n[2026-11-22 10:43:12 +0000] [7] [INFO] Starting gunicorn", ""),
    ],
)
def test_why_a_pod_did_not_start(text, reason):
    found = why(text.splitlines(), is_over=True)
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_what_follows_an_exception_belongs_to_it_if_the_process_has_ended():
    text = "Traceback (most recent call last):\n  x\nshop.Unset: two\nTILL_URL\n  missing"
    lines = [*text.splitlines(), "[2026-11-22 10:43:12 +0000] [7] [INFO] Worker exiting (pid: 7)"]
    assert why(lines, is_over=True) == "shop.Unset: two TILL_URL missing"
    assert why(lines) == "shop.Unset: two"


def test_the_rules_are_those_of_kube_proxy():
    """As `iptables-save` shows them on a node."""
    service, endpoint = "KUBE-SVC-[A-Z2-7]{16}", "KUBE-SEP-[A-Z2-7]{16}"
    name = "default/rehearsal:http"
    text = _rules(["10.244.0.11:8000", "10.244.0.12:8000"], stale=["KUBE-SEP-OLD"])
    for form in (
        rf'-A KUBE-SERVICES -d 10\.96\.0\.10/32 -p tcp -m comment --comment "{name} cluster IP"'
        rf" -m tcp --dport 80 -j {service}",
        rf'-A {service} -m comment --comment "{name} -> 10\.244\.0\.11:8000"'
        rf" -m statistic --mode random --probability 0\.5000000000 -j {endpoint}",
        rf'-A {service} -m comment --comment "{name} -> 10\.244\.0\.12:8000" -j {endpoint}',
        rf'-A {endpoint} -p tcp -m comment --comment "{name}" -m tcp -j DNAT'
        r" --to-destination 10\.244\.0\.12:8000",
        ":KUBE-SEP-OLD - .0:0.",
        "-X KUBE-SEP-OLD",
    ):
        assert re.search(rf"^{form}$", text, re.MULTILINE), form
    assert "REJECT" not in text
    assert re.search(
        r"has no endpoints.* -j REJECT --reject-with icmp-port-unreachable", _rules([], [])
    )
