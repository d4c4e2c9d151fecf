"""Many connections that do nothing, in every way in which a client can do nothing."""

from __future__ import annotations

import signal

import pytest
from harness import assert_clean, assert_within, ends, fetch, request

CLOSE = ("Connection: close",)
LONG = ("--keep-alive", "75")
OTHERS = 10
STOCK_PATIENCE = ("--graceful-timeout", "3")


def count_unfinished(tally, endings):
    """Connections without a request under way, for which an end of file is right."""
    tally.count(end for end in endings if end.kind != "eof")


# -- idle ------------------------------------------------------------------------------------------

#: gthread accepts no more than worker_connections, 1000 by default.
IDLE = {"gthread": 900, "gevent": 5000, "uvicorn": 5000}
DELAY = 1.0  # seconds


def idle_crowd(server, worker, tally, many):
    count = many(IDLE[worker.removeprefix("gracefulworker.")], 300)
    clients = []
    for _ in range(count):
        clients.append(server.connect())
        end = clients[-1].ask()
        tally.count([end])
        assert end.kind == "response" and not end.closes
    return clients


def needs(descriptors, many):
    if descriptors < many(IDLE["gevent"], 300) + 500:
        pytest.skip(f"no more than {descriptors} descriptors are allowed")


@pytest.mark.contract(4, 6)
def test_idle_connections(serve, keeper, table, many, descriptors):
    needs(descriptors, many)
    with table("idle keep-alives", keeper) as tally:
        options = (*LONG, "--worker-connections", "6000") if "gevent" in keeper else LONG
        server = serve(keeper, delay=DELAY, options=options)
        clients = idle_crowd(server, keeper, tally, many)
        over = server.terminate() + DELAY
        endings = ends(clients)
        gone = server.wait_gone()
        closed = max(end.at for end in endings)
        tally.rounds = 1
        count_unfinished(tally, endings)
        tally.remark(
            f"closed {closed - over:.3f} s after the delay, gone {gone - closed:.3f} s later"
        )
        assert not tally.losses
        assert min(end.at for end in endings) >= over - 0.01, "closed before the delay was over"
        assert_within(0.5, closed, over, "the last end of file")
        assert_within(0.3, gone, closed, "gone after the last end of file")
        assert_clean(server)


@pytest.mark.control(4, 6)
@pytest.mark.contract(4, 6)
@pytest.mark.parametrize("keeping", ("gthread", "gevent"))
def test_idle_connections_on_stock(serve, keeping, table, many, descriptors):
    """Stock gevent uses all of graceful_timeout, stock gthread all of it or 2 s."""
    needs(descriptors, many)
    with table("idle keep-alives", keeping) as tally:
        options: tuple[str, ...] = (*LONG, *STOCK_PATIENCE)
        if keeping == "gevent":
            options = (*options, "--worker-connections", "6000")
        server = serve(keeping, options=options)
        clients = idle_crowd(server, keeping, tally, many)
        term = server.signal(signal.SIGTERM)
        endings = ends(clients)
        closed = max(end.at for end in endings)
        tally.rounds = 1
        count_unfinished(tally, endings)
        tally.remark(f"closed {closed - term:.3f} s after SIGTERM")
        assert closed - term > 0.9


# -- clients that never close ----------------------------------------------------------------------


def others(server, tally, timeout):
    """Ask as somebody else would; the slowest answer in seconds."""
    endings = [fetch(server.addresses[0], timeout=timeout, headers=CLOSE) for _ in range(OTHERS)]
    tally.count(endings)
    return max(end.took for end in endings)


@pytest.mark.contract(6, 11)
def test_clients_that_never_close(serve, worker, table, many):
    with table("never close", worker) as tally:
        server = serve(worker, delay=0.5)
        clients = [server.connect() for _ in range(many(500, 100))]
        for client in clients:
            client.send(request(headers=CLOSE))
        tally.count(client.ending() for client in clients)
        count_unfinished(tally, [client.end() for client in clients])
        slowest = others(server, tally, timeout=5.0)
        over = server.terminate() + 0.5
        gone = server.wait_gone()
        tally.rounds = 1
        tally.remark(
            f"slowest other {1000 * slowest:.0f} ms, gone {gone - over:.3f} s after the delay"
        )
        assert not tally.losses
        assert_within(0.5, slowest, 0.0, "another client's answer")
        assert_within(0.5, gone, over, "gone after the delay")  # test_06_exit.py is stricter
        assert {client.end().kind for client in clients} == {"eof"}
        assert_clean(server)


@pytest.mark.control(11)
@pytest.mark.contract(11)
def test_clients_that_never_close_on_stock(serve, stock, table, many):
    """Whoever comes after them waits, two seconds for each (gunicorn 26 on; gevent does not)."""
    with table("never close", stock) as tally:
        server = serve(stock)
        clients = [server.connect() for _ in range(many(500, 100))]
        for client in clients:
            client.send(request(headers=CLOSE))
        last = fetch(server.addresses[0], timeout=5.0, headers=CLOSE)
        tally.rounds = 1
        tally.count([last])
        tally.remark(f"another's answer: {last}")


# -- silent ----------------------------------------------------------------------------------------

FIRST_BYTE = 1.0  # seconds


@pytest.mark.contract(5, 6)
def test_silent_connections(serve, worker, table, many):
    """They have said nothing before SIGTERM and go on to; requests have come after them."""
    with table("silent", worker) as tally:
        server = serve(worker, delay=0.5, env={"GRACEFUL_FIRST_BYTE": str(FIRST_BYTE)})
        silent = [server.connect() for _ in range(many(200, 40))]
        speakers = [server.connect() for _ in range(OTHERS)]
        for client in speakers:
            client.send(request())
        term = server.terminate()
        late = [server.connect() for _ in range(OTHERS)]
        for client in late:
            client.send(request())
        answers = [client.ending() for client in speakers + late]
        endings = ends(silent)
        gone = server.wait_gone()
        tally.rounds = 1
        tally.count(answers)
        count_unfinished(tally, endings)
        slowest = max(end.at for end in answers) - term
        expiry = term + 0.5 + FIRST_BYTE
        tally.remark(
            f"slowest answer {1000 * slowest:.0f} ms after SIGTERM, gone {gone - expiry:.3f} s"
            " after the last moment for a first byte"
        )
        assert not tally.losses
        assert_within(0.5, term + slowest, term, "the last answer")
        assert_within(0.5, gone, expiry, "gone after the silent ones' time")
        assert_clean(server)


@pytest.mark.control(5)
@pytest.mark.contract(5)
def test_silent_connections_on_stock(serve, stock, table, many):
    """sync waits for the first of them until it is killed."""
    with table("silent", stock) as tally:
        server = serve(stock, options=STOCK_PATIENCE)
        silent = [server.connect() for _ in range(many(200, 40))]
        speakers = [server.connect() for _ in range(OTHERS)]
        for client in speakers:
            client.send(request())
        server.signal(signal.SIGTERM)
        answers = [client.ending() for client in speakers]
        endings = ends(silent)
        server.wait_gone()
        tally.rounds = 1
        tally.count(answers)
        count_unfinished(tally, endings)
        if stock == "sync":
            assert tally.losses
