"""(c) What clients lose when a server stops: storms and rollouts, ours beside the field.

A storm is one server and clients that never pause, each request on a connection of its own. Then
SIGTERM; a client goes on until it is refused, which is the end of the storm and no loss. What is
left are requests that were accepted and not answered.

A rollout is `gracefulworker rehearse` (see there): three pods behind a Service, replaced one after
another, with an endpoint that goes away three seconds after its pod's deletion. Here a refusal is a
loss like any other.

What may be changed here: figures of the load. Each server gets the same, and nothing is retried.
"""

from __future__ import annotations

import asyncio
import collections
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from benchmarks import report
from benchmarks.figures import spread
from benchmarks.servers import Running, Server, field
from gracefulworker.tools.rehearse import kubeproxy
from gracefulworker.tools.rehearse.balancer import Balancer
from gracefulworker.tools.rehearse.journal import Ending, Exchange, Journal
from gracefulworker.tools.rehearse.plan import Plan
from gracefulworker.tools.rehearse.rollout import Result, Service, rehearse
from gracefulworker.tools.rehearse.wire import Connection, Direct, Lost, Request

CLIENTS = 12  #: of a storm
BEFORE, DELAY = 0.5, 0.5  #: seconds of a storm before SIGTERM, and ours after it
PATIENCE = 10.0  #: seconds for an answer


@dataclass(frozen=True)
class Rollout:
    """What is told of one rollout."""

    asked: int
    endings: collections.Counter[str]  #: the losses
    exits: list[float]  #: seconds from SIGTERM to the exit, of each old pod
    killed: int  #: old pods that needed SIGKILL

    @property
    def lost(self) -> int:
        return self.endings.total()


def run(quick: bool) -> str:
    """:returns: the section for RESULTS.md."""
    storms, seeds = (1, [1]) if quick else (5, [1, 2, 3])
    rows = []
    for server in field():
        report.tell(f"loss: {server.name}")
        storm = "" if server.pre_stop else _storms(server, storms)
        rollouts = [_alone(server, seed) for seed in seeds]
        endings = sum((r.endings for r in rollouts), collections.Counter[str]())
        exits = spread(exit for r in rollouts for exit in r.exits)
        rows.append(
            [
                server.name,
                storm,
                " / ".join(str(r.lost) for r in rollouts),
                str(sum(r.asked for r in rollouts) // len(rollouts)),
                ", ".join(f"{n} {name}" for name, n in endings.most_common()),
                exits.text(".1f"),
                str(sum(r.killed for r in rollouts)),
            ]
        )
    heads = ["server", f"lost in {storms} storms, of", "lost in a rollout, by seed", "of", "how"]
    heads += ["SIGTERM to exit, s", "SIGKILLs"]
    return f"The Service of the rollouts: {_service_name()}.\n\n{report.table(heads, rows)}"


def _service_name() -> str:
    return "kube-proxy's rules (iptables)" if _as_kube_proxy() else "a TCP balancer"


def _as_kube_proxy() -> bool:
    try:
        kubeproxy.check()
    except ValueError:
        return False
    return True


# -- storms ----------------------------------------------------------------------------------------


def _storms(server: Server, rounds: int) -> str:
    endings: collections.Counter[Ending] = collections.Counter()
    for _ in range(rounds):
        with Running(server, DELAY) as running:
            endings += asyncio.run(_storm(running))
    del endings[Ending.REFUSED]
    return f"{endings.total() - endings[Ending.OK]} of {endings.total()}"


async def _storm(running: Running) -> collections.Counter[Ending]:
    endings: collections.Counter[Ending] = collections.Counter()
    clients = [_ask_until_refused(running, endings) for _ in range(CLIENTS)]
    storm = asyncio.gather(*clients)
    await asyncio.sleep(BEFORE)
    running.terminate()
    await storm
    return endings


async def _ask_until_refused(running: Running, endings: collections.Counter[Ending]) -> None:
    ending = Ending.OK
    while ending is not Ending.REFUSED:
        try:
            ending = await asyncio.wait_for(_ask(running), PATIENCE)
        except asyncio.TimeoutError:
            ending = Ending.TIMEOUT
        endings[ending] += 1


async def _ask(running: Running) -> Ending:
    journal, exchange = Journal(), Exchange("storm", "GET /", 0.0, 0.0)
    try:
        connection = await Connection.open(journal, Direct(running.address), journal.open("storm"))
        answer = await connection.ask(Request("GET", "/"), exchange)
    except Lost as lost:
        return lost.ending
    connection.close()
    return Ending.OK if answer.status == 200 else Ending.SERVER_ERROR


# -- rollouts --------------------------------------------------------------------------------------


def _alone(server: Server, seed: int) -> Rollout:
    """A rollout in a process of its own: kube-proxy's rules are for the process that made them."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_rollout, server, seed).result()


def _rollout(server: Server, seed: int) -> Rollout:
    plan = Plan(
        app="",
        command=server.command,
        pre_stop=server.pre_stop,
        seed=seed,
        idle_limit=4.0,
        slow="/slow?seconds=1.5",
        stream="/stream",
        upload="/upload",
    )
    result: Result = asyncio.run(_rehearse(plan, server.name, seed))
    endings = result.journal.endings()
    del endings[Ending.OK.value]
    old = result.old_pods
    return Rollout(
        asked=result.journal.asked,
        endings=endings,
        exits=[pod.marks["exit"] - pod.marks["sigterm"] for pod in old],
        killed=sum("sigkill" in pod.marks for pod in old),
    )


async def _rehearse(plan: Plan, name: str, seed: int) -> Result:
    service: Service = kubeproxy.KubeProxy() if _as_kube_proxy() else Balancer(seed)
    return await rehearse(plan, name, service, Journal(), lambda event: None)
