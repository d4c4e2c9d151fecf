"""Every manifest of the examples and of the pages, as it stands: the API server takes it."""

from __future__ import annotations

import pytest
import yaml
from cluster.kube import IMAGE, Watch
from cluster.workloads import EXAMPLE, Workload
from harness.documents import PAGES, blocks

BLOCKS = [block for page in PAGES for block in blocks(page) if block.language == "yaml"]


def is_object(block):
    return all("kind" in document for document in yaml.safe_load_all(block.text))


def is_part_of_a_pod(block):
    if block.text.startswith("# values.yaml"):
        return False  # a chart's, which it puts into a pod
    first = yaml.safe_load(block.text)
    return bool({"containers", "initContainers", "lifecycle", "env"} & first.keys())


FOR_KUBERNETES = [block for block in BLOCKS if is_object(block) or is_part_of_a_pod(block)]


@pytest.mark.parametrize("path", sorted(EXAMPLE.glob("*.yaml")), ids=lambda path: path.name)
def test_an_example(kube, path):
    documents = [*yaml.safe_load_all(path.read_text())]
    if documents[0]["kind"] == "Kustomization":
        kube("apply", "--dry-run=server", "-k", str(EXAMPLE))
        return
    kube.apply(*documents, dry_run=True)


@pytest.mark.skipif(IMAGE != "graceful-flask:1", reason="the example names another image")
def test_the_example_as_it_stands(kube, client, row):
    kube("apply", "-k", str(EXAMPLE))
    name = "graceful-flask"
    try:
        kube.wait_rolled_out(name)
        with Watch(kube, name) as watch:
            with client.load(kube.address(name)) as load:
                kube("rollout", "restart", f"deployment/{name}")
                kube.wait_rolled_out(name)
                watch.wait_gone()
    finally:
        kube("delete", "-k", str(EXAMPLE), "--wait")
    row("examples/kubernetes as it stands, 2 pods", "ours", load)
    assert not load.lost, load.told


@pytest.mark.parametrize("block", FOR_KUBERNETES, ids=str)
def test_a_page(kube, block):
    """An object, or a piece that is put where it belongs: into the example's pod."""
    if is_object(block):
        kube.apply(*yaml.safe_load_all(block.text), dry_run=True)
        return
    workload = Workload("part")
    part = yaml.safe_load(block.text)
    for name in ("containers", "initContainers"):
        for container in part.get(name, ()):
            container.setdefault("image", "example")
    if {"lifecycle", "env"} & part.keys():
        workload.app.update(part)
    else:
        workload.pod.update(part)
    kube.apply(workload.deployment, dry_run=True)


def test_a_fault_would_be_found(kube):
    workload = Workload("fault")
    workload.pod["containers"][0]["livecycle"] = {}
    with pytest.raises(Exception, match="livecycle"):
        kube.apply(workload.deployment, dry_run=True)
