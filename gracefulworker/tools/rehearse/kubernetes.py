"""A rollout in a cluster: of a Deployment or StatefulSet that runs there, under load from here.

The load goes to its URL; kubectl restarts it (or somebody else does), and watches tell what becomes
of its pods. Nothing is changed in the cluster but by that one `kubectl rollout restart`: whatever
ends the rehearsal, the rollout goes on by itself.

What may be changed here: the order of events. What an event means stands in `kubernetes_events`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gracefulworker.tools.rehearse import kubernetes_events as events
from gracefulworker.tools.rehearse.clients import Clients
from gracefulworker.tools.rehearse.journal import Journal
from gracefulworker.tools.rehearse.kubectl import Follower, Kubectl, NoCluster
from gracefulworker.tools.rehearse.plan import Plan
from gracefulworker.tools.rehearse.rollout import AFTERWARDS, Tell
from gracefulworker.tools.rehearse.wire import Direct, Tls

#: Seconds in which the watches must have told of all pods.
WATCHES_WITHIN = 15.0

#: Seconds beyond its grace period in which the last old pod must be gone.
LEEWAY = 30.0

#: Seconds between two looks at whether the watches are still there.
LOOK_PERIOD = 1.0

#: Of so many old pods the logs are followed.
LOGS = 20

#: Seconds for which what is under way when Ctrl-C comes is waited for.
LAST_ANSWERS = 1.0


@dataclass(frozen=True)
class Target:
    """What is rehearsed, as it is before the rollout."""

    workload: str  #: KIND/NAME
    namespace: str
    context: str
    version: str  #: of the cluster
    selector: str
    replicas: int
    template: Any


def server(url: str) -> tuple[Direct, str, str]:
    """Where the load goes: the server, its name for the Host field, and the path.

    :raises ValueError: that is no URL, or of nobody's; the argument is a sentence.
    """
    parts = urlsplit(url)
    try:
        standard = {"http": 80, "https": 443}[parts.scheme]
        port = parts.port or standard
    except (KeyError, ValueError):
        port = 0
    host = parts.hostname
    if not port or not host or parts.username or parts.fragment:
        raise ValueError(f"--url takes http://HOST[:PORT][/PATH] or https://..., not {url!r}")
    try:
        # Once: the rehearsal is not of name servers.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"--url: {host} is not known here ({error.strerror})") from None
    tls = Tls(ssl.create_default_context(), host) if parts.scheme == "https" else None
    name = parts.netloc
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return Direct((str(found[0][4][0]), port), tls), name, path


def examine(kubectl: Kubectl, workload: str, context: str | None, *, only_watch: bool) -> Target:
    """What is there, and whether it can be rehearsed.

    :raises NoCluster: it cannot.
    """
    found = kubectl.get(workload)
    namespace = found["metadata"]["namespace"]
    rights = [
        ("list", "pods"),
        ("watch", "pods"),
        ("get", "pods/log"),
        ("list", "endpointslices.discovery.k8s.io"),
        ("watch", "endpointslices.discovery.k8s.io"),
        ("list", workload),
        ("watch", workload),
    ]
    if not only_watch:
        rights.append(("patch", workload))
    with ThreadPoolExecutor(len(rights)) as pool:
        allowed = list(pool.map(lambda right: kubectl.may(*_question(right)), rights))
    missing = [
        " ".join(right) for right, is_allowed in zip(rights, allowed, strict=True) if not is_allowed
    ]
    if missing:
        raise NoCluster(
            f"this user may not {', '.join(missing)} in the namespace {namespace} (kubectl auth"
            " can-i): ask for a Role with that"
        )
    if reason := events.hindrance(found):
        raise NoCluster(f"{workload} cannot be rehearsed now: {reason}")
    return Target(
        workload,
        namespace,
        context or _current_context(kubectl),
        json.loads(kubectl.run("version", "--output", "json"))["serverVersion"]["gitVersion"],
        events.selector(found),
        found["spec"].get("replicas", 1),
        found["spec"]["template"],
    )


def _question(right: tuple[str, str]) -> tuple[str, ...]:
    verb, resource = right
    name, _, subresource = resource.partition("/")
    if name == "pods" and subresource:
        return (verb, name, f"--subresource={subresource}")
    return (verb, f"{name}s.apps/{subresource}") if subresource else right


def _current_context(kubectl: Kubectl) -> str:
    try:
        return kubectl.run("config", "current-context").strip()
    except NoCluster:
        return "of this pod"  # in a cluster kubectl works without any


@dataclass(frozen=True)
class Result:
    """One rollout in a cluster."""

    worker: str  #: the workload
    plan: Plan
    journal: Journal
    sightings: events.Sightings
    load: tuple[float, float]

    @property
    def old_pods(self) -> list[events.SeenPod]:
        return self.sightings.old

    def facts(self) -> list[dict[str, Any]]:
        """What was noted of each pod, for JSON."""
        return [pod.facts() for pod in self.sightings.pods.values()]

    @property
    def lost_before(self) -> int:
        """What was lost before any pod's deletion was asked, so not by a pod's end."""
        pods = self.sightings.pods.values()
        first = min((pod.marks.get("deleted", self.load[1]) for pod in pods), default=self.load[1])
        return sum(x.lost and x.ended < first for x in self.journal.exchanges())

    @property
    def clean(self) -> bool:
        """Nothing was lost, and no container of an old pod was killed or failed."""
        return not self.journal.lost and not any(pod.failures for pod in self.old_pods)


class ClusterRollout:
    """The rollout; `result` has what was seen, also when `run` was not ended by itself."""

    def __init__(
        self,
        plan: Plan,
        target: Target,
        kubectl: Kubectl,
        service: Direct,
        journal: Journal,
        tell: Tell,
    ) -> None:
        self._plan, self._target, self._kubectl = plan, target, kubectl
        self._service, self._journal, self._tell = service, journal, tell
        self._clients = Clients(plan, service, journal)
        self._sightings = events.Sightings()
        self._followers: list[Follower] = []
        self._watches: list[Follower] = []
        self._news = asyncio.Event()
        self._begin: float | None = None
        self._end: float | None = None
        self._is_begun = False  # by somebody else

    @property
    def result(self) -> Result | None:
        """None before the load has begun."""
        if self._begin is None:
            return None
        end = self._journal.now() if self._end is None else self._end
        return Result(
            self._target.workload,
            self._plan,
            self._journal,
            self._sightings,
            (self._begin, end),
        )

    async def run(self, within: float, *, only_watch: bool) -> None:
        """Load, rollout, and the end of the last old pod.

        :param within: seconds that the rollout may take, and until one begins that is watched.
        :raises NoCluster: it does not come to its end.
        :raises Unusable: what is asked for is not answered before anything has happened.
        """
        await self._watch()
        old = self._sightings.begin()
        for pod in old[:LOGS]:
            await self._read_log(pod)
        if len(old) > LOGS:
            self.tell(f"the logs of {LOGS} of the {len(old)} pods are followed")
        for sentence in await self._clients.learn([self._service]):
            self.tell(sentence)
        self._clients.start()
        self._begin = self._journal.now()
        self.tell(f"pods: {len(old)}; the load begins")
        await self._clients.warm_up()
        if only_watch:
            await self._wait_for_others(within)
        else:
            await self._say("rollout", "restart", self._target.workload)
            self.tell(f"kubectl rollout restart {self._target.workload}")
        status = ("rollout", "status", self._target.workload, f"--timeout={within:g}s")
        await self._say(*status)
        self.tell("the rollout is complete")
        await self._wait_for_the_last(old)
        await asyncio.sleep(AFTERWARDS)
        self._end = self._journal.now()
        await self._clients.stop()
        self.tell("the load has ended")
        await self._clients.leave()

    def tell(self, what: str) -> None:
        self._tell(f"{self._journal.now():5.1f} s  {what}")

    async def clean_up(self) -> None:
        """End clients and kubectl, whatever happened."""
        if self._end is None:
            self._end = self._journal.now()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._clients.stop(), LAST_ANSWERS)
        await self._clients.clean_up()
        await asyncio.gather(*(follower.close() for follower in self._followers))

    async def _follow(self, hear: Callable[[str], None], *words: str) -> Follower:
        follower = Follower(self._kubectl.command(*words), hear)
        self._followers.append(await follower.start())
        return follower

    async def _say(self, *words: str) -> None:
        """One command of kubectl's, to its end.

        :raises NoCluster: it fails.
        """
        follower = await self._follow(lambda line: None, *words)
        await follower.ended
        if follower.status:
            sentence = f"kubectl {' '.join(words[:3])}: {follower.trouble}"
            raise NoCluster(f"{sentence}; the cluster is left as it is")

    async def _watch(self) -> None:
        """Begin to watch the pods and EndpointSlices, and wait until all pods are known."""
        said = ("--watch", "--output-watch-events", "--output", "json")
        self._watches = [
            await self._follow(
                lambda line: self._note(self._sightings.pod, line),
                *("get", "pods", "--selector", self._target.selector, *said),
            ),
            await self._follow(
                lambda line: self._note(self._sightings.slices, line),
                *("get", "endpointslices.discovery.k8s.io", *said),
            ),
        ]
        give_up = self._journal.now() + WATCHES_WITHIN
        while len(self._sightings.pods) < self._target.replicas:
            rest = give_up - self._journal.now()
            if rest <= 0:
                known = f"{len(self._sightings.pods)} of {self._target.replicas}"
                raise NoCluster(f"kubectl get --watch told of {known} pods in {WATCHES_WITHIN:g} s")
            await self._wait_news(rest)

    def _note(self, note: Callable[[events.Object, float], list[str]], line: str) -> None:
        at = self._journal.now()
        for sentence in note(json.loads(line), at):
            if self._begin is not None:
                self.tell(sentence)
        self._news.set()

    async def _wait_news(self, at_most: float) -> None:
        """Wait for the next event.

        :raises NoCluster: there will be none, because a watch has ended.
        """
        for watch in self._watches:
            if watch.ended.done():
                watch.ended.result()
                raise NoCluster(f"kubectl get --watch has ended: {watch.trouble}")
        self._news.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), min(at_most, LOOK_PERIOD))

    async def _read_log(self, pod: events.SeenPod) -> None:
        await self._follow(
            lambda line: pod.hear(line, self._journal.now()),
            *("logs", "--follow", pod.name, "--all-containers", "--prefix", "--tail=0"),
            "--max-log-requests=50",
        )

    async def _wait_for_others(self, within: float) -> None:
        """Wait until somebody else has changed the pods' template."""
        workload = self._target.workload

        def hear(line: str) -> None:
            event = json.loads(line)
            template = event["object"].get("spec", {}).get("template")
            if template not in (None, self._target.template) and not self._is_begun:
                self._is_begun = True
                self.tell(f"the rollout of {workload} has begun")
            self._news.set()

        said = ("--watch", "--output-watch-events", "--output", "json")
        self._watches.append(await self._follow(hear, "get", workload, *said))
        self.tell(f"waiting for a rollout of {workload}, {within:g} s at most")
        give_up = self._journal.now() + within
        while not self._is_begun:
            rest = give_up - self._journal.now()
            if rest <= 0:
                raise NoCluster(f"nobody has begun a rollout of {workload} within {within:g} s")
            await self._wait_news(rest)

    async def _wait_for_the_last(self, old: list[events.SeenPod]) -> None:
        """Wait until all pods that are being deleted have gone."""
        most = max((pod.grace for pod in old), default=0.0) + LEEWAY
        give_up = self._journal.now() + most
        while any("gone" not in pod.marks and "deleted" in pod.marks for pod in old):
            rest = give_up - self._journal.now()
            if rest <= 0:
                names = ", ".join(pod.name for pod in old if "gone" not in pod.marks)
                raise NoCluster(f"{names}: still there {most:g} s after the rollout")
            await self._wait_news(rest)
