"""A rehearsal of what runs in a cluster: what its events mean, and the command from outside.

Beside the real clients and a real gunicorn there is a kubectl that says again what a real one said.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import trustme
from harness.rehearsals import COMMAND, PATIENCE, Rehearsal

from gracefulworker.tools.rehearse import kubernetes_events as events
from gracefulworker.tools.rehearse.kubectl import last_line
from gracefulworker.tools.rehearse.kubernetes import server

RECORDED = Path(__file__).parent / "kubernetes"
DEPLOYMENT = json.loads((RECORDED / "deployment.json").read_text())
RECORDING = [json.loads(line) for line in (RECORDED / "rollout.jsonl").read_text().splitlines()]
BEGIN = 7.8  # of the rollout, in the recording


def replay(change=lambda stream, said: said) -> events.Sightings:
    """What is noted of the recorded rollout, each event changed by `change`."""
    sightings = events.Sightings()
    is_begun = False
    for at, stream, said in RECORDING:
        if at > BEGIN and not is_begun:
            sightings.begin()
            is_begun = True
        said = change(stream, copy.deepcopy(said))
        if stream == "pods":
            sightings.pod(said, at)
        elif stream == "slices":
            sightings.slices(said, at)
        elif stream.startswith("log/"):
            next(p for p in sightings.old if p.name == stream[4:]).hear(said, at)
    return sightings


def of_pods(change):
    """A change of what the pods' watch says."""

    def changed(stream, said):
        if stream == "pods":
            change(said)
        return said

    return changed


# What events mean


def test_a_recorded_rollout():
    sightings = replay()
    old = sightings.old
    assert len(old) == 3 and len(sightings.pods) == 6
    for pod in old:
        marks = pod.marks
        assert marks["deleted"] > BEGIN
        assert abs(marks["terminating"] - marks["deleted"]) < 0.2
        assert abs(marks["lame_duck"] - marks["deleted"]) < 0.2
        assert marks["lame_duck"] < marks["gate"] < marks["stopped"] < marks["exit"]
        assert marks["exit"] < marks["gone"] and marks["endpoint_gone"] < marks["gone"]
        assert pod.delay is not None and pod.delay >= 4.9
        assert pod.last_line.startswith("stopped: clean after ")
        assert pod.restarts == 0 and not pod.failures and not pod.unready
        (container,) = pod.containers.values()
        assert (container.name, container.words) == ("app", "0 Completed")
        assert container.seen == marks["exit"] and container.finished_at.endswith("Z")
    newcomers = {pod.newcomer for pod in old}
    assert newcomers == {None, 0.2, 1.7}, "one had no newcomer, by its last line"
    new = [pod for pod in sightings.pods.values() if not pod.is_old]
    assert all({"ready"} <= pod.marks.keys() and "deleted" not in pod.marks for pod in new)


@pytest.mark.parametrize(
    ("code", "reason", "is_failure"),
    [(0, "Completed", False), (143, "Error", False), (137, "Error", True), (1, "Error", True)],
)
def test_how_a_container_ended(code, reason, is_failure):
    def change(event):
        for status in event["object"]["status"].get("containerStatuses", ()):
            if end := status["state"].get("terminated"):
                end.update(exitCode=code, reason=reason)

    for pod in replay(of_pods(change)).old:
        assert bool(pod.failures) is is_failure
        assert pod.containers["app"].words == f"{code} {reason}"


def test_an_end_that_nobody_told_is_not_made_up():
    def change(event):
        for status in event["object"]["status"].get("containerStatuses", ()):
            status["state"] = {"running": {}}

    for pod in replay(of_pods(change)).old:
        assert "exit" not in pod.marks and "gone" in pod.marks
        assert pod.containers["app"].words == "not seen" and not pod.failures


def test_the_last_of_several_containers_is_the_end():
    """A sidecar ends later than the service, and it is an init container that goes on."""

    def change(event):
        status = event["object"]["status"]
        for one in list(status.get("containerStatuses", ())):
            sidecar = copy.deepcopy(one)
            sidecar.update(name="proxy", started="terminated" not in one["state"])
            if event["type"] != "DELETED" and "terminated" in one["state"]:
                sidecar["state"] = {"running": {}}
            done = {**copy.deepcopy(one), "name": "migrate", "started": False}
            status["initContainerStatuses"] = [done, sidecar]

    for pod in replay(of_pods(change)).old:
        assert pod.containers.keys() == {"app", "proxy"}, "a migration is over before"
        app, proxy = pod.containers["app"].seen, pod.containers["proxy"].seen
        assert app is not None and proxy is not None
        assert app < proxy == pod.marks["exit"]


def test_a_restart_in_place_is_counted_and_is_no_end():
    def change(event):
        for status in event["object"]["status"].get("containerStatuses", ()):
            if event["object"]["metadata"].get("deletionTimestamp"):
                status["restartCount"] = 1

    assert [pod.restarts for pod in replay(of_pods(change)).old] == [1, 1, 1]


def test_a_pod_that_is_not_ready_for_a_time():
    pod, *_ = replay().old
    sightings = events.Sightings()
    seen = [
        e for at, s, e in RECORDING if s == "pods" and e["object"]["metadata"]["uid"] == pod.uid
    ]
    ready, unready = seen[0], copy.deepcopy(seen[0])
    unready["type"] = "MODIFIED"
    for condition in unready["object"]["status"]["conditions"]:
        condition["status"] = "False"
    said = [sightings.pod(event, at) for at, event in enumerate((ready, unready, unready, ready))]
    (found,) = sightings.pods.values()
    assert found.unready == [[1, 3]]
    assert said[1] == [f"{pod.name} is not ready any more"] and said[2] == []


def test_two_services_have_two_slices():
    """A pod is terminating, or dropped, when both say so; or it is on its way to a third."""
    pod, *_ = replay().old

    def event(name, *conditions, type="MODIFIED"):
        reference = {"kind": "Pod", "name": pod.name, "uid": pod.uid}
        endpoints = [{"targetRef": reference, "conditions": c} for c in conditions]
        return {"type": type, "object": {"metadata": {"name": name}, "endpoints": endpoints}}

    serves, ends = {"terminating": False}, {"terminating": True}
    sightings = events.Sightings()
    sightings.pods[pod.uid] = found = events.SeenPod(pod.name, pod.uid)
    told = [
        event("a", serves),
        event("b", serves),
        event("a", ends),
        event("b", ends),
        event("a"),
        event("b", type="DELETED"),
        event("c", ends),
        {"type": "BOOKMARK", "object": {}},
        event("c"),
    ]
    marks = []
    for at, one in enumerate(told):
        sightings.slices(one, at)
        marks.append(dict(found.marks))
    assert marks[2] == {} and marks[3] == {"terminating": 3}
    assert marks[4] == {"terminating": 3} and marks[5] == {"terminating": 3, "endpoint_gone": 5}
    assert "endpoint_gone" not in marks[6] and marks[8]["endpoint_gone"] == 8


def test_a_statefulset_uses_names_again():
    def change(event):
        event["object"]["metadata"]["name"] = "ledger-0"

    sightings = events.Sightings()
    for at, stream, said in RECORDING:
        if stream == "pods":
            said = copy.deepcopy(said)
            change(said)
            if at > BEGIN and not sightings.old:
                sightings.begin()
            sightings.pod(said, at)
    assert len(sightings.pods) == 6 and len(sightings.old) == 3


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("deployment/shop", "deployment/shop"),
        ("deploy/shop", "deployment/shop"),
        ("deployments.apps/shop", "deployment/shop"),
        ("sts/ledger", "statefulset/ledger"),
        ("StatefulSet/ledger", "statefulset/ledger"),
        ("pod/shop", None),
        ("shop", None),
        ("deployment/", None),
        ("deployment/--all", None),
    ],
)
def test_names_of_workloads(given, found):
    if found:
        assert events.workload(given) == found
    else:
        with pytest.raises(ValueError, match="takes deployment/NAME or statefulset/NAME"):
            events.workload(given)


def test_selectors():
    rules = [
        {"key": "tier", "operator": "In", "values": ["a", "b"]},
        {"key": "zone", "operator": "NotIn", "values": ["x"]},
        {"key": "here", "operator": "Exists"},
        {"key": "gone", "operator": "DoesNotExist"},
    ]
    chosen = {"matchLabels": {"app": "shop"}, "matchExpressions": rules}
    assert events.selector({"spec": {"selector": chosen}}) == (
        "app=shop,tier in (a,b),zone notin (x),here,!gone"
    )
    assert events.selector(DEPLOYMENT) == "app=shop"


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("spec", {}, None),
        ("spec", {"paused": True}, "paused"),
        ("spec", {"replicas": 0}, "no pods"),
        ("spec", {"replicas": 4}, "in the middle of a rollout"),
        ("spec", {"updateStrategy": {"type": "OnDelete"}}, "OnDelete"),
        ("status", {"observedGeneration": 0}, "in the middle of a rollout"),
        ("status", {"updatedReplicas": 2}, "in the middle of a rollout"),
        ("status", {"readyReplicas": 2}, "2 of its 3 pods are ready"),
    ],
)
def test_what_hinders_a_rollout(part, change, words):
    workload = copy.deepcopy(DEPLOYMENT)
    workload[part].update(change)
    found = events.hindrance(workload)
    assert words in found if words else found == ""


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://localhost", (80, "localhost", "", False)),
        ("http://localhost:8000/a?b=c", (8000, "localhost:8000", "/a?b=c", False)),
        ("https://localhost/", (443, "localhost", "/", True)),
    ],
)
def test_urls(url, found):
    service, host, path = server(url)
    assert (service.address[1], host, path, service.tls is not None) == found


@pytest.mark.parametrize(
    "url",
    ["localhost", "ftp://localhost:21/", "http://", "http://a:b@localhost/", "http://x:99999/"],
)
def test_what_is_no_url(url):
    with pytest.raises(ValueError, match="--url takes http://HOST"):
        server(url)


def test_kubectls_last_words():
    assert last_line("Warning: old\nerror: You must be logged in\n\n") == "You must be logged in"
    assert last_line("") == "it says nothing of the reason"


# The command


class ClusterRehearsal(Rehearsal):
    """The command against the recorded kubectl; the load goes to a real gunicorn."""

    def __init__(self, tmp_path, url, *options, workload="deployment/shop", path=RECORDED, env=()):
        self.json, self.html = tmp_path / "out.json", tmp_path / "out.html"
        self.mark = f"REHEARSAL_UNDER_TEST={uuid.uuid4()}"
        self.restarted = tmp_path / "restarted"
        name, _, value = self.mark.partition("=")
        files = ["--json", str(self.json), "--html", str(self.html)]
        load = ["--rate", "20", "--connections", "10", "--warm-up", "0.3"]
        target = ["--kubernetes", workload, "--url", url, "--namespace", "store"]
        self.process = subprocess.Popen(
            [*COMMAND, *target, *load, *files, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "PATH": f"{path}:{Path(sys.executable).parent}",
                name: value,
                "PYTHONUNBUFFERED": "1",
                "PYTHONDEVMODE": "",
                "REPLAY_STATE": str(tmp_path),
                **dict(env),
            },
        )
        self.said = ""

    def restart(self):
        """What somebody else does."""
        new = self.restarted.with_name("new")
        new.write_text(str(time.monotonic()))
        new.rename(self.restarted)

    @property
    def words(self):
        return " ".join(self.said.split())


def url_of(service):
    return f"http://{service.addresses[0].bind}"


@pytest.fixture
def shop(serve, tmp_path):
    """Starts a rehearsal of the recorded Deployment; all of it is gone when the test is over."""
    started = []

    def start(*options, **how):
        if "url" not in how:
            how["url"] = url_of(serve("gracefulworker.gthread", app="rehearsed:app", ready=False))
        url = how.pop("url")
        started.append(ClusterRehearsal(tmp_path, url, *options, **how))
        return started[-1]

    yield start
    for rehearsal in started:
        rehearsal.close()


def test_a_whole_rehearsal(shop):
    rehearsal = shop("--yes")
    assert rehearsal.end() == 0, rehearsal.said
    words = rehearsal.words
    assert "In the context recorded, namespace rehearse-pic: deployment/shop (3 pods)" in words
    assert re.search(r"About \d+ requests a second \(GET /\) go to http://", words)
    assert "By their last lines the last new connection came 1.7 s after a SIGTERM" in words
    assert re.search(r"deployment/shop lost 0 of \d+ requests\.", words)
    assert max(map(len, rehearsal.said.partition("Requests lost")[2].splitlines()[:20])) <= 80
    data = json.loads(rehearsal.json.read_text())
    assert data["plan"]["cluster"]["workload"] == "deployment/shop"
    assert data["plan"]["cluster"]["Kubernetes"] == "v1.34.4"
    assert not data["plan"].keys() & {"lag", "grace", "options"}
    (rollout,) = data["rollouts"]
    assert rollout["asked"] > 50 and rollout["clean"]
    old = [pod for pod in rollout["pods"] if pod["old"]]
    assert len(old) == 3 and len(rollout["pods"]) == 6
    for pod in old:
        assert {"deleted", "terminating", "endpoint_gone", "exit", "gone"} <= pod["marks"].keys()
        assert {"lame_duck", "gate", "stopped"} <= pod["marks"].keys()
        assert rollout["load"][0] < pod["marks"]["deleted"] < pod["marks"]["gone"]
        assert pod["marks"]["gone"] < rollout["load"][1], "the load goes on until all have gone"
        assert [c["exit_code"] for c in pod["containers"]] == [0]
    assert "https://" not in rehearsal.html.read_text(), "the picture needs nothing else"
    rehearsal.assert_nothing_left()


MOMENTS = ("the load begins", "its deletion is asked", "the rollout is complete")


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_reports_what_was_seen_and_leaves_nothing(shop, moment):
    rehearsal = shop("--yes")
    rehearsal.wait_line(moment)
    rehearsal.process.send_signal(signal.SIGINT)
    assert rehearsal.end() == 130, rehearsal.said
    assert "Traceback" not in rehearsal.said
    assert re.search(r"deployment/shop lost 0 of \d+ requests", rehearsal.words)
    assert "deployment/shop is left to itself" in rehearsal.words
    assert json.loads(rehearsal.json.read_text())["rollouts"][0]["lost"] == 0
    rehearsal.assert_nothing_left()


def test_a_script_around_kubectl_is_ended_with_it(shop, tmp_path):
    """Version managers put one there."""
    script = tmp_path / "bin" / "kubectl"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\n"{RECORDED}/kubectl" "$@"\nexit $?\n')
    script.chmod(0o755)
    rehearsal = shop("--yes", path=script.parent)
    rehearsal.wait_line("its deletion is asked")
    rehearsal.process.send_signal(signal.SIGINT)
    assert rehearsal.end() == 130, rehearsal.said
    rehearsal.assert_nothing_left()


def test_its_own_death_ends_kubectl(shop):
    rehearsal = shop("--yes")
    rehearsal.wait_line("its deletion is asked")
    rehearsal.process.kill()
    rehearsal.process.wait()
    rehearsal.assert_nothing_left()


def test_a_rollout_of_somebody_elses(shop):
    rehearsal = shop("--only-watch", "--yes")
    rehearsal.wait_line("waiting for a rollout of deployment/shop")
    assert not rehearsal.restarted.exists()
    rehearsal.restart()
    assert rehearsal.end() == 0, rehearsal.said
    assert "the rollout of deployment/shop has begun" in rehearsal.words
    assert "is watched, and restarted by somebody else" in rehearsal.words


def test_what_applications_log_is_not_kept():
    pod = events.SeenPod("shop-1", "uid")
    pod.hear("[pod/shop-1/app] the customer's name is Smith", 1.0)
    pod.hear("[pod/shop-1/app] [INFO] stopped: clean after 5.2 s; served 1 after SIGTERM", 2.0)
    assert [at for at, _ in pod.log] == [2.0]
    assert pod.last_line == "stopped: clean after 5.2 s; served 1 after SIGTERM"


def test_nobody_begins_one(shop):
    rehearsal = shop("--only-watch", "--yes", "--within", "1")
    assert rehearsal.end() == 2
    assert "nobody has begun a rollout of deployment/shop within 1 s" in rehearsal.words


def test_a_rollout_that_does_not_progress(shop):
    rehearsal = shop("--yes", env={"REPLAY_STALLS": "1"})
    assert rehearsal.end() == 2
    sentence = 'deployment "shop" exceeded its progress deadline; the cluster is left as it is'
    assert sentence in rehearsal.words
    assert re.search(r"lost 0 of \d+ requests", rehearsal.words), "what was seen is reported"
    rehearsal.assert_nothing_left()


@pytest.mark.parametrize(
    ("options", "how", "sentence"),
    [
        (["--yes"], {"workload": "deployment/nope"}, '"nope" not found'),
        (["--yes"], {"workload": "pod/shop"}, "takes deployment/NAME or statefulset/NAME"),
        (["--yes"], {"path": "/nowhere"}, "there is no kubectl on the PATH"),
        (["--yes"], {"url": "ftp://localhost/"}, "--url takes http://HOST"),
        (["--yes"], {"url": "http://nobody.invalid/"}, "nobody.invalid is not known here"),
        ([], {}, "nobody can be asked here: say --yes"),
        (["--yes", "--lag", "2"], {}, "leave --lag out: what runs in the cluster decides it"),
        (["--yes", "--", "--threads", "2"], {}, "leave -- out"),
        (["--yes", "app:app"], {}, "give the application, as MODULE:CALLABLE, or a workload"),
        (["--yes", "--path", "/missing"], {}, "404: nothing is there"),
        (
            ["--yes"],
            {"env": {"REPLAY_FORBIDDEN": "watch endpointslices.discovery.k8s.io"}},
            "this user may not watch endpointslices.discovery.k8s.io in the namespace",
        ),
        (
            ["--yes"],
            {"env": {"REPLAY_FORBIDDEN": "patch deployments.apps/shop"}},
            "this user may not patch deployment/shop",
        ),
        (
            ["--yes"],
            {"env": {"REPLAY_FORBIDDEN": "get pods --subresource=log"}},
            "this user may not get pods/log",
        ),
    ],
)
def test_what_cannot_be_rehearsed_is_exit_status_2(shop, options, how, sentence):
    rehearsal = shop(*options, **how)
    assert rehearsal.end() == 2, rehearsal.said
    assert sentence in rehearsal.words
    assert "Traceback" not in rehearsal.said
    assert not rehearsal.restarted.exists(), "nothing is done"


@pytest.mark.parametrize("is_trusted", (True, False))
def test_over_tls(shop, serve, tmp_path, is_trusted):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    pem = tmp_path / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    options = ("--certfile", str(pem), "--keep-alive", "75")
    service = serve("gracefulworker.gthread", app="rehearsed:app", ready=False, options=options)
    url = url_of(service).replace("http://127.0.0.1", "https://localhost")
    trust = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")} if is_trusted else {}
    rehearsal = shop("--yes", url=url, env=trust)
    if is_trusted:
        assert rehearsal.end() == 0, rehearsal.said
        assert re.search(r"deployment/shop lost 0 of \d+ requests\.", rehearsal.words)
    else:
        assert rehearsal.end() == 2, rehearsal.said
        assert "the certificate is not trusted here" in rehearsal.words
        assert not rehearsal.restarted.exists()


def test_nobody_listens(shop, tmp_path):
    rehearsal = shop("--yes", url="http://127.0.0.1:9")
    assert rehearsal.end() == 2
    assert "GET / had no answer before the rollout: no connection: nobody" in rehearsal.words
    assert not rehearsal.restarted.exists()


def test_it_asks_and_a_no_does_nothing(serve, tmp_path):
    """In a terminal."""
    pty = pytest.importorskip("pty")
    url = url_of(serve("gracefulworker.gthread", app="rehearsed:app", ready=False))
    ours, theirs = pty.openpty()
    command = [*COMMAND, "--kubernetes", "deployment/shop", "--url", url]
    env = {
        **os.environ,
        "PATH": f"{RECORDED}:{Path(sys.executable).parent}",
        "REPLAY_STATE": str(tmp_path),
    }
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    ) as process:
        os.close(theirs)
        os.write(ours, b"n\n")
        said, _ = process.communicate(timeout=PATIENCE)
        os.close(ours)
    assert process.returncode == 2
    assert b"Go on? [y/N]" in said and b"Nothing was done." in said
    assert not (tmp_path / "restarted").exists()
