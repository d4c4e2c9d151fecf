"""What stands between clients and a gunicorn: proxies in its pod, and balancers.

What may be changed here: the proxies and balancers that are known, and their figures, which stand
in docs/platforms.md too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from gracefulworker.tools.manifests import prestop
from gracefulworker.tools.manifests.documents import Node
from gracefulworker.tools.manifests.servers import Pod, Server
from gracefulworker.tools.manifests.units import base_of

#: Seconds for which balancers keep an idle connection to a pod, by the Ingress's class.
#: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/application-load-balancers.html
#: https://kubernetes.github.io/ingress-nginx/user-guide/nginx-configuration/configmap/
#: https://doc.traefik.io/traefik/routing/services/ (idleConnTimeout)
#: https://cloud.google.com/load-balancing/docs/https (backend keepalive timeout)
IDLE_TIMES = {"alb": 60.0, "nginx": 60.0, "traefik": 90.0, "gce": 600.0, "gce-internal": 600.0}

#: Where a user raises or lowers the ALB's.
ALB_ATTRIBUTES = "alb.ingress.kubernetes.io/load-balancer-attributes"

#: Seconds for which Heroku's router keeps an idle connection to a dyno.
#: https://devcenter.heroku.com/articles/http-routing#keepalives
HEROKU_IDLE = 90.0

#: Programs that may stand in front of gunicorn in its pod, which are the names of their images too.
PROXIES = frozenset(
    {"nginx", "nginx-unprivileged", "openresty", "envoy", "haproxy", "caddy", "httpd", "traefik"}
)

#: Those of them that SIGQUIT lets finish what is under way.
NGINXES = frozenset({"nginx", "nginx-unprivileged", "openresty"})

#: How addresses begin that nobody outside the pod can reach.
LOCAL = ("127.", "localhost", "[::1]")


class Front(NamedTuple):
    """A container of the pod through which clients reach gunicorn."""

    node: Node
    program: str
    is_sure: bool  #: whether the files say so, and not its program alone

    @property
    def name(self) -> str:
        """As in "the container web"."""
        return f"the container {self.node['name'].text}"

    @property
    def is_native(self) -> bool:
        """Whether it is a native sidecar, which is told to stop after all others."""
        return "initContainers[" in self.node.field

    @property
    def quits_after(self) -> float | None:
        """Seconds from the pod's deletion until it lets nobody in: see `prestop.quits_after`."""
        return prestop.quits_after(self.node, self.is_native)

    def hook(self, seconds: float) -> str:
        """What ends it after so many seconds, for a sentence."""
        if not self.is_native:
            return f"a preStop sleep of {seconds:g} s for {self.name}"
        if self.program not in NGINXES:
            return f"a preStop hook for {self.name} that makes it quit after {seconds:g} s"
        command = f'["sh", "-c", "sleep {seconds:g}; kill -QUIT 1; sleep 1"]'
        return f"the preStop hook {command} for {self.name}"


def in_front(server: Server) -> list[Front]:
    """The containers of the pod through which clients reach gunicorn.

    What a Service points to decides, if one is among the files. Else it is the program.
    """
    if server.pod is None or server.container is None:
        return []
    services = server.cluster.services_of(server.pod)
    targets = {
        (port["targetPort"] or port["port"]).text
        for service in services
        for port in service["spec"]["ports"]
    }
    own = {str(number) for number in server.container.ports().values()}
    own |= set(server.container.ports())
    addresses = []
    if "bind" in server.read.given and server.knows("bind"):
        addresses = [str(address) for address in server.read.cfg.settings["bind"].get()]
    own |= {str(port_of(address)) for address in addresses}
    is_hidden = bool(addresses) and all(
        address.startswith(("unix:", *LOCAL)) for address in addresses
    )
    if targets & own and not is_hidden:
        return []
    found = []
    for node in [*server.pod.containers, *server.pod.sidecars]:
        if node["name"].text == server.container.name:
            continue
        ports = {port[key].text for port in node["ports"] for key in ("name", "containerPort")}
        is_target = bool(targets & ports)
        program = _program(server.pod, node)
        if program in PROXIES and (is_target or not targets & _all_ports(server.pod)):
            found.append(Front(node, program, is_target or is_hidden))
        elif is_target and is_hidden:
            found.append(Front(node, program, True))
    return found


def port_of(address: str) -> int | None:
    """The port of gunicorn's bind, 8000 when it names none; None for a socket's path."""
    if address.startswith(("unix:", "fd:")):
        return None
    tail = address.removeprefix("tcp://").rpartition("]")[2].rpartition(":")[2]
    if tail.isdigit():
        return int(tail)
    return 8000 if ":" not in address or address.endswith("]") else None


def _all_ports(pod: Pod) -> set[str | None]:
    return {
        port[key].text
        for node in [*pod.containers, *pod.sidecars]
        for port in node["ports"]
        for key in ("name", "containerPort")
    }


def _program(pod: Pod, node: Node) -> str:
    """What a container runs: a proxy that its command names, or what is known of its image."""
    lines = [word.text or "" for word in node["command"]]
    named = [os.path.basename(word) for line in lines for word in line.split()]
    proxy = next((name for name in named if name in PROXIES), None)
    known = pod.programs.get(node["name"].text or "")
    return proxy or known or base_of(node["image"].text or "")


# -- balancers


class Balancer(NamedTuple):
    """One of AWS that sends requests to a pod's own address, past kube-proxy."""

    name: str
    takes: float  #: seconds until it has heard that a target is leaving, as users measured
    enough: float  #: a delay that holds them


#: docs/platforms.md; kube-proxy and ingress-nginx take less than 5 s. Of which kind a target group
#: is, its binding does not say.
ALB, NLB = Balancer("the ALB", 25.0, 30.0), Balancer("the NLB", 120.0, 150.0)
TARGET_GROUP = ALB._replace(name="the target group")


def direct_balancer(server: Server) -> Balancer | None:
    """The AWS balancer that sends requests to the pod itself, past kube-proxy."""
    if server.pod is None:
        return None
    services = server.cluster.services_of(server.pod)
    for ingress in server.cluster.ingresses_of(server.pod):
        kind = ingress["metadata"]["annotations"]["alb.ingress.kubernetes.io/target-type"].text
        if class_of(ingress) == "alb" and kind == "ip":
            return ALB
    names = {service["metadata"]["name"].text for service in services}
    for binding in server.cluster.target_groups:
        spec = binding["spec"]
        if spec["serviceRef"]["name"].text in names and spec["targetType"].text == "ip":
            return TARGET_GROUP
    prefix = "service.beta.kubernetes.io/aws-load-balancer-"
    for service in services:
        annotations = service["metadata"]["annotations"]
        is_ip = annotations[f"{prefix}nlb-target-type"].text == "ip"
        if is_ip or annotations[f"{prefix}type"].text == "nlb-ip":
            return NLB
    return None


def keeping(server: Server) -> Iterator[tuple[str, float]]:
    """The balancers in front, each with the seconds that it keeps an idle connection for."""
    if server.is_procfile:
        yield "Heroku's router, if that runs it", HEROKU_IDLE
    # With a proxy in the pod, the balancer's connections end there.
    if server.pod is None or in_front(server):
        return
    for ingress in server.cluster.ingresses_of(server.pod):
        idle = _idle_time(ingress)
        if idle is not None:
            place = f"{os.path.basename(ingress.file)}:{ingress.line}"
            yield f"{class_of(ingress)}, {place}", idle


def class_of(ingress: Node) -> str:
    """The class of an Ingress, "" when it names none."""
    annotations = ingress["metadata"]["annotations"]
    name = ingress["spec"]["ingressClassName"].text
    return name or annotations["kubernetes.io/ingress.class"].text or ""


def _idle_time(ingress: Node) -> float | None:
    """Seconds for which the Ingress's balancer keeps an idle connection, None if not known."""
    attributes = ingress["metadata"]["annotations"][ALB_ATTRIBUTES].text or ""
    for attribute in attributes.split(","):
        name, _, value = attribute.partition("=")
        if name.strip() == "idle_timeout.timeout_seconds" and value.strip().isdigit():
            return float(value)
    return IDLE_TIMES.get(class_of(ingress))
