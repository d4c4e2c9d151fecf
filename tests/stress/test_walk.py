"""Starts and stops with random signals at random moments.

A cycle is drawn from a number of its own, which is printed when it fails; ``--replay NUMBER`` runs
that one alone. Drawn are the worker and its options, what is sent before the SIGTERM, also while
the first worker boots, and what is sent after it. Whatever it was: each request is answered until
the delay is over, then refused, and the end is clean. The moments themselves are the machine's, so
a replay may need some tries.

What may be changed here: signals that must lose nobody. (SIGQUIT, SIGINT and SIGKILL may; USR2
leaves two services: contract/test_13_outlived.py.)
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading

import pytest
from harness import Storm, assert_clean

CYCLES = 200
PARTS = 4  # tests among which they are divided, so that they can run beside each other
SHARE_OF_STOCK = 5  # of so many cycles one is shown to stock, too

CLIENTS = 3
LATEST = 0.25  # seconds between two signals at most
MARGIN = 2.0  # seconds that an end may take on a busy machine, the delay apart

ENGINES = ("sync", "gthread", "gevent")
BEFORE = ("HUP", "TTIN", "TTOU", "USR1", "one worker")
AFTER = ("HUP", "TTIN", "TTOU", "USR1", "USR2", "WINCH", "TERM")


class Cycle:
    """One walk from a start to an end."""

    def __init__(self, seed: int) -> None:
        dice = random.Random(seed)
        self.seed = seed
        self.engine = dice.choice(ENGINES)
        self.workers = dice.randint(1, 3)
        self.reuse_port = dice.random() < 0.25
        # With reuse_port nobody listens before the first worker.
        self.ready = dice.random() < 0.7 or self.reuse_port
        self.delay = dice.choice((0.0, 0.2, 0.5))
        self.slow_import = dice.choice((0.0, 0.0, 0.2))
        self.before = self._draw(dice, BEFORE)
        self.to_group = dice.random() < 0.3
        self.after = self._draw(dice, AFTER)
        self.victim = dice.random()

    @staticmethod
    def _draw(dice, signals):
        """(seconds to wait before it, what is sent)"""
        return [
            (round(dice.uniform(0, LATEST), 3), dice.choice(signals))
            for _ in range(dice.randint(0, 4))
        ]

    def __str__(self):
        parts = [f"--replay {self.seed}: {self.engine} -w {self.workers}"]
        parts += ["--reuse-port"] * self.reuse_port
        parts += [f"delay {self.delay}", f"import {self.slow_import}"]
        parts += ["from the start on"] * (not self.ready)
        parts += [f"+{pause} {name}" for pause, name in self.before]
        parts += ["TERM to the group" if self.to_group else "TERM"]
        parts += [f"+{pause} {name}" for pause, name in self.after]
        return ", ".join(parts)

    def start(self, fresh, prefix):
        server = fresh(
            prefix + self.engine,
            workers=self.workers,
            delay=self.delay,
            listen=("port",) if self.reuse_port else ("tcp",),
            options=("--reuse-port",) if self.reuse_port else (),
            env={"APP_IMPORT": str(self.slow_import)},
            ready=self.ready,
        )
        server.wait_log("^Listening at")  # its handlers are there
        return server

    def walk(self, server, storm):
        """Send it all; the time of SIGTERM."""
        if self.ready:
            storm.wait_served(5 * CLIENTS)
        self._send(server, self.before)
        if self.to_group:
            term = server.killpg(signal.SIGTERM)
        else:
            term = server.signal(signal.SIGTERM)
        self._send(server, self.after)
        return term

    def _send(self, server, steps):
        for pause, name in steps:
            threading.Event().wait(pause)
            try:
                if name != "one worker":
                    server.signal(signal.Signals[f"SIG{name}"])
                elif pids := server.worker_pids:
                    server.signal(signal.SIGTERM, pids[int(self.victim * len(pids))])
            except ProcessLookupError:
                continue  # it has gone already


def walked(cycle, fresh, prefix, tally):
    """One cycle to its end, counted; its server, its storm, and the time of SIGTERM."""
    # Stock may lose the SIGTERM, or leave a client hanging: that is counted, too.
    stands = contextlib.nullcontext() if prefix else contextlib.suppress(AssertionError)
    server = cycle.start(fresh, prefix)
    term = float("inf")
    with Storm(server.addresses[0], CLIENTS) as storm, stands:
        term = cycle.walk(server, storm)
        storm.wait_over()
    tally.rounds += 1
    open_until = term + cycle.delay if prefix else term
    tally.count((end for mine in storm.endings for end in mine), open_until)
    return server, storm, term


def pytest_generate_tests(metafunc):
    if "part" in metafunc.fixturenames:
        alone = metafunc.config.option.replay is not None
        metafunc.parametrize("part", range(1 if alone else PARTS))


@pytest.fixture
def cycles(request, part, many):
    if request.config.option.replay is not None:
        return [Cycle(request.config.option.replay)]
    first = request.config.option.seed * CYCLES
    return [Cycle(first + n) for n in range(part, many(CYCLES, 4 * PARTS), PARTS)]


@pytest.mark.contract(1, 3, 8, 9, 10)
def test_walk(fresh, cycles, table):
    with table("random signals", "gracefulworker.all") as tally:
        for cycle in cycles:
            print(cycle)
            server, storm, term = walked(cycle, fresh, "gracefulworker.", tally)
            assert not tally.losses, f"{cycle}: {storm.census()}"
            assert not storm.out_of_order, str(cycle)
            gone = server.wait_gone()
            assert gone - term < cycle.delay + cycle.slow_import + MARGIN, str(cycle)
            assert_clean(server)


def test_walk_on_stock(fresh, cycles, table):
    with table("random signals", "all") as tally:
        for cycle in cycles[::SHARE_OF_STOCK]:
            walked(cycle, fresh, "", tally)
