"""(d) How each figure grows with connections and with workers: ours beside stock.

The figures are those of (a) and (b). A load of so many connections asks on all of them without a
pause (sync: on a new one each time); for memory and exit that many are open and idle.

What may be changed here: the figures in capitals.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import exits, report, steady
from benchmarks.figures import differences, spread
from benchmarks.servers import ENGINES, Running, Server, capacity, pair

CONNECTIONS = (10, 100, 1000, 5000)
WORKERS = (1, 2, 4, 8)

#: Seconds of a burst: so many connections take a while to be opened.
SECONDS = {5000: 4, 1000: 2}


def run(quick: bool) -> str:
    """:returns: the section for RESULTS.md."""
    rounds = 1 if quick else 4
    rows = _rows(CONNECTIONS, _with_connections, rounds)
    heads = ["worker", "connections", "requests/s, ours / stock", "p99, ours / stock"]
    heads += ["errors, ours / stock", "memory per worker with so many idle ones, ours - stock, MiB"]
    first = report.table([*heads, "exit with so many idle ones, ours, ms"], rows)
    rows = _rows(WORKERS, _with_workers, rounds)
    heads = ["worker", "workers", "requests/s, ours / stock", "p99, ours / stock"]
    heads += ["memory per worker, ours - stock, MiB", "start, ours - stock, ms"]
    return f"{first}\n\n{report.table([*heads, 'exit, ours, ms', 'exit, stock, ms'], rows)}"


def _rows(
    counts: tuple[int, ...], measure: Callable[[str, int, int], list[str]], rounds: int
) -> list[list[str]]:
    rows = []
    for engine in ENGINES:
        for count in counts:
            rows.append([engine, str(count), *measure(engine, count, rounds)])
            report.tell(f"growth: {rows[-1]}")
    return rows


def _with_connections(engine: str, count: int, rounds: int) -> list[str]:
    servers = pair(engine, *capacity(engine))
    keeps = engine != "sync"
    with Running(servers[0]) as ours, Running(servers[1]) as stock:
        both = ours, stock
        found = steady.bursts(both, not keeps, rounds, count, SECONDS.get(count, 1))
        ratio = steady.compare(found)
        memory = ""
        if keeps:
            with exits.idle(ours, count), exits.idle(stock, count):
                own = [steady.private(running) / steady.MIB for running in both]
            memory = f"{own[0] - own[1]:+.2f}"
    cells = [ratio.rate.text(), ratio.p99.text(), ratio.errors, memory]
    if not keeps:
        return [*cells, ""]
    return [*cells, _exit_ms(servers[0], exits.DELAY, count, max(1, rounds // 2))]


def _with_workers(engine: str, count: int, rounds: int) -> list[str]:
    servers = pair(engine, *steady.OPTIONS[engine], "--workers", str(count))
    with Running(servers[0]) as ours, Running(servers[1]) as stock:
        found = steady.bursts((ours, stock), engine == "sync", rounds, connections=32)
    ratio = steady.compare(found)
    found = steady.turns(max(1, rounds // 2), lambda which: steady.memory(servers[which]))
    own = ([memory.private / steady.MIB for memory in mine] for mine in found)
    found = steady.turns(rounds * 2, lambda which: steady.boot(servers[which]))
    boot = ([seconds * 1e3 for seconds in mine] for mine in found)
    return [
        ratio.rate.text(),
        ratio.p99.text(),
        differences(*own).text("+.2f"),
        differences(*boot).text("+.0f"),
        _exit_ms(servers[0], exits.DELAY, 0, max(1, rounds // 2)),
        _exit_ms(servers[1], 0.0, 0, max(1, rounds // 2)),
    ]


def _exit_ms(server: Server, delay: float, idle: int, rounds: int) -> str:
    times = [exits.overtime(server, delay, idle, active=False) for _ in range(rounds)]
    return spread(time * 1e3 for time in times).text(".0f")
