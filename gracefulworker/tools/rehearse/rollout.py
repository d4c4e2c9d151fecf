"""The rollout: pods are replaced one after another under load, as a Deployment does it.

With maxSurge 1 and maxUnavailable 0: a new pod starts; when it is ready it becomes an endpoint, and
an old one is deleted, which sets off two things that do not wait for each other. The kubelet sends
SIGTERM at once (and SIGKILL at the end of the grace period); the endpoint goes away `lag` seconds
later. The next new pod starts without waiting for the old one's exit.

What may be changed here: the order of events, where Kubernetes has it otherwise.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from gracefulworker.tools.rehearse import wire
from gracefulworker.tools.rehearse.clients import Broken, Clients, Unusable
from gracefulworker.tools.rehearse.journal import Journal, Track, slept_through
from gracefulworker.tools.rehearse.plan import Plan
from gracefulworker.tools.rehearse.pods import Place, Pod

#: Seconds between two looks at which pod has which connection.
LOOK_PERIOD = 0.25

#: The load goes on until all old pods are gone, but not for longer than this many seconds after
#: the last endpoint went away; and then for AFTERWARDS more.
LOAD_AT_MOST = 4.0
AFTERWARDS = 0.5

#: Seconds that the pods which are left at the end have for their hooks, and what is done at exit.
QUITTING = 2.0

Tell = Callable[[str], None]


class Service(wire.Service, Protocol):
    """What the rollout needs of a Service: `balancer` and `kubeproxy` have one each."""

    async def __aenter__(self) -> Service: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    async def place(self, number: int) -> Place:
        """A place for one more pod; places are given back at the end of the Service."""
        ...

    async def add(self, pod: Pod) -> None:
        """Make it an endpoint."""
        ...

    async def remove(self, pod: Pod) -> None:
        """Choose it no more; what it has stays with it."""
        ...

    def pods_by_port(self) -> dict[int, str]:
        """Which pod the clients' connections lead to, by the port on the client's side."""
        ...


@dataclass(frozen=True)
class Result:
    """One worker class's rollout."""

    worker: str
    plan: Plan
    journal: Journal
    pods: list[Pod]
    load: tuple[float, float]  #: begin and end

    @property
    def old_pods(self) -> list[Pod]:
        """Those that were replaced."""
        return [pod for pod in self.pods if "sigterm" in pod.marks]

    @property
    def failed_pods(self) -> list[Pod]:
        """Old ones that went by themselves, with another status than 0."""
        return [pod for pod in self.old_pods if pod.status and "sigkill" not in pod.marks]

    def overtime(self, pod: Pod) -> float:
        """Seconds from the last active request, or the end of the delay, to the exit."""
        since = max(self.journal.last_active(pod.name), pod.marks.get("gate", pod.marks["sigterm"]))
        return max(0.0, pod.marks["exit"] - since)

    def idle_closes(self, pod: Pod) -> tuple[list[Track], list[Track]]:
        """Idle connections that it closed unannounced after its SIGTERM.

        First those that it could have told, then those that were idle all the time.
        """
        # Its own word comes a moment after the signal was sent, on a busy machine a long one.
        told = pod.marks.get("lame_duck", pod.marks["sigterm"])
        closed = self.journal.idle_closes(pod.name, pod.marks["sigterm"])
        asleep = [track for track in closed if slept_through(track, told)]
        return [track for track in closed if track not in asleep], asleep

    def facts(self) -> list[dict[str, Any]]:
        """What was noted of each pod, for JSON."""
        return [self._facts(pod) for pod in self.pods]

    def _facts(self, pod: Pod) -> dict[str, Any]:
        found: dict[str, Any] = {"name": pod.name, "marks": pod.marks, "log": pod.log}
        if pod in self.old_pods:
            told, asleep = self.idle_closes(pod)
            found.update(
                status=pod.status,
                overtime=self.overtime(pod),
                idle_closed=len(told),
                idle_closed_asleep=len(asleep),
            )
        return found

    @property
    def lost_before(self) -> int:
        """What was lost before any pod got SIGTERM, so not by a pod's end."""
        first = min((pod.marks["sigterm"] for pod in self.old_pods), default=self.load[1])
        return sum(x.lost and x.ended < first for x in self.journal.exchanges())

    @property
    def clean(self) -> bool:
        """Nothing was lost, and each old pod went by itself with status 0."""
        killed = any("sigkill" in pod.marks for pod in self.old_pods)
        return not (self.journal.lost or killed or self.failed_pods)


async def rehearse(
    plan: Plan, worker: str, service: Service, journal: Journal, tell: Tell
) -> Result:
    """Rehearse one worker class, and fill `journal`; `tell` is given a line for each event.

    :raises NotReady: a pod does not start.
    :raises Unusable: the application does not answer before anything has happened.
    """
    async with service:
        rollout = _Rollout(plan, worker, service, journal, tell)
        try:
            return await rollout.run()
        finally:
            await rollout.clean_up()


class _Rollout:
    def __init__(
        self, plan: Plan, worker: str, service: Service, journal: Journal, tell: Tell
    ) -> None:
        self.plan, self.worker, self._tell = plan, worker, tell
        self.service, self.journal = service, journal
        self.pods: list[Pod] = []
        self.clients = Clients(plan, service, journal)
        self._tasks: list[asyncio.Task[None]] = []
        self._files: tempfile.TemporaryDirectory[str] | None = None
        if any("{files}" in word for word in plan.command):
            self._files = tempfile.TemporaryDirectory(prefix="gracefulworker-rehearsal-")

    async def run(self) -> Result:
        plan = self.plan
        pods = [await self._start() for _ in range(plan.pods)]
        for pod in pods:
            await self._ready(pod)
        try:
            reservations = await self.clients.learn(
                [wire.Direct(pod.place.address) for pod in pods]
            )
        except Broken as broken:
            told = next(pod for pod in pods if pod.place.address == broken.address)
            raise Unusable(f"{broken}{told.last_words()}") from None
        for sentence in reservations:
            self.tell(sentence)
        self.clients.start()
        begin = self.journal.now()
        self._tasks.append(asyncio.ensure_future(self._watch()))
        self.tell("all pods are ready, the load begins")
        await self.clients.warm_up()
        deletions = []
        for old in pods:
            new = await self._start()
            await self._ready(new)
            self.tell(f"{new.name} is ready")
            deletions.append(asyncio.ensure_future(self._delete(old)))
            self._tasks += deletions[-1:]
        await asyncio.sleep(plan.lag)
        await asyncio.wait(deletions, timeout=LOAD_AT_MOST)
        await asyncio.sleep(AFTERWARDS)
        end = self.journal.now()
        await self.clients.stop()
        self.tell("the load has ended")
        await asyncio.gather(*deletions)
        await self.clients.leave()
        self._settle()
        return Result(self.worker, plan, self.journal, self.pods, (begin, end))

    def tell(self, what: str) -> None:
        self._tell(f"{self.journal.now():5.1f} s  {what}")

    async def clean_up(self) -> None:
        """End clients and pods, whatever happened, also when it is cancelled itself."""
        for task in self._tasks:
            task.cancel()
        try:
            for pod in self.pods:
                pod.quit()
            await self.clients.clean_up()
            if self.pods:
                await asyncio.wait([pod.gone for pod in self.pods], timeout=QUITTING)
        finally:
            for pod in self.pods:
                pod.kill()
        for pod in self.pods:
            await pod.clean_up()
        if self._files is not None:
            self._files.cleanup()

    async def _start(self) -> Pod:
        number = len(self.pods) + 1
        place = await self.service.place(number)
        if self._files is not None:
            place.files = tempfile.mkdtemp(prefix=f"pod{number}-", dir=self._files.name)
        pod = Pod(f"pod {number}", place, self.journal.now)
        pod.start(self.plan.command)
        self.pods.append(pod)
        return pod

    async def _ready(self, pod: Pod) -> None:
        place, plan = pod.place, self.plan
        address = place.probes if plan.ready_at_probes else place.address
        await pod.wait_ready(address, plan.ready_path, plan.ready_within)
        await self.service.add(pod)

    async def _delete(self, pod: Pod) -> None:
        """The two paths of a pod's removal, side by side."""
        self.tell(f"{pod.name} {'is deleted' if self.plan.pre_stop else 'gets SIGTERM'}")
        await asyncio.gather(self._end_endpoint(pod), self._kubelet(pod))

    async def _end_endpoint(self, pod: Pod) -> None:
        await asyncio.sleep(self.plan.lag)
        await self.service.remove(pod)
        pod.marks["endpoint_gone"] = self.journal.now()
        self.tell(f"{pod.name} is no endpoint any more")

    async def _kubelet(self, pod: Pod) -> None:
        await asyncio.sleep(self.plan.pre_stop)
        await pod.stop(self.plan.grace - self.plan.pre_stop)
        killed = ", killed at the end of the grace period" if "sigkill" in pod.marks else ""
        self.tell(f"{pod.name} has exited with status {pod.status}{killed}")

    async def _watch(self) -> None:
        """Note which pod has which connection while the Service knows."""
        while True:
            await asyncio.sleep(LOOK_PERIOD)
            self.journal.settle(self.service.pods_by_port())

    def _settle(self) -> None:
        """Note the pods of what is left, at the end."""
        self.journal.settle(self.service.pods_by_port())
        for track in self.journal.tracks:
            if track.pod is None:
                # The kernel keeps nothing of a refusal; it was one that is leaving, if only one is.
                leaving = [pod.name for pod in self.pods if pod.is_leaving(track.opened)]
                track.pod = leaving[0] if len(leaving) == 1 else None
