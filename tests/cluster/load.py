"""The rehearsal's clients, run in a pod: load on one address until standard input ends it.

    python load.pyz '{"address": ["10.96.0.7", 80], "rate": 20, ...}'

This is the ``__main__`` of the archive that `kube.Client` makes of gracefulworker and h11. A line
of JSON says that the load has begun, a last one what became of each request. A line that is read is
the seconds for which the load still goes on, by this clock; none is 0.
"""

from __future__ import annotations

import asyncio
import collections
import json
import sys
import time

from gracefulworker.tools.rehearse.clients import Clients
from gracefulworker.tools.rehearse.journal import Journal
from gracefulworker.tools.rehearse.plan import Plan
from gracefulworker.tools.rehearse.wire import Direct

#: Of so many losses the moment is told, too.
TOLD = 100


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def until_reached(address: tuple[str, int]) -> None:
    """Wait for the news of a Service that has just been made; those who wait for it end this."""
    while True:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(*address), 1)
        except (OSError, asyncio.TimeoutError):
            await asyncio.sleep(0.2)
        else:
            writer.close()
            return


async def run(address: tuple[str, int], plan: Plan) -> None:
    journal = Journal()
    await until_reached(address)
    service = Direct(address)
    clients = Clients(plan, service, journal)
    await clients.learn([service])
    clients.start()
    await asyncio.sleep(plan.warm_up)
    say(began=time.time())
    # It ends also when whoever has started this has gone.
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await asyncio.sleep(float(line or 0))
    await clients.stop()
    await clients.leave()
    await clients.clean_up()
    zero = time.time() - journal.now()
    lost = [exchange for exchange in journal.exchanges() if exchange.lost]
    say(
        asked=journal.asked,
        endings=collections.Counter(f"{x.kind}: {x.label}" for x in lost),
        lost=len(lost),
        moments=[(zero + x.began, zero + x.ended, x.kind, x.label) for x in lost][:TOLD],
    )


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    host, port = given.pop("address")
    asyncio.run(run((host, port), Plan("cluster", same_body=False, **given)))
