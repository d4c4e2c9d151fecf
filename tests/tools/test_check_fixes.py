"""The fixes of `gracefulworker check`: who follows all of them has nothing left to find.

Deployments are drawn by lot: a delay, a preStop hook, proxies and balancers in front, and a period
that may hold them or not. Each fix is carried out, and the check is run again.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gracefulworker.tools import cli

SECONDS = st.sampled_from([0, 1, 3, 5, 8, 15, 29, 40, 130])
KINDS = {
    "alb": {"alb.ingress.kubernetes.io/target-type": "ip"},
    "nginx": {"alb.ingress.kubernetes.io/target-type": "instance"},
    "traefik": {"any": "other"},
}
NLB = {"service.beta.kubernetes.io/aws-load-balancer-nlb-target-type": "ip"}


@st.composite
def deployments(draw):
    """A Deployment, its Service and its Ingress."""
    worker = draw(st.sampled_from(["sync", "gthread", "gracefulworker.gthread"]))
    command = ["gunicorn", "-b", "0.0.0.0:8000", "-k", worker]
    finish = draw(st.sampled_from([None, 5, 30, 60, 100]))
    command += [] if finish is None else ["--graceful-timeout", str(finish)]
    environ = {}
    for name in ("GRACEFUL_DELAY", "GRACEFUL_KILL_AFTER"):
        value = draw(st.none() | SECONDS)
        if value is not None:
            environ[name] = str(value)
    probe = {"httpGet": {"path": "/", "port": 8000}}
    web: dict[str, Any] = {"name": "web", "image": "a/web", "command": [*command, "app:app"]}
    web |= {"readinessProbe": probe, "ports": [{"containerPort": 8000}]}
    web["env"] = [{"name": name, "value": value} for name, value in environ.items()]
    fronts: list[dict[str, Any]] = []
    for number in range(draw(st.integers(0, 2))):
        fronts.append(
            {"name": f"front{number}", "image": draw(st.sampled_from(["nginx", "envoy"]))}
        )
        fronts[-1]["ports"] = [{"containerPort": 80 + number}]
        if draw(st.booleans()):
            fronts[-1] |= {"restartPolicy": "Always", "image": "nginx"}
    for container in (web, *fronts):
        seconds = draw(st.none() | SECONDS)
        if seconds is None:
            continue
        texts = [{"sleep": {"seconds": seconds}}, {"exec": {"command": ["sleep", str(seconds)]}}]
        if container is web:
            texts.append({"exec": {"command": ["sh", "-c", f"/bin/sleep '{seconds}'"]}})
        container["lifecycle"] = {"preStop": draw(st.sampled_from(texts))}
    spec = {"containers": [web, *(one for one in fronts if "restartPolicy" not in one)]}
    spec["initContainers"] = [one for one in fronts if "restartPolicy" in one]
    period = draw(st.none() | SECONDS)
    if period is not None:
        spec["terminationGracePeriodSeconds"] = period
    ports = [80 + number for number in range(len(fronts))] or [8000]
    service = {"selector": {"app": "web"}, "ports": [{"port": p, "targetPort": p} for p in ports]}
    balancer = draw(st.sampled_from(["", "nlb", *KINDS]))
    found = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {"template": {"metadata": {"labels": {"app": "web"}}, "spec": spec}},
        },
        {
            "kind": "Service",
            "metadata": {"name": "web", "annotations": NLB if balancer == "nlb" else {}},
            "spec": service,
        },
    ]
    if balancer in KINDS:
        backend = {"service": {"name": "web", "port": {"number": 80}}}
        found.append(
            {
                "kind": "Ingress",
                "metadata": {"name": "web", "annotations": KINDS[balancer]},
                "spec": {"ingressClassName": balancer, "defaultBackend": backend},
            }
        )
    return found


def findings(path, documents):
    """What the check finds in these documents."""
    path.write_text("\n---\n".join(map(json.dumps, documents)))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.main(["check", "--format", "json", str(path)])
    report = json.loads(out.getvalue())
    assert (report["unreadable"], report["servers"]) == ([], 1)
    return report["findings"]


def follow(documents, fix):
    """Do what a fix says: return each thing that was set, with its new value."""
    spec = documents[0]["spec"]["template"]["spec"]
    containers = {one["name"]: one for one in [*spec["containers"], *spec["initContainers"]]}
    web = containers["web"]
    done: dict[str, object] = {}
    fix, *_ = fix.split(", or ")
    for name, value in re.findall(r"\b(GRACEFUL_\w+)=(\d+)", fix):
        web["env"] = [one for one in web["env"] if one["name"] != name]
        web["env"].append({"name": name, "value": value})
        done[name] = value
    if "remove graceful_delay = 0" in fix:
        web["env"] = [one for one in web["env"] if one["name"] != "GRACEFUL_DELAY"]
        done["GRACEFUL_DELAY"] = None
    for value in re.findall(r"terminationGracePeriodSeconds: (\d+)", fix):
        spec["terminationGracePeriodSeconds"] = done["period"] = int(value)
    for option, value in re.findall(r"(-k|--keep-alive) ([\w.]+)", fix):
        web["command"] += [option, value]
        if option == "-k":
            at = web["command"].index("-k")
            del web["command"][at : at + 2]
        done[option] = value
    if "remove the preStop hook" in fix:
        web.pop("lifecycle", None)
        done["hook"] = None
    for value, name in re.findall(r"a preStop sleep of (\d+) s for (?:the container )?(\w+)", fix):
        hook = {"preStop": {"sleep": {"seconds": int(value)}}}
        containers["web" if name == "gunicorn" else name]["lifecycle"] = hook
        done[name] = value
    for value, name in re.findall(r"the preStop hook (\[.*?\]) for the container (\w+)", fix):
        hook = {"preStop": {"exec": {"command": json.loads(value)}}}
        containers[name]["lifecycle"] = hook
        done[name] = value
    assert done, f"nothing to be done: {fix}"
    return done


@given(documents=deployments())
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
def test_who_follows_all_fixes_has_nothing_left_to_find(tmp_path, documents):
    path = tmp_path / "web.yaml"
    found = findings(path, documents)
    # A value that is refused comes first; and only a person can choose between two that disagree.
    if any(one["rule"] == "options" or "would refuse" in one["fix"] for one in found):
        return
    text = json.dumps(found, indent=1)
    done: dict[str, object] = {}
    for one in found:
        for name, value in follow(documents, one["fix"]).items():
            assert done.setdefault(name, value) == value, text
    assert findings(path, documents) == [], text
