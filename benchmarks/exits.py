"""(b) How long a server is still there when its work is done.

The work: idle keep-alive connections (they have had one answer each), and one request that is under
way at SIGTERM and goes on beyond our delay; or none. Measured is the time from the end of that
answer to the exit of the first process; without such a request from the end of the delay, which for
stock is SIGTERM itself.

What may be changed here: the figures in capitals.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from benchmarks import report
from benchmarks.figures import spread
from benchmarks.servers import ENGINES, Client, Running, Server, capacity, pair

IDLE = (0, 100, 5000)  #: connections; sync keeps none
DELAY = 1.0  #: seconds, ours
ACTIVE = 2.0  #: seconds that the request takes
BEGIN = 0.3  #: seconds of them before SIGTERM, so that it has reached the application

#: Stock gevent sits out gunicorn's graceful_timeout of 30 s: it is not made to do that often.
STOCK_ROUNDS = 1


def run(quick: bool) -> str:
    """:returns: the section for RESULTS.md."""
    rounds, stock_rounds = (1, 1) if quick else (3, STOCK_ROUNDS)
    rows = []
    for engine in ENGINES:
        for count in IDLE if engine != "sync" else (0,):
            row = [engine, str(count)]
            ours, stock = pair(engine, *capacity(engine))
            for server, delay, often in ((ours, DELAY, rounds), (stock, 0.0, stock_rounds)):
                for active in (True, False):
                    times = [overtime(server, delay, count, active) for _ in range(often)]
                    row.append(spread(time * 1e3 for time in times).text(".0f"))
            report.tell(f"exit: {row}")
            rows.append(row)
    heads = ["worker", "idle connections", "ours, from the last answer, ms"]
    heads += ["ours, from the end of the delay, ms", "stock, from the last answer, ms"]
    return report.table([*heads, "stock, from SIGTERM, ms"], rows)


def overtime(server: Server, delay: float, count: int, active: bool) -> float:
    """Seconds from the end of the work to the exit."""
    with Running(server, delay) as running, idle(running, count):
        if active:
            with Client(running.address) as client:
                client.send(f"/slow?seconds={ACTIVE}")
                time.sleep(BEGIN)
                running.terminate()
                client.read()
                done = time.monotonic()
                return running.wait_exit() - done
        done = running.terminate() + delay
        return running.wait_exit() - done


@contextlib.contextmanager
def idle(running: Running, count: int) -> Iterator[None]:
    """Keep so many connections open, each with one answer behind it."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(Client(running.address)).ask("/")
        yield
