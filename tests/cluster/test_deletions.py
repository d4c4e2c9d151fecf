"""Pods that are deleted under load, one after the other or all at once: ours, and stock beside it.

Ours loses nothing. Stock's rows are the control: that the load and the cluster would show a loss.
"""

from __future__ import annotations

import pytest
from cluster.kube import IMAGE, Watch
from cluster.workloads import Workload, slow_to_start

#: Seconds after which a balancer in front of all that is there would have heard that it is leaving;
#: less than the example's delay of 5 s.
HEARD = 4.0

#: Times that a control does what may by chance go well once, with one or two pods leaving.
CHANCES = 6

ENGINES = ("gthread", "sync", "gevent")
SIDES = ("ours", "stock")


def worker_of(side, engine="gthread"):
    return f"gracefulworker.{engine}" if side == "ours" else engine


def judge(side, load, watch=None):
    """Ours loses nothing, and each pod says so; stock loses something."""
    if side == "stock":
        assert load.lost, "the control shows no loss"
        return
    assert not load.lost, load.told
    for pod in watch.pods if watch else ():
        assert watch.last_line(pod).startswith("clean after "), watch.logs[pod]
        assert watch.ended(pod)["exitCode"] == 0


def chances(side):
    """Rounds of a case: one of ours, and of stock until one shows a loss."""
    return range(CHANCES if side == "stock" else 1)


def killed(watch):
    """How many pods had to be killed, for the table."""
    count = sum(watch.ended(pod)["exitCode"] == 137 for pod in watch.pods)
    return f"{count} of {len(watch.pods)} pods ended by SIGKILL" if count else ""


def roll(kube, client, workload):
    """A rolling update under load; the load, and what was seen of the old pods."""
    with Watch(kube, workload.name) as watch:
        with client.load(kube.address(workload.name)) as load:
            kube("rollout", "restart", f"deployment/{workload.name}")
            kube.wait_rolled_out(workload.name)
            watch.wait_gone()
    return load, watch


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("engine", ENGINES)
def test_rolling_update(kube, client, start, row, request, has_gevent, engine, side):
    if engine == "gevent" and not has_gevent:
        pytest.skip(f"there is no gevent in {IMAGE} (CONTRIBUTING.md)")
    workload = start(Workload(f"roll-{engine}-{side}", worker_of(side, engine)))
    lost = 0
    for _ in range(request.config.option.rounds):
        load, watch = roll(kube, client, workload)
        row(f"rolling update of 3 pods, {engine}", side, load, killed(watch))
        lost += load.lost
        if side == "ours":
            judge(side, load, watch)
    assert side == "ours" or lost, "the control shows no loss"


@pytest.mark.parametrize("side", SIDES)
def test_slow_import_and_warm_up(kube, client, start, row, side):
    """The kubelet's probes: nobody is sent to a pod that imports, or is cold (status 203)."""
    workload = slow_to_start(Workload(f"slow-{side}", worker_of(side)))
    if side == "ours":
        workload.set("GRACEFUL_WARMUP", "/")
    start(workload)
    load, watch = roll(kube, client, workload)
    row("the same with an import of 3 s and a slow first request", side, load)
    judge(side, load, watch)
    for pod in kube.get("pods", "--selector", f"app={workload.name}")["items"]:
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


@pytest.mark.parametrize("side", SIDES)
def test_scale_down(kube, client, start, row, side):
    workload = start(Workload(f"down-{side}", worker_of(side)))
    for _ in chances(side):
        kube("scale", f"deployment/{workload.name}", "--replicas=3")
        kube.wait_rolled_out(workload.name)
        with client.load(kube.address(workload.name)) as load:
            before = kube.pods(workload.name)
            kube("scale", f"deployment/{workload.name}", "--replicas=1")
            kube.wait_gone([pod for pod in before if pod not in kube.pods(workload.name)])
        row("scale from 3 to 1", side, load)
        if load.lost:
            break
    judge(side, load)


@pytest.mark.parametrize("unready", (False, True))
@pytest.mark.parametrize("side", SIDES)
def test_scale_to_zero(kube, client, start, row, side, unready):
    """With nobody else left, kube-proxy falls back on pods that leave and are ready (KEP-1669)."""
    if unready and side == "stock":
        pytest.skip("stock has no readiness of its own")
    more = {"GRACEFUL_UNREADY": "true"} if unready else {}
    workload = Workload(f"zero-{side}-{unready}".lower(), worker_of(side), 2, more)
    workload.ask_each_second()
    start(workload)
    with Watch(kube, workload.name) as watch:
        with client.load(kube.address(workload.name), slow=None) as load:
            load.end_in(HEARD)
            kube("scale", f"deployment/{workload.name}", "--replicas=0")
        watch.wait_gone()
    case = f"scale to zero, the first {HEARD:g} s"
    if unready:
        # This is what it costs, and no promise.
        row(f"{case}, graceful_unready", side, load)
        return
    row(case, side, load)
    judge(side, load, watch)


@pytest.mark.parametrize("side", SIDES)
def test_drain_of_a_node(kube, client, start, row, two_nodes, side):
    """`kubectl drain` with the example's PodDisruptionBudget; nobody else's pods are touched."""
    workload = start(Workload(f"drain-{side}", worker_of(side)))
    for chance in chances(side):
        node = two_nodes[1 - chance % 2]  # the last round's pods are all on the other one
        here = kube.get(
            "pods", "--selector", f"app={workload.name}", f"--field-selector=spec.nodeName={node}"
        )
        assert here["items"], f"no pod was put on {node}"
        drain = ["drain", node, f"--pod-selector=app={workload.name}", "--timeout=150s"]
        try:
            with client.load(kube.address(workload.name)) as load:
                kube(*drain, "--ignore-daemonsets", "--delete-emptydir-data")
                kube.wait_rolled_out(workload.name)
        finally:
            kube("uncordon", node)
        row("kubectl drain with a PodDisruptionBudget", side, load)
        if load.lost:
            break
    judge(side, load)


@pytest.mark.parametrize("unready", (False, True))
@pytest.mark.parametrize("side", SIDES)
def test_external_traffic_policy_local(kube, outside, start, row, nodes, two_nodes, side, unready):
    """The only pod of a node leaves, and the balancer sends to that node until it has heard."""
    if unready and side == "stock":
        pytest.skip("stock has no readiness of its own")
    client_pod = kube.get("pod", outside.pod)["spec"]["nodeName"]
    (node, *_) = [name for name in nodes if name != client_pod]
    more = {"GRACEFUL_UNREADY": "true"} if unready else {}
    workload = Workload(f"local-{side}-{unready}".lower(), worker_of(side), 1, more)
    workload.service["spec"] |= {"type": "NodePort", "externalTrafficPolicy": "Local"}
    workload.pod["nodeSelector"] = {"kubernetes.io/hostname": node}
    workload.ask_each_second()
    start(workload)
    port = kube.get("service", workload.name)["spec"]["ports"][0]["nodePort"]
    # One more on the other node: else this would be the same as a scale to zero.
    other = Workload(f"{workload.name}-b", worker_of(side), 1, more)
    other.template["metadata"]["labels"] = {"app": workload.name, "beside": "it"}
    other.deployment["spec"]["selector"] = {"matchLabels": other.template["metadata"]["labels"]}
    other.pod["nodeSelector"] = {"kubernetes.io/hostname": client_pod}
    kube.apply(other.deployment)
    kube.wait_rolled_out(other.name)
    try:
        with outside.load((nodes[node], port), slow=None) as load:
            load.end_in(HEARD)
            kube("scale", f"deployment/{workload.name}", "--replicas=0")
    finally:
        kube("delete", "deployment", other.name, "--wait")
    case = f"externalTrafficPolicy: Local, a node's last pod, the first {HEARD:g} s"
    if unready:
        row(f"{case}, graceful_unready", side, load)
        return
    row(case, side, load)
    judge(side, load)
