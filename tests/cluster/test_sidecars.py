"""nginx in front, in the same pod, with the recipes and the configuration of docs/platforms.md."""

from __future__ import annotations

import pytest
import yaml
from cluster.kube import Watch
from cluster.workloads import Workload, with_nginx
from harness.documents import block

PAGE = "docs/platforms.md"

AROUND = """
pid /tmp/nginx.pid;
error_log stderr notice;
worker_processes 1;
events {{ }}
http {{
    access_log off;
    keepalive_timeout 65;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    {servers}
}}
"""


def recipe(native):
    """nginx's container and gunicorn's, as the page has them."""
    if native:
        pod = yaml.safe_load(block(PAGE, "yaml", "restartPolicy: Always"))
        (front,), (app,) = pod["initContainers"], pod["containers"]
        assert front.pop("restartPolicy") == "Always"
    else:
        pod = yaml.safe_load(block(PAGE, "yaml", 'command: ["sleep", "5"]'))
        front, app = pod["containers"]
    return front, app


@pytest.mark.parametrize("how", ("container", "native sidecar", "native sidecar without a hook"))
def test_nginx_in_front(kube, client, start, row, how):
    native = how != "container"
    front, app = recipe(native)
    name = f"nginx-{how.replace(' ', '-')}"
    env = {entry["name"]: entry["value"] for entry in app["env"]}
    workload = Workload(name, replicas=3, env=env)
    if how == "native sidecar without a hook":
        del front["lifecycle"]
    config = AROUND.format(servers=block(PAGE, "nginx", "upstream app"))
    start(with_nginx(workload, config, front, native))
    with Watch(kube, name) as watch:
        # Slow answers keep gunicorn, and so a sidecar, for a while after the delay.
        with client.load(kube.address(name), slow="/slow?seconds=4", connections=40) as load:
            kube("rollout", "restart", f"deployment/{name}")
            kube.wait_rolled_out(name)
            watch.wait_gone()
    row(f"nginx in front, {how}", "ours", load)
    if how == "native sidecar without a hook":
        assert any("502" in ending for ending in load.endings), load.told
        return
    # nginx ends its idle connections without a word: a request that crosses its FIN is lost, unless
    # its client asks again, as it may on a reused connection.
    assert not [end for end in load.endings if not end.endswith("closed (reused)")], load.told
    for pod in watch.pods:
        assert watch.last_line(pod).startswith("clean after "), watch.logs[pod]
