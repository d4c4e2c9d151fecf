"""kubectl, a client pod that makes load, and what is noted of pods while they end.

Nothing of Kubernetes is written by hand: all is asked of the user's own ``kubectl``. What may be
changed here: how something is asked or noted; what is run is the business of `workloads`, what has
to come of it that of the tests.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import h11

import gracefulworker

#: kubectl with what it needs to find the cluster, such as "kubectl --context kind-kind".
KUBECTL = shlex.split(os.environ.get("KUBECTL", "kubectl"))

#: The image of the Flask example with gevent beside it, and one of nginx's.
IMAGE = os.environ.get("CLUSTER_IMAGE", "graceful-flask:1")
NGINX_IMAGE = os.environ.get("CLUSTER_NGINX_IMAGE", "nginx:1.29")

#: Seconds that anything may take on a slow cluster.
CEILING = 180

#: An object of Kubernetes' API, as in a manifest.
Object = dict[str, Any]


class Failed(Exception):
    """kubectl has failed; the argument is what it has said."""


@dataclass(frozen=True)
class Kube:
    """A namespace of the cluster that kubectl talks to."""

    namespace: str

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        command = [*KUBECTL, "--namespace", self.namespace, *words]
        return subprocess.Popen(command, text=True, **options)

    def __call__(self, *words: str, data: str | bytes | None = None) -> str:
        """What kubectl prints.

        :param data: its standard input.
        :raises Failed: its exit status is not 0.
        """
        command = [*KUBECTL, "--namespace", self.namespace, *words]
        given = data.encode() if isinstance(data, str) else data
        done = subprocess.run(command, input=given, capture_output=True, timeout=CEILING + 30)
        if done.returncode:
            raise Failed(f"{shlex.join(command)}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def get(self, *words: str) -> Any:
        return json.loads(self("get", *words, "--output", "json"))

    def apply(self, *objects: Object, dry_run: bool = False) -> None:
        for_all = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self("apply", *(["--dry-run=server"] if dry_run else []), "-f", "-", data=for_all)

    @property
    def version(self) -> str:
        """The API server's."""
        found: str = json.loads(self("version", "--output", "json"))["serverVersion"]["gitVersion"]
        return found.removeprefix("v")

    def pods(self, app: str) -> list[str]:
        """Names of the pods of an application that are not being deleted."""
        items = self.get("pods", "--selector", f"app={app}")["items"]
        return [i["metadata"]["name"] for i in items if "deletionTimestamp" not in i["metadata"]]

    def wait_rolled_out(self, name: str) -> None:
        try:
            self("rollout", "status", f"deployment/{name}", f"--timeout={CEILING}s")
        except (Failed, subprocess.TimeoutExpired) as error:
            raise Failed(f"{error}\n{self.reasons(name)}") from None

    def wait_gone(self, pods: Sequence[str]) -> None:
        if pods:
            names = [f"pod/{pod}" for pod in pods]
            self("wait", "--for=delete", *names, f"--timeout={CEILING}s")

    def wait(self, what: str, condition: str, ceiling: int = CEILING) -> None:
        self("wait", what, f"--for={condition}", f"--timeout={ceiling}s")

    def reasons(self, app: str) -> str:
        """Why pods are not ready, in the kubelet's words and their own."""
        found = []
        for pod in self.get("pods", "--selector", f"app={app}")["items"]:
            status = pod["status"]
            for one in status.get("initContainerStatuses", []) + status.get(
                "containerStatuses", []
            ):
                if not one["ready"]:
                    found.append(f"{pod['metadata']['name']}/{one['name']}: {one['state']}")
        with contextlib.suppress(Failed):
            found.append(self("logs", "--selector", f"app={app}", "--all-containers", "--tail=20"))
        return "\n".join(found)

    def address(self, service: str) -> tuple[str, int]:
        """A Service's own; names need a DNS that not every cluster has."""
        spec = self.get("service", service)["spec"]
        return spec["clusterIP"], spec["ports"][0]["port"]


@dataclass
class Load:
    """What became of the requests; filled in at the end."""

    asked: int = 0
    lost: int = 0
    endings: dict[str, int] = field(default_factory=dict)
    moments: list[tuple[float, float, str, str]] = field(default_factory=list)
    began: float = 0.0
    process: subprocess.Popen[str] | None = None

    def end_in(self, seconds: float) -> None:
        """Have it end after so many seconds, however long what is done meanwhile takes."""
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def __str__(self) -> str:
        return f"{self.lost} of {self.asked:,}"

    @property
    def told(self) -> str:
        """The losses, for a failed assertion."""
        moments = "".join(f"\n  +{a - self.began:.2f} to +{b - self.began:.2f} s {kind}: {label}"
            for a, b, kind, label in self.moments)  # fmt: skip
        return f"{self}: {self.endings}{moments}"


@dataclass(frozen=True)
class Client:
    """A pod from which load is made."""

    kube: Kube
    pod: str

    @classmethod
    def start(cls, kube: Kube, pod: str, **spec: Any) -> Client:
        """Start the pod and give it the program.

        :param spec: of the pod, beside its container.
        """
        container = {"name": "client", "image": IMAGE, "command": ["sleep", "100000"]}
        # sleep as PID 1 does not hear SIGTERM.
        spec = {"containers": [container], "terminationGracePeriodSeconds": 1, **spec}
        kube.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": spec})
        try:
            kube.wait(f"pod/{pod}", "condition=Ready", 90)
        except Failed:
            state = kube.get("pod", pod)["status"]
            raise Failed(f"no pod of the image {IMAGE} (CLUSTER_IMAGE) starts: {state}") from None
        store = "import sys; open('/tmp/load.pyz', 'wb').write(sys.stdin.buffer.read())"
        kube("exec", "-i", pod, "--", "python", "-c", store, data=_archive())
        return cls(kube, pod)

    @contextlib.contextmanager
    def load(self, address: tuple[str, int], **plan: Any) -> Iterator[Load]:
        """Load on an address while what is inside runs; yields what is filled in afterwards.

        :param plan: figures of the rehearsal's Plan.
        """
        given = json.dumps({"address": address, **PLAN, **plan})
        words = ["exec", "-i", self.pod, "--", "python", "/tmp/load.pyz", given]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.kube.popen(*words, **pipes) as process:
            try:
                first = process.stdout.readline()
                if not first:
                    raise Failed(f"no load: {process.stderr.read()}")
                load = Load(**json.loads(first), process=process)
                yield load
                said, trouble = process.communicate("0\n", timeout=CEILING)
            finally:
                process.kill()
        if not said:
            raise Failed(f"the load has failed: {trouble}")
        for name, value in json.loads(said).items():
            setattr(load, name, value)


#: Load that two processors can bear beside a cluster: some 45 requests a second.
PLAN: dict[str, Any] = {
    "rate": 20,
    "connections": 20,
    "idle_limit": 4,  # less than the delay: see the rehearsal's Plan
    "timeout": 60,  # a machine that is busy with other things loses nothing
    "slow": "/slow?seconds=1.5",
    "stream": "/stream?chunks=6&pause=0.2",
    "upload": "/upload",
}


def _archive() -> bytes:
    """The program: load.py, with gracefulworker as it is installed here, and h11."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(Path(__file__).with_name("load.py"), "__main__.py")
        for package in (gracefulworker, h11):
            root = Path(package.__path__[0])
            for path in root.rglob("*.py"):
                archive.write(path, path.relative_to(root.parent))
    return held.getvalue()


class Watch:
    """Notes the log and the ending of each pod that an application has, until they are gone.

    ``with Watch(kube, app) as watch``: afterwards `endings` and `logs`, by the pod's name.
    """

    def __init__(self, kube: Kube, app: str, container: str = "app") -> None:
        self.kube, self.app, self.container = kube, app, container
        self.pods = kube.pods(app)
        self.logs: dict[str, str] = {}
        self.statuses: dict[str, list[Object]] = {}
        self._files: list[IO[str]] = []
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Watch:
        selector = ["--selector", f"app={self.app}"]
        self._start("get", "pods", *selector, "--watch", "--output", "json")
        for pod in self.pods:
            self._start("logs", "--follow", pod, "--container", self.container)
        return self

    def _start(self, *words: str) -> None:
        self._files.append(tempfile.TemporaryFile("w+"))
        self._processes.append(self.kube.popen(*words, stdout=self._files[-1]))

    def wait_gone(self) -> None:
        """Wait until the pods that there were at the beginning have gone, with their last words."""
        self.kube.wait_gone(self.pods)
        for process in self._processes[1:]:
            process.wait(CEILING)

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        watched, *logs = [(file.seek(0), file.read())[1] for file in self._files]
        for file in self._files:
            file.close()
        self.logs = dict(zip(self.pods, logs, strict=True))
        for pod in documents(watched):
            self.statuses.setdefault(pod["metadata"]["name"], []).append(pod)

    def ended(self, pod: str, container: str | None = None) -> Object:
        """The last ending of one of the pod's containers; {} if it was not seen."""
        found: Object = {}
        for seen in self.statuses.get(pod, ()):
            status = seen["status"]
            for one in status.get("containerStatuses", []) + status.get(
                "initContainerStatuses", []
            ):
                if one["name"] == (container or self.container):
                    last = one["lastState"].get("terminated")
                    found = one["state"].get("terminated") or last or found
        return found

    def last_line(self, pod: str) -> str:
        """gracefulworker's last word, "" if there is none."""
        lines = [line for line in self.logs[pod].splitlines() if "stopped: " in line]
        return lines[-1].partition("stopped: ")[2] if lines else ""


def documents(text: str) -> Iterator[Object]:
    """JSON documents one after the other, as a watch prints them; the last may be cut."""
    decoder = json.JSONDecoder()
    at = 0
    while at < len(text):
        try:
            found, end = decoder.raw_decode(text, at)
        except ValueError:
            return
        yield found
        at = end
        while at < len(text) and text[at].isspace():
            at += 1


def wait_until(what: str, is_so: Any, ceiling: float = CEILING) -> None:
    """Ask until it is so; for what kubectl's own ``wait`` does not know."""
    give_up = time.monotonic() + ceiling
    while not is_so():
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {ceiling:g} s: {what}")
        time.sleep(0.3)
