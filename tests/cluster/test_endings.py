"""How a pod's end is asked for, and what it is given: hooks, periods, limits, restarts in place."""

from __future__ import annotations

import pytest
from cluster.kube import Watch, wait_until
from cluster.workloads import Workload

SLOW = "/slow?seconds=20"


def roll(kube, client, workload, **plan):
    """A rolling update under load; the load and what was seen of the old pods."""
    with Watch(kube, workload.name) as watch:
        with client.load(kube.address(workload.name), **plan) as load:
            kube("rollout", "restart", f"deployment/{workload.name}")
            kube.wait_rolled_out(workload.name)
            watch.wait_gone()
    return load, watch


def assert_clean(load, watch):
    assert not load.lost, load.told
    for pod in watch.pods:
        assert watch.last_line(pod).startswith("clean after "), watch.logs[pod]


def seconds_of(line):
    """Of gracefulworker's last line."""
    return float(line.partition("after ")[2].split()[0])


def test_gracefulworker_drain_as_the_hook(kube, client, start, row):
    """One delay, not two: SIGTERM finds it over."""
    workload = Workload("hook-drain", replicas=2)
    workload.app["lifecycle"] = {"preStop": {"exec": {"command": ["gracefulworker", "drain"]}}}
    start(workload)
    load, watch = roll(kube, client, workload)
    row("preStop: gracefulworker drain", "ours", load)
    assert_clean(load, watch)
    for pod in watch.pods:
        assert seconds_of(watch.last_line(pod)) < 10


@pytest.mark.parametrize("side", ("ours", "stock"))
def test_the_native_sleep_as_the_hook(kube, client, start, row, side):
    """Kubernetes 1.30 and newer. It takes the place of our delay, which is then 0."""
    if tuple(map(int, kube.version.split(".")[:2])) < (1, 30):
        pytest.skip("there is no sleep in Kubernetes before 1.30")
    if side == "ours":
        workload = Workload("hook-sleep-ours", replicas=2, env={"GRACEFUL_DELAY": "0"})
    else:
        workload = Workload("hook-sleep-stock", "gthread", replicas=2)
    workload.app["lifecycle"] = {"preStop": {"sleep": {"seconds": 5}}}
    start(workload)
    load, watch = roll(kube, client, workload)
    row("preStop: sleep 5, and no delay", side, load)
    if side == "ours":
        assert_clean(load, watch)


@pytest.mark.parametrize("told", (False, True))
def test_a_grace_period_that_is_shorter_than_assumed(kube, client, start, row, told):
    """--grace-period=10 and a request of 20 s. Unless told, gunicorn is killed without a word.

    With the figure it is cut in time, and that is said.
    """
    workload = Workload(f"short-{told}".lower(), replicas=1)
    workload.set("GRACEFUL_KILL_AFTER", "10" if told else "30")
    start(workload)
    (pod,) = kube.pods(workload.name)
    host, port = kube.address(workload.name)
    with Watch(kube, workload.name) as watch:
        words = ["exec", client.pod, "--", "python", "-c", ASK, f"http://{host}:{port}{SLOW}"]
        with kube.popen(*words, stdout=-1) as asking:
            assert asking.stdout.readline() == "asked\n"
            kube("delete", "pod", pod, "--grace-period=10", "--wait=false")
            answer = asking.stdout.readline()
        watch.wait_gone()
    if told:
        assert answer == "503\n"
        assert "cut 1" in watch.last_line(pod)
        assert watch.ended(pod).get("exitCode") in (5, None)
    else:
        assert answer not in ("200\n", "503\n")
        assert watch.last_line(pod) == ""
        assert watch.ended(pod).get("exitCode") in (137, None)


#: Connects and asks, says so, and says how that has ended.
ASK = """
import sys, http.client, urllib.parse
url = urllib.parse.urlsplit(sys.argv[1])
client = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
client.request("GET", f"{url.path}?{url.query}")
print("asked", flush=True)
try:
    print(client.getresponse().status)
except Exception as error:
    print(repr(error))
"""


def test_as_little_as_a_container_can_have(kube, client, start, row):
    """A root that is read-only, no capability, seccomp, and 64 KiB of /dev/shm."""
    workload = Workload("little", replicas=2, options=["--worker-tmp-dir", "/dev/shm"])
    workload.app["securityContext"]["readOnlyRootFilesystem"] = True
    workload.mount("shm", "/dev/shm", emptyDir={"medium": "Memory", "sizeLimit": "64Ki"})
    assert workload.app["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert workload.pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    start(workload)
    load, watch = roll(kube, client, workload)
    row("read-only root, no capabilities, seccomp, 64 KiB of /dev/shm", "ours", load)
    assert_clean(load, watch)


@pytest.mark.parametrize("side", ("ours", "unready", "stock"))
def test_a_restart_in_place(kube, client, start, row, side):
    """The liveness probe fails: the pod stays in the Service, and readiness is the only news."""
    worker = "gthread" if side == "stock" else "gracefulworker.gthread"
    env = {"GRACEFUL_UNREADY": "true"} if side == "unready" else {}
    workload = Workload(f"place-{side}", worker, 3, env)
    workload.app["livenessProbe"] = {
        "exec": {"command": ["sh", "-c", "test ! -e /tmp/sick"]},
        "periodSeconds": 1,
        "failureThreshold": 1,
    }
    workload.ask_each_second()
    start(workload)
    with client.load(kube.address(workload.name)) as load:
        for pod in kube.pods(workload.name):
            kube("exec", pod, "--container", "app", "--", "touch", "/tmp/sick")
            wait_until(f"{pod} is started again", lambda pod=pod: is_back(kube, pod))
    case = "restart in place by the liveness probe, 3 pods"
    if side == "unready":
        row(f"{case}, graceful_unready", "ours", load)
        assert not load.lost, load.told
    else:
        row(case, side, load)
    if side == "stock":
        assert load.lost


def is_back(kube, pod):
    status = kube.get("pod", pod)["status"]["containerStatuses"][0]
    return status["restartCount"] and status["ready"]
