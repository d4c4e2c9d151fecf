"""(a) What our workers cost before SIGTERM, beside the stock worker of the same engine.

Both run at the same time and take turns: A B, B A, A B, and so on, one second each. A ratio is that
of two neighbours, so that what the machine does besides hits both.

What may be changed here: rounds and figures. No figure without its neighbour's.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks import report
from benchmarks.figures import Spread, differences, ratios, spread
from benchmarks.servers import ENGINES, Running, Server, pair
from benchmarks.wrk import Burst, burst

OPTIONS = {"sync": (), "gthread": ("--threads", "4"), "gevent": (), "uvicorn": ()}

#: Stock's, and that of ours in gracefulworker.workers.
MODULES = {
    "sync": ("gunicorn.workers.sync", "sync"),
    "gthread": ("gunicorn.workers.gthread", "gthread"),
    "gevent": ("gunicorn.workers.ggevent", "ggevent"),
    "uvicorn": ("uvicorn_worker", "uvicorn"),
}

MIB = 2**20

T = TypeVar("T")
Pairs = tuple[list[T], list[T]]  #: ours and stock's, in the order of the rounds


def run(quick: bool) -> str:
    """:returns: the section for RESULTS.md."""
    rounds, memories, boots = (4, 2, 4) if quick else (12, 2, 12)
    rates, costs = [], []
    for engine in ENGINES:
        report.tell(f"steady state: {engine}")
        servers = pair(engine, *OPTIONS[engine])
        rates += _rates(engine, servers, rounds)
        costs.append(_costs(engine, servers, memories, boots))
    heads = ["worker", "connections", "requests/s, stock", "ours / stock", "p99, ours / stock"]
    heads += ["processor time per request, ours / stock", "errors, ours / stock"]
    first = report.table(heads, rates)
    heads = ["worker", "private memory per worker, stock, MiB", "ours - stock, MiB"]
    heads += ["PSS of all processes, ours - stock, MiB"]
    heads += ["to the first answer, stock, ms", "ours - stock, ms"]
    heads += ["import, ours - stock, ms", "the same in processor time"]
    return f"{first}\n\n{report.table(heads, costs)}"


def turns(rounds: int, measure: Callable[[int], T]) -> Pairs[T]:
    """Measure number 0 and 1 in turns: 0 1, 1 0, 0 1, ..."""
    found: Pairs[T] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            found[which].append(measure(which))
    return found


def bursts(
    both: Sequence[Running], close: bool, rounds: int, connections: int = 8, seconds: int = 1
) -> Pairs[Burst]:
    """Bursts at two servers in turns, after one each to warm them up."""

    def measure(which: int) -> Burst:
        return burst(both[which], close, connections, seconds)

    turns(1, measure)
    return turns(rounds, measure)


@dataclass(frozen=True)
class Comparison:
    """Ours / stock."""

    rate: Spread
    p99: Spread
    cpu: Spread
    errors: str  #: ours / stock


def compare(found: Pairs[Burst]) -> Comparison:
    def ratio(name: str) -> Spread:
        ours, stock = ([getattr(burst, name) for burst in mine] for mine in found)
        return ratios(ours, stock)

    errors = " / ".join(str(sum(burst.errors for burst in mine)) for mine in found)
    return Comparison(ratio("rate"), ratio("p99"), ratio("cpu"), errors)


def _rates(engine: str, servers: tuple[Server, Server], rounds: int) -> list[list[str]]:
    rows = []
    with Running(servers[0]) as ours, Running(servers[1]) as stock:
        for close in (False, True):
            if engine == "sync" and not close:
                continue  # it keeps no connection alive
            found = bursts((ours, stock), close, rounds)
            ratio = compare(found)
            rows.append(
                [
                    engine,
                    "one per request" if close else "kept alive",
                    f"{sum(b.rate for b in found[1]) / rounds:.0f}",
                    ratio.rate.text(),
                    ratio.p99.text(),
                    ratio.cpu.text(),
                    ratio.errors,
                ]
            )
            report.tell(f"  {rows[-1]}")
    return rows


@dataclass(frozen=True)
class Memory:
    """What a server has after a second of load."""

    private: float  #: bytes, see there
    total: float  #: bytes, of all processes (PSS)


def memory(server: Server) -> Memory:
    with Running(server) as running:
        burst(running, close=True)
        processes = [*running.workers(), running.arbiter()]
        proportional = sum(process.memory_full_info().pss for process in processes)
        return Memory(private(running), proportional)


def private(running: Running) -> float:
    """Bytes that are nobody else's, of the mean worker (USS)."""
    workers = running.workers()
    return sum(process.memory_full_info().uss for process in workers) / len(workers)


def boot(server: Server) -> float:
    """Seconds to the first answer."""
    with Running(server) as running:
        return running.boot


def _costs(engine: str, servers: tuple[Server, Server], memories: int, boots: int) -> list[str]:
    found = turns(memories, lambda which: memory(servers[which]))
    own, total = ([[getattr(m, n) for m in mine] for mine in found] for n in ("private", "total"))
    booted = turns(boots, lambda which: boot(servers[which]))
    wall, cpu = _imports(engine, boots)
    row = [
        engine,
        f"{spread(own[1]).median / MIB:.1f}",
        _scaled(differences(*own), 1 / MIB).text("+.2f"),
        _scaled(differences(*total), 1 / MIB).text("+.2f"),
        f"{spread(booted[1]).median * 1e3:.0f}",
        _scaled(differences(*booted), 1e3).text("+.0f"),
        _scaled(wall, 1e3).text("+.0f"),
        _scaled(cpu, 1e3).text("+.0f"),
    ]
    report.tell(f"  {row}")
    return row


def _imports(engine: str, rounds: int) -> tuple[Spread, Spread]:
    """Seconds that our worker's import takes beyond the stock worker's: wall, processor."""
    module, our_module = MODULES[engine]
    stock = f"import gunicorn.app.wsgiapp, {module}"
    ours = f"{stock}, gracefulworker.workers.{our_module}"
    programs = (ours, stock)
    found = turns(rounds, lambda which: _timed([sys.executable, "-c", programs[which]]))
    wall, cpu = ([[pair[n] for pair in mine] for mine in found] for n in (0, 1))
    return differences(*wall), differences(*cpu)


def _timed(command: list[str]) -> tuple[float, float]:
    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    began, before = time.monotonic(), used()
    subprocess.run(command, check=True)
    return time.monotonic() - began, used() - before


def _scaled(found: Spread, factor: float) -> Spread:
    return Spread(found.low * factor, found.median * factor, found.high * factor)
