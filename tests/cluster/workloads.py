"""The Deployments of the tests: the example's own, with what a case changes.

What may be changed here: how a case is written down. The figures of the example are not copied, so
that what users are shown is what runs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from cluster.kube import IMAGE, NGINX_IMAGE, Kube, Object

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "kubernetes"

#: Enough for the slow requests that a pod has at once; the example's config file has the rest.
CAPACITY = {"gthread": [], "gevent": [], "sync": ["--threads", "1", "--workers", "5"]}

#: An application whose import takes 3 s, and whose every process is slow once: the status of that
#: answer tells who was not spared it.
SLOW_APP = """\
import sys, time
time.sleep(3)
sys.path.insert(0, "/home/app")
from app import app
cold = True

@app.after_request
def warm(response):
    global cold
    if cold:
        cold = False
        time.sleep(1)
        response.status_code = 203
    return response
"""


def example(file: str) -> Object:
    found: Object = yaml.safe_load((EXAMPLE / file).read_text())
    return found


class Workload:
    """A Deployment, its Service and its PodDisruptionBudget; `start` applies them.

    :param worker: as after ``-k``, ours or stock.
    """

    def __init__(
        self,
        name: str,
        worker: str = "gracefulworker.gthread",
        replicas: int = 3,
        env: dict[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.deployment = example("deployment.yaml")
        self.service = example("service.yaml")
        self.budget = example("poddisruptionbudget.yaml")
        self.more: list[Object] = []
        labels = {"app": name}
        for one in (self.deployment, self.service, self.budget):
            one["metadata"] = {"name": name, "labels": labels}
        self.deployment["spec"]["selector"] = {"matchLabels": labels}
        self.budget["spec"]["selector"] = {"matchLabels": labels}
        self.template["metadata"]["labels"] = labels
        self.service["spec"]["selector"] = labels
        self.deployment["spec"]["replicas"] = replicas
        self.app["image"] = IMAGE
        # As many processes as sync needs.
        self.app["resources"]["limits"]["memory"] = "512Mi"
        engine = worker.removeprefix("gracefulworker.")
        self.app["command"] = ["gunicorn", "-k", worker, *CAPACITY[engine], *options, "app:app"]
        if engine == worker:
            self._without_ours()
        for key, value in (env or {}).items():
            self.set(key, value)

    def _without_ours(self) -> None:
        """Stock's worker: nobody answers probes on a port of their own."""
        self.app["env"] = []
        del self.app["livenessProbe"]
        self.app["readinessProbe"]["httpGet"] = {"path": "/", "port": "http"}

    @property
    def template(self) -> Object:
        found: Object = self.deployment["spec"]["template"]
        return found

    @property
    def pod(self) -> Object:
        found: Object = self.template["spec"]
        return found

    @property
    def app(self) -> Object:
        found: Object = self.pod["containers"][0]
        return found

    def set(self, name: str, value: str) -> None:
        """An environment variable of gunicorn's."""
        self.app["env"] = [e for e in self.app["env"] if e["name"] != name]
        self.app["env"].append({"name": name, "value": value})

    def ask_each_second(self) -> None:
        """Have the readiness probe fail within a second: within the delay, if it fails."""
        self.app["readinessProbe"] |= {"periodSeconds": 1, "failureThreshold": 1}

    def mount(self, name: str, path: str, **volume: Any) -> None:
        self.pod.setdefault("volumes", []).append({"name": name, **volume})
        self.app.setdefault("volumeMounts", []).append({"name": name, "mountPath": path})

    def mount_file(self, name: str, text: str, path: str) -> None:
        """A directory with one file, from a ConfigMap."""
        full = f"{self.name}-{name.partition('.')[0]}"
        meta = {"name": full}
        self.more.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {name: text}}
        )
        self.mount(full, path, configMap={"name": full})

    def objects(self) -> list[Object]:
        return [*self.more, self.deployment, self.service, self.budget]

    def start(self, kube: Kube) -> None:
        kube.apply(*self.objects())
        kube.wait_rolled_out(self.name)

    def end(self, kube: Kube) -> None:
        """Delete it, and wait for its pods: they would take the next case's time."""
        pods = kube.pods(self.name)
        kube("delete", "deployment,service,poddisruptionbudget", self.name, "--ignore-not-found")
        kube("delete", "pods", "--selector", f"app={self.name}", "--force", "--grace-period=0")
        kube.wait_gone(pods)


def slow_to_start(workload: Workload) -> Workload:
    workload.mount_file("slowapp.py", SLOW_APP, "/srv/slow")
    command = workload.app["command"]
    command[-1:] = ["--pythonpath", "/srv/slow", "slowapp:app"]
    return workload


def with_nginx(workload: Workload, config: str, container: Object, native: bool) -> Workload:
    """nginx in front, over a unix socket, as an ordinary container or as a native sidecar."""
    workload.mount("socket", "/run/app", emptyDir={})
    workload.app["command"][1:1] = ["--bind", "unix:/run/app/gunicorn.sock"]
    del workload.app["ports"][0]
    front = copy.deepcopy(container)
    front["image"] = NGINX_IMAGE
    front["ports"] = [{"name": "http", "containerPort": 8080}]
    front["securityContext"] = workload.app["securityContext"]
    front["readinessProbe"] = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 2}
    name = f"{workload.name}-nginx"
    workload.more.append(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name},
            "data": {"nginx.conf": config},
        }
    )
    workload.pod["volumes"].append({"name": "nginx", "configMap": {"name": name}})
    front["volumeMounts"] = [
        {"name": "socket", "mountPath": "/run/app"},
        {"name": "nginx", "mountPath": "/etc/nginx/nginx.conf", "subPath": "nginx.conf"},
    ]
    if native:
        front["restartPolicy"] = "Always"
        workload.pod["initContainers"] = [front]
    else:
        workload.pod["containers"].append(front)
    return workload
