"""What is rehearsed: the figures of a rollout, fixed before anything starts.

What may be changed here: a figure is one line. Times are in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Header = tuple[str, str]


@dataclass(frozen=True)
class Plan:
    """The rollout and its load, the same for each worker class."""

    app: str
    options: tuple[str, ...] = ()  #: gunicorn's own, from the user
    command: tuple[str, ...] = ()  #: of a pod, see `Pod.start`
    settings: tuple[tuple[str, str], ...] = ()  #: what a pod runs with, as far as is worth reading
    pre_stop: float = 0.0  #: a sleep between the pod's deletion and SIGTERM
    pods: int = 3
    lag: float = 3.0  #: from SIGTERM (or the preStop sleep's begin) to the end of the endpoint
    grace: float = 30.0  #: from the same moment to SIGKILL
    warm_up: float = 2.0  #: of load before the first pod is replaced
    seed: int = 1
    rate: float = 20.0  #: requests a second, each on a connection of its own
    connections: int = 30  #: keep-alive connections
    idle_limit: float = 1.5  #: after which a client's pool closes an idle connection itself
    timeout: float = 10.0  #: what a client waits for an answer, beside its own pauses
    ready_path: str = "/"
    ready_at_probes: bool = False  #: at `graceful_probe_bind`, which each pod has for itself
    ready_within: float = 30.0
    paths: tuple[tuple[str, str, bytes], ...] = (("GET", "/", b""),)  #: method, path, body
    headers: tuple[Header, ...] = ()  #: of all requests
    slow: str | None = None  #: a path whose answer takes its time
    stream: str | None = None  #: a path whose answer comes in pieces
    upload: str | None = None  #: a path that takes a POST
    #: A workload that runs in a cluster, in place of pods here: context, namespace and so on.
    cluster: Mapping[str, str] = field(default_factory=dict)
    same_body: bool = True  #: an answer that never differed before the rollout must not differ

    @property
    def asked(self) -> list[str]:
        """Each method and path that will be asked for."""
        gets = [f"GET {path}" for path in (self.slow, self.stream) if path]
        posts = [f"POST {self.upload}"] if self.upload else []
        return list(dict.fromkeys([*(f"{m} {path}" for m, path, _ in self.paths), *gets, *posts]))
