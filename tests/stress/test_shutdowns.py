"""Shutdowns under a storm, on the loopback and across a round trip of 40 ms (contract 3)."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from importlib.metadata import version
from statistics import median

import pytest
from harness import Address, Storm, assert_clean, fetch, now
from stress.roundtrip import ONE_WAY, SERVER, Network

pytestmark = pytest.mark.contract(3)

CLIENTS = 12
DELAY = 0.5  # seconds


def shutdown(server, address, clients, tally, dice):
    """A storm, SIGTERM in the middle of it, and everybody turned away at the end."""
    with clients, Storm(address, CLIENTS) as storm:
        storm.wait_served(dice.randrange(CLIENTS, 10 * CLIENTS))
        term = server.signal(signal.SIGTERM)
        storm.wait_over()
    tally.rounds += 1
    tally.count((end for mine in storm.endings for end in mine), open_until=term + DELAY)
    return storm


def assert_nothing_lost(server, storm, tally):
    assert not tally.losses, storm.census()
    assert not storm.out_of_order
    assert all(mine[-1].kind == "refused" for mine in storm.endings)
    assert_clean(server)


# -- the loopback ----------------------------------------------------------------------------------


@pytest.mark.contract(1)
def test_storm(fresh, worker, table, many, dice):
    with table("storm", worker) as tally:
        for _ in range(many(45, 3)):
            server = fresh(worker, workers=2, delay=DELAY)
            storm = shutdown(server, server.addresses[0], contextlib.nullcontext(), tally, dice)
            assert_nothing_lost(server, storm, tally)


@pytest.mark.control(3)
def test_storm_on_stock(fresh, stock, table, many, dice):
    with table("storm", stock) as tally:
        for _ in range(many(15, 3)):
            server = fresh(stock, workers=2)
            shutdown(server, server.addresses[0], contextlib.nullcontext(), tally, dice)
            server.wait_gone()
        assert tally.reset


# -- across a round trip ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(Network())
        except OSError as error:
            pytest.skip(f"network namespaces and TUN devices need root on Linux: {error}")
        yield network


def across(network, fresh, worker, **options):
    """A server on the far side, and its address."""
    with network.servers():
        server = fresh(worker, listen=("every",), **options)
    return server, Address(socket.AF_INET, (SERVER, server.addresses[0].target[1]))


@pytest.mark.contract(1)
def test_storm_across_a_round_trip(fresh, worker, network, table, many, dice):
    with table("storm, 40 ms", worker) as tally:
        for _ in range(many(45, 3)):
            server, address = across(network, fresh, worker, workers=2, delay=DELAY)
            storm = shutdown(server, address, network.clients(), tally, dice)
            assert_nothing_lost(server, storm, tally)
        # The network is what it is to be.
        assert median(end.took for mine in storm.endings for end in mine) >= 2 * ONE_WAY


@pytest.mark.control(3)
def test_storm_across_a_round_trip_on_stock(fresh, stock, network, table, many, dice):
    with table("storm, 40 ms", stock) as tally:
        for _ in range(many(15, 3)):
            server, address = across(network, fresh, stock, workers=2)
            shutdown(server, address, network.clients(), tally, dice)
            server.wait_gone()


# -- throughput with a connection for each request -------------------------------------------------

LOOPS = 64  # closed loops: so many that the round trip does not bound the throughput
SPAN = 5.0  # seconds


def throughput(address, clients, span):
    """Answers a second, and all endings; each response goes up to the end of its connection."""
    endings, until = [], now() + span

    def loop():
        while now() < until:
            endings.append(fetch(address, "/no-length", version="1.0"))

    with clients:
        threads = [threading.Thread(target=loop) for _ in range(LOOPS)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    return sum(end.kind == "response" and end.at < until for end in endings) / span, endings


@pytest.mark.contract(11)
@pytest.mark.skipif(
    int(version("gunicorn").split(".")[0]) < 26, reason="this gunicorn does not wait at a close"
)
def test_a_close_does_not_cost_the_main_thread_a_round_trip(fresh, network, table, many):
    """Stock waits on its main thread until the client has closed, which is a round trip.

    A client that does not wait for the server's end hides most of that: those of many connections
    have closed, too, when the main thread has waited for the first of them.
    """
    rates = {}
    for worker in ("gracefulworker.gthread", "gthread"):
        with table("throughput, 40 ms", worker) as tally:
            _, address = across(network, fresh, worker)
            rates[worker], endings = throughput(address, network.clients(), many(SPAN, SPAN / 2))
            tally.rounds = 1
            tally.count(endings)
            tally.remark(f"{rates[worker]:.0f} a second")
            if worker != "gthread":
                assert not tally.losses
    assert rates["gracefulworker.gthread"] >= 10 * rates["gthread"], rates
