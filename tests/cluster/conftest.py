"""The cluster that kubectl points at, a namespace of its own in it, and the table at the end.

What may be changed here: fixtures that several cases need, and how the table looks.
"""

from __future__ import annotations

import contextlib
import datetime
import shlex
import shutil
import subprocess
import uuid
import warnings

import pytest
from cluster.kube import KUBECTL, Client, Failed, Kube

#: The line above the table.
MEASURED_ON = pytest.StashKey[str]()


def pytest_addoption(parser):
    group = parser.getgroup("cluster")
    group.addoption("--table", metavar="FILE", help="write the results there, as Markdown")
    group.addoption("--rounds", type=int, default=1, metavar="N", help="rolling updates of each")


def pytest_report_header():
    words = [*KUBECTL, "config", "current-context"]
    with contextlib.suppress(OSError):
        done = subprocess.run(words, capture_output=True, text=True)
        return f"cluster: {done.stdout.strip() or done.stderr.strip()}"


def unreachable() -> str:
    """Why there is no cluster to be tested on; "" if there is one."""
    if shutil.which(KUBECTL[0]) is None:
        return f"there is no {KUBECTL[0]} here (KUBECTL names another)"
    words = [*KUBECTL, "auth", "can-i", "create", "namespaces", "--request-timeout=10s"]
    done = subprocess.run(words, capture_output=True, text=True)
    said = (done.stderr or done.stdout).strip().splitlines() or ["no answer"]
    return f"{shlex.join(words)}: {said[-1]}" if done.returncode else ""


@pytest.fixture(scope="session")
def kube():
    """A namespace of its own, removed with all that is in it."""
    if why := unreachable():
        pytest.skip(why)
    name = f"gracefulworker-{uuid.uuid4().hex[:8]}"
    kube = Kube(name)
    kube("create", "namespace", name)
    try:
        yield kube
    finally:
        kube("delete", "namespace", name, "--wait=false")
        try:
            kube.wait(f"namespace/{name}", "delete")
        except Failed as error:
            warnings.warn(f"the namespace {name} is being removed still: {error}", stacklevel=1)


@pytest.fixture(scope="session")
def client(kube, nodes, request):
    """A pod that makes load; it reaches a Service as any pod does."""
    client = Client.start(kube, "client")
    ask = "import sys, gunicorn; print(gunicorn.__version__, sys.version.split()[0])"
    gunicorn, python = kube("exec", client.pod, "--", "python", "-c", ask).split()
    info = kube.get("node", next(iter(nodes)))["status"]["nodeInfo"]
    request.config.stash[MEASURED_ON] = (
        f"{datetime.date.today()}: Kubernetes {kube.version}, {len(nodes)} nodes,"
        f" {info['containerRuntimeVersion'].replace('://', ' ')}, Linux"
        f" {info['kernelVersion'].split('-')[0]}; gunicorn {gunicorn}, Python {python}."
    )
    return client


@pytest.fixture(scope="session")
def has_gevent(kube, client):
    ask = "import importlib.util; print(importlib.util.find_spec('gevent') is not None)"
    return kube("exec", client.pod, "--", "python", "-c", ask) == "True\n"


@pytest.fixture(scope="session")
def outside(kube, client):
    """A pod with its node's own address: for what only those outside the pods' network see."""
    try:
        return Client.start(kube, "outside", hostNetwork=True)
    except Failed as error:
        pytest.skip(f"no pod may have its node's address here: {error}")


@pytest.fixture(scope="session")
def nodes(kube):
    """Names of the nodes that take pods, and their addresses."""
    found = {}
    for node in kube.get("nodes")["items"]:
        closed = [t for t in node["spec"].get("taints", ()) if t["effect"] != "PreferNoSchedule"]
        if not closed:  # one that is cordoned has a taint, too
            addresses = {a["type"]: a["address"] for a in node["status"]["addresses"]}
            found[node["metadata"]["name"]] = addresses["InternalIP"]
    return found


@pytest.fixture
def two_nodes(nodes):
    if len(nodes) < 2:
        pytest.skip("needs two nodes that take pods")
    return list(nodes)[:2]


@pytest.fixture
def start(kube):
    """Starts a Workload; what was started is gone when the test is over."""
    started = []

    def run(workload):
        started.append(workload)
        workload.start(kube)
        return workload

    yield run
    for workload in started:
        workload.end(kube)


@pytest.fixture
def row(request):
    """``row(case, side, load, note)``: a figure of the table, also when the test fails later."""

    def note(case, side, load, note=""):
        figure = [case, side, load.lost, load.asked, note]
        request.node.user_properties.append(("row", figure))

    return note


def pytest_terminal_summary(terminalreporter, config):
    rows: dict[str, dict[str, list[tuple[int, int, str]]]] = {}
    for report in (r for found in terminalreporter.stats.values() for r in found):
        if getattr(report, "when", None) != "call":
            continue
        for name, value in report.user_properties:
            if name == "row":
                case, side, *figures = value
                rows.setdefault(case, {}).setdefault(side, []).append(tuple(figures))
    if not rows:
        return
    lines = [config.stash[MEASURED_ON], "", "| case | gracefulworker | stock |", "|---|---|---|"]
    for case, sides in rows.items():
        cells = [cell(sides.get(side, [])) for side in ("ours", "stock")]
        lines.append(f"| {case} | {cells[0]} | {cells[1]} |")
    terminalreporter.section("requests lost, of all that were asked for")
    for line in lines:
        terminalreporter.line(line)
    if config.option.table:
        with open(config.option.table, "w") as file:
            file.write("\n".join(lines) + "\n")


def cell(figures: list[tuple[int, int, str]]) -> str:
    """The sum of some rounds."""
    if not figures:
        return ""
    lost, asked = sum(f[0] for f in figures), sum(f[1] for f in figures)
    notes = "; ".join(dict.fromkeys(note for *_, note in figures if note))
    return f"{lost} of {asked:,}" + (f" ({notes})" if notes else "")
