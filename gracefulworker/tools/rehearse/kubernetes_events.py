"""What the watches of a cluster say of its pods: pure functions of events and the time they came.

An event is what `kubectl get --watch --output-watch-events --output json` prints on one line. A
time is when it came here: the objects have none finer than a second, and by another clock.

What may be changed here: what is noted of a pod. Nothing is noted that no event said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gracefulworker.tools.rehearse.pods import PHASE_LINES

Object = Mapping[str, Any]

#: The kinds that can be rehearsed, by each name that kubectl takes for them.
KINDS = {
    **dict.fromkeys(("deployment", "deployments", "deploy"), "deployment"),
    **dict.fromkeys(("statefulset", "statefulsets", "sts"), "statefulset"),
}

#: Exit codes that are no failure: 143 is the death by SIGTERM of a program that does not mind it.
IN_ORDER = (0, 143)
KILLED = 137

#: What our last log line tells of the last newcomer.
_NEWCOMER = re.compile(r"last new connection \+([\d.]+) s")
#: What `kubectl logs --prefix` puts before each line.
_PREFIX = re.compile(r"\[pod/[^/\]]+/([^/\]]+)\] ?")


def workload(text: str) -> str:
    """KIND/NAME in one form.

    :raises ValueError: it is none of a Deployment or StatefulSet; the argument is a sentence.
    """
    kind, slash, name = text.partition("/")
    kind = KINDS.get(kind.lower().removesuffix(".apps"), "")
    if not (slash and kind and re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name)):
        raise ValueError(f"--kubernetes takes deployment/NAME or statefulset/NAME, not {text!r}")
    return f"{kind}/{name}"


def selector(workload: Object) -> str:
    """The pods of a workload, in kubectl's words."""
    chosen = workload["spec"]["selector"]
    found = [f"{key}={value}" for key, value in (chosen.get("matchLabels") or {}).items()]
    for rule in chosen.get("matchExpressions") or ():
        key, values = rule["key"], ",".join(rule.get("values") or ())
        found.append(
            {
                "In": f"{key} in ({values})",
                "NotIn": f"{key} notin ({values})",
                "Exists": key,
                "DoesNotExist": f"!{key}",
            }[rule["operator"]]
        )
    return ",".join(found)


def hindrance(workload: Object) -> str:
    """Why a rollout of this workload would show nothing now; empty if it would."""
    spec, status = workload["spec"], workload.get("status") or {}
    replicas = spec.get("replicas", 1)
    if spec.get("paused"):
        return "it is paused: kubectl rollout resume"
    if spec.get("updateStrategy", {}).get("type") == "OnDelete":
        return "its updateStrategy is OnDelete, so a restart replaces no pod"
    if not replicas:
        return "it has no pods: scale it up first"
    is_partial = spec.get("updateStrategy", {}).get("rollingUpdate", {}).get("partition")
    is_known = status.get("observedGeneration", 0) >= workload["metadata"].get("generation", 0)
    if not is_known or (status.get("updatedReplicas", 0) < replicas and not is_partial):
        return "it is in the middle of a rollout: wait for its end (kubectl rollout status)"
    if (ready := status.get("readyReplicas", 0)) < replicas:
        return f"{ready} of its {replicas} pods are ready: wait until all are"
    return ""


@dataclass
class Container:
    """One container of a pod, and how it ended as far as was seen."""

    name: str
    restarts: int = 0
    seen: float | None = None  #: when its end was told
    finished_at: str | None = None  #: the kubelet's word, by its clock
    exit_code: int | None = None
    reason: str | None = None

    @property
    def words(self) -> str:
        """Its end in a few words."""
        if self.exit_code is None:
            return "not seen"
        return f"{self.exit_code} {self.reason or ''}".rstrip()


@dataclass
class SeenPod:
    """A pod of the workload. `marks` has the times of what was told of it, by name:

    seen, ready, deleted (its deletion was asked), terminating and endpoint_gone (what the
    EndpointSlices say), lame_duck, gate and stopped (its log), exit (its last container), gone.
    """

    name: str
    uid: str
    grace: float = 30.0
    is_old: bool = False
    marks: dict[str, float] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    log: list[tuple[float, str]] = field(default_factory=list)
    last_line: str | None = None  #: ours, if one was seen
    #: When it was not ready, though nobody had asked for its deletion: begin and end.
    unready: list[list[float | None]] = field(default_factory=list)

    @property
    def restarts(self) -> int:
        return sum(container.restarts for container in self.containers.values())

    @property
    def failures(self) -> list[Container]:
        """Containers that were killed, or ended with a status that says so."""
        ended = (c for c in self.containers.values() if c.exit_code is not None)
        return [container for container in ended if container.exit_code not in IN_ORDER]

    @property
    def delay(self) -> float | None:
        """Seconds that it served on, by its log."""
        if "lame_duck" in self.marks and "gate" in self.marks:
            return self.marks["gate"] - self.marks["lame_duck"]
        return None

    @property
    def newcomer(self) -> float | None:
        """Seconds from its SIGTERM to its last new connection, by its last line."""
        found = _NEWCOMER.search(self.last_line or "")
        return float(found[1]) if found else None

    def since_deletion(self, mark: str) -> float | None:
        if "deleted" not in self.marks or mark not in self.marks:
            return None
        return self.marks[mark] - self.marks["deleted"]

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "old": self.is_old,
            "marks": self.marks,
            "containers": [asdict(container) for container in self.containers.values()],
            "restarts": self.restarts,
            "unready": self.unready,
            "last_line": self.last_line,
            "last_new_connection": self.newcomer,
            "log": self.log,
        }

    def hear(self, line: str, at: float) -> None:
        """Note a line of its log, as `kubectl logs --prefix` prints it, if it is one of ours.

        What an application logs is nobody's business here.
        """
        line = _PREFIX.sub("", line, count=1)
        for mark, form in PHASE_LINES.items():
            if found := form.search(line):
                self.log.append((at, line))
                self.marks.setdefault(mark, at)
                if mark == "stopped":
                    self.last_line = line[found.start() :]


class Sightings:
    """All pods of a workload, as events tell of them. What is returned are sentences."""

    def __init__(self) -> None:
        self.pods: dict[str, SeenPod] = {}  # by uid: a StatefulSet uses names again
        self._slices: dict[str, dict[str, bool]] = {}  # name -> uid -> is it terminating

    @property
    def old(self) -> list[SeenPod]:
        return [pod for pod in self.pods.values() if pod.is_old]

    def begin(self) -> list[SeenPod]:
        """What there is now are the old pods, but for those that are leaving already."""
        for pod in self.pods.values():
            pod.is_old = not pod.marks.keys() & {"deleted", "exit", "gone"}
        return self.old

    def pod(self, event: Object, at: float) -> list[str]:
        """An event of the pods' watch."""
        found: list[str] = []
        if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
            return found
        new, meta = event["object"], event["object"]["metadata"]
        pod = self.pods.get(meta["uid"])
        if pod is None:
            grace = new["spec"].get("terminationGracePeriodSeconds", 30)
            pod = self.pods[meta["uid"]] = SeenPod(meta["name"], meta["uid"], grace)
            pod.marks["seen"] = at
        status = new.get("status") or {}
        is_ready = any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in status.get("conditions") or ()
        )
        if is_ready and self._mark(pod, "ready", at):
            found.append(f"{pod.name} is ready")
        if meta.get("deletionTimestamp") and self._mark(pod, "deleted", at):
            found.append(f"{pod.name}: its deletion is asked")
        is_unready = not is_ready and "ready" in pod.marks and "deleted" not in pod.marks
        was_unready = bool(pod.unready) and pod.unready[-1][1] is None
        if is_unready and not was_unready:
            pod.unready.append([at, None])
            found.append(f"{pod.name} is not ready any more")
        elif was_unready and not is_unready:
            pod.unready[-1][1] = at
        found += self._containers(pod, status, at)
        if event["type"] == "DELETED" and self._mark(pod, "gone", at):
            found.append(f"{pod.name} is gone")
        return found

    def _containers(self, pod: SeenPod, status: Object, at: float) -> Iterable[str]:
        statuses = list(status.get("containerStatuses") or ())
        # Of those that come first, only sidecars go on.
        sidecars = status.get("initContainerStatuses") or ()
        statuses += [s for s in sidecars if s.get("started") or s["name"] in pod.containers]
        for one in statuses:
            container = pod.containers.setdefault(one["name"], Container(one["name"]))
            if one["restartCount"] > container.restarts and pod.is_old:
                yield f"{pod.name}: its container {one['name']} has been restarted"
            container.restarts = one["restartCount"]
            end = one["state"].get("terminated")
            if end is None or "deleted" not in pod.marks or container.seen is not None:
                continue
            container.seen, container.finished_at = at, end.get("finishedAt")
            container.exit_code, container.reason = end["exitCode"], end.get("reason")
            yield f"{pod.name}: its container {container.name} has ended, {container.words}"
        if statuses and all(pod.containers[one["name"]].seen is not None for one in statuses):
            self._mark(pod, "exit", at)

    def slices(self, event: Object, at: float) -> list[str]:
        """An event of the EndpointSlices' watch."""
        if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
            return []
        name = event["object"]["metadata"]["name"]
        before = self._named()
        self._slices.pop(name, None)
        if event["type"] != "DELETED":
            self._slices[name] = {
                endpoint["targetRef"]["uid"]: bool(endpoint["conditions"].get("terminating"))
                for endpoint in event["object"].get("endpoints") or ()
                if endpoint.get("targetRef", {}).get("kind") == "Pod"
            }
        after, found = self._named(), []
        for uid, pod in self.pods.items():
            if all(after.get(uid, [False])) and self._mark(pod, "terminating", at):
                found.append(f"{pod.name}: its EndpointSlices say terminating")
            if uid in after:
                pod.marks.pop("endpoint_gone", None)  # it was on its way to another slice
            elif uid in before and self._mark(pod, "endpoint_gone", at):
                found.append(f"{pod.name}: its EndpointSlices have dropped it")
        return found

    def _named(self) -> dict[str, list[bool]]:
        """What all slices say of each pod: whether it is terminating."""
        found: dict[str, list[bool]] = {}
        for endpoints in self._slices.values():
            for uid, is_terminating in endpoints.items():
                found.setdefault(uid, []).append(is_terminating)
        return found

    @staticmethod
    def _mark(pod: SeenPod, mark: str, at: float) -> bool:
        """Note it, if it is new."""
        if mark in pod.marks:
            return False
        pod.marks[mark] = at
        return True
