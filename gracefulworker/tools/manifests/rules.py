"""The mistakes that cost requests, one small function for each.

A rule is a generator function that takes a `Server` and yields a `Finding` for each place where the
mistake was made; `@rule` with its name puts it on the list. It must be sure: what is not known (a
value that comes from a Secret, a config file that was not given) is no mistake. The severity is
``error`` when requests are lost for certain, ``warning`` when it depends on the traffic or on
something that the files do not show. What may be changed here: rules, and the figures at the top;
each rule has a row in docs/check.md, and a file with just that mistake among the tests.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gracefulworker.settings import MARGIN, whole
from gracefulworker.tools.manifests.documents import Node
from gracefulworker.tools.manifests.servers import Container, Pod, Server, prestop_sleep
from gracefulworker.tools.manifests.sources import Place

ERROR, WARNING = "error", "warning"

#: Seconds for which balancers keep an idle connection to a pod, by the Ingress's class.
#: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/application-load-balancers.html
#: https://kubernetes.github.io/ingress-nginx/user-guide/nginx-configuration/configmap/
#: https://doc.traefik.io/traefik/routing/services/ (idleConnTimeout)
#: https://cloud.google.com/load-balancing/docs/https (backend keepalive timeout)
IDLE_TIMES = {"alb": 60.0, "nginx": 60.0, "traefik": 90.0, "gce": 600.0, "gce-internal": 600.0}

#: Where a user raises or lowers the ALB's.
ALB_ATTRIBUTES = "alb.ingress.kubernetes.io/load-balancer-attributes"

#: Our workers that answer one request per connection have no keep-alive.
KEEPERS = ("gthread", "gevent", "eventlet", "tornado")

#: Images of programs that stand in front of gunicorn in its pod.
PROXIES = frozenset(
    {"nginx", "nginx-unprivileged", "openresty", "envoy", "haproxy", "caddy", "httpd", "traefik"}
)

#: Seconds that gunicorn may go on after a proxy in its pod has closed its door, for what that has
#: let in.
HANDOVER = 2.0

#: Less than this from the start of the container to its end by the liveness probe is no boot time
#: for a Python service, which takes 1 to 10 s on an idle machine.
SHORTEST_BOOT = 10.0

#: Annotations of Services whose balancer looks at the pods itself.
DIRECT = (
    "cloud.google.com/neg",
    "service.beta.kubernetes.io/aws-load-balancer-nlb-target-type",
    "service.beta.kubernetes.io/aws-load-balancer-type",
)


@dataclass(frozen=True)
class Finding:
    """One mistake.

    :param mistake: what is wrong, with the figures.
    :param effect: what clients will see.
    """

    rule: str
    severity: str
    server: str
    place: Place
    mistake: str
    effect: str
    fix: str


@dataclass(frozen=True)
class Mistake:
    """What a rule yields: a `Finding` before it has a rule's and a server's name."""

    severity: str
    place: Place
    mistake: str
    effect: str
    fix: str


Rule = Callable[[Server], Iterator[Mistake]]

#: All rules by name, in the order of docs/check.md.
RULES: dict[str, Rule] = {}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Put a function on the list of rules."""

    def register(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return register


def judge(server: Server) -> Iterator[Finding]:
    """Yield what all rules find."""
    for name, function in RULES.items():
        for m in function(server):
            yield Finding(name, m.severity, server.name, m.place, m.mistake, m.effect, m.fix)


# -- the time from the deletion of a pod to its SIGKILL


@dataclass(frozen=True)
class Budget:
    """How a pod's terminationGracePeriodSeconds is spent; all in seconds."""

    pod: Pod
    container: Container
    presleep: float
    delay: float
    finish: float
    is_chosen: bool

    @property
    def used(self) -> float:
        """What the pod takes when a request is as slow as it may be."""
        return self.presleep + self.delay + self.finish

    @property
    def needed(self) -> int:
        """The period that holds it, with the margin for the exit."""
        return whole(self.used + MARGIN)

    @property
    def fits(self) -> bool:
        """Whether it does, or is let pass.

        Stock's default graceful_timeout is as long as Kubernetes' default period: nobody chose
        either, and what a preStop sleep takes away is missed by very slow requests only.
        """
        if self.needed <= self.pod.period:
            return True
        is_default = not self.is_chosen and not self.delay
        return is_default and self.presleep + MARGIN <= self.pod.period

    @property
    def severity(self) -> str:
        """Requests are cut, or there is no time for the exit alone."""
        return ERROR if self.used > self.pod.period else WARNING

    @property
    def sum(self) -> str:
        """The figures, for a sentence."""
        parts = {
            "preStop": self.presleep,
            "graceful_delay": self.delay,
            "graceful_timeout": self.finish,
            "the exit": MARGIN,
        }
        return " + ".join(f"{name} {value:g} s" for name, value in parts.items() if value)

    @property
    def is_presleep_alone(self) -> bool:
        """Whether all would fit without the preStop hook, which our delay makes needless."""
        would_fit = self.needed - self.presleep <= self.pod.period
        return self.presleep > 0 and self.delay > 0 and would_fit

    @property
    def is_unset_or_equal(self) -> bool:
        """Whether nobody thought of the period: that of the rule `graceful-timeout`."""
        is_set = bool(self.pod.spec["terminationGracePeriodSeconds"])
        if not is_set:
            return self.is_chosen
        return self.is_chosen and self.finish == self.pod.period and not self.presleep


def budget(server: Server) -> Budget | None:
    """Return the sum for a server in a pod, None when one of its figures is not known."""
    delay, finish = server.delay, server.finish
    if server.pod is None or server.container is None or delay is None or finish is None:
        return None
    return Budget(
        server.pod,
        server.container,
        server.presleep() or 0.0,
        delay,
        finish,
        "graceful_timeout" in server.read.given,
    )


def _period_place(pod: Pod) -> Place:
    return pod.spec["terminationGracePeriodSeconds"].place


@rule("grace-period")
def grace_period(server: Server) -> Iterator[Mistake]:
    """preStop, delay and graceful_timeout together are longer than the period."""
    sums = budget(server)
    if sums is None or sums.fits:
        return
    if sums.is_presleep_alone or sums.is_unset_or_equal:
        return
    shorter = "lower graceful_timeout"
    if sums.delay:
        left = max(sums.pod.period - sums.presleep, 0)
        shorter = f"set GRACEFUL_KILL_AFTER to {left:g}, which shortens graceful_timeout"
    yield Mistake(
        sums.severity,
        _period_place(sums.pod),
        f"{sums.sum} is more than the period of {sums.pod.period:g} s",
        "requests still under way when the period ends are cut by SIGKILL, without an answer and "
        "without a log line",
        f"terminationGracePeriodSeconds: {sums.needed}, or {shorter}",
    )


@rule("prestop-sleep")
def prestop(server: Server) -> Iterator[Mistake]:
    """A preStop sleep before a gunicorn that has a delay of its own."""
    sums = budget(server)
    if sums is None or not sums.presleep or not sums.delay:
        return
    if sums.needed <= sums.pod.period:
        severity = WARNING
        effect = f"nothing is lost, but each pod takes {sums.presleep:g} s longer to go"
    elif sums.is_presleep_alone:
        severity = ERROR
        effect = "the time for requests under way is too short by that: they are cut by SIGKILL"
    else:
        return
    yield Mistake(
        severity,
        sums.container.node["lifecycle"]["preStop"].place,
        f"the preStop sleep of {sums.presleep:g} s and graceful_delay of {sums.delay:g} s add up: "
        f"{sums.sum}, in a period of {sums.pod.period:g} s",
        effect,
        "remove the preStop hook, or set GRACEFUL_DELAY to 0",
    )


@rule("sigterm-lost")
def sigterm_lost(server: Server) -> Iterator[Mistake]:
    """A shell stays above gunicorn and keeps SIGTERM to itself, or another signal is sent."""
    if server.launch.holder is not None:
        yield Mistake(
            ERROR,
            server.place,
            f"gunicorn is started by {server.launch.holder}, which does not pass SIGTERM on",
            "gunicorn never begins its shutdown: every connection is cut by SIGKILL at the end of "
            "the grace period",
            "write `exec` before the command in the shell, or start gunicorn without a shell "
            '(["gunicorn", "app:app"], the exec form)',
        )
    signals = []
    if server.image is not None and server.image.stop_signal is not None:
        signals.append(server.image.stop_signal)
    if server.container is not None and server.container.node["lifecycle"]["stopSignal"]:
        node = server.container.node["lifecycle"]["stopSignal"]
        signals = [(node.text or "", node.place)]
    for signal, place in signals:
        name = signal.upper().removeprefix("SIG")
        is_taken = name in ("TERM", "15") or (
            name in ("INT", "2") and server.ours is not None and server.ours.sigint
        )
        if not is_taken:
            yield Mistake(
                ERROR,
                place,
                f"the container is stopped with {signal}, which ends gunicorn at once or not at "
                "all",
                "connections are cut at each deploy",
                "remove it, so that SIGTERM is sent",
            )


@rule("keep-alive")
def keep_alive(server: Server) -> Iterator[Mistake]:
    """gunicorn closes idle connections before the balancer in front does."""
    worker = server.worker
    if server.pod is None or worker is None or not server.knows("keepalive"):
        return
    if not worker.rsplit(".", 1)[-1].rsplit("#", 1)[-1].lower().startswith(KEEPERS):
        return
    keepalive = float(server.read.cfg.keepalive)
    if keepalive == 0:  # every answer says close: no connection is idle
        return
    for ingress in server.cluster.ingresses_of(server.pod):
        idle = _idle_time(ingress)
        if idle is not None and keepalive <= idle:
            yield Mistake(
                WARNING,
                server.place,
                f"keep-alive is {keepalive:g} s, and the balancer ({_class(ingress)}, "
                f"{os.path.basename(ingress.file)}:{ingress.line}) keeps idle connections for "
                f"{idle:g} s",
                "now and then, at any time, a 502: the balancer sends a request on a connection "
                "that gunicorn is just closing",
                f"--keep-alive {idle + 5:g}",
            )


def _class(ingress: Node) -> str:
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
    return IDLE_TIMES.get(_class(ingress))


# -- probes


def _window(probe: Node) -> float:
    """Seconds in which a probe has to fail until the kubelet acts."""
    return _number(probe["failureThreshold"], 3) * _number(probe["periodSeconds"], 10)


def _number(node: Node, default: float) -> float:
    number = node.number
    return default if number is None else number


def _on_probe_bind(server: Server, probe: Node) -> bool:
    """Whether the probe asks the address that is answered while every worker is busy."""
    bind = None if server.ours is None else server.ours.probe_bind
    return bind is not None and bind.port == _port(server, probe["httpGet"]["port"])


def _port(server: Server, node: Node) -> int | None:
    """The number of a probe's port, which may be the name of one of the container's."""
    assert server.container is not None
    number = node.number
    return server.container.ports().get(node.text or "") if number is None else int(number)


def _port_of_address(address: str) -> int | None:
    """The port of gunicorn's bind, 8000 when it names none; None for a socket's path."""
    if address.startswith(("unix:", "fd:")):
        return None
    tail = address.removeprefix("tcp://").rpartition("]")[2].rpartition(":")[2]
    if tail.isdigit():
        return int(tail)
    return 8000 if ":" not in address or address.endswith("]") else None


@rule("liveness-window")
def liveness_window(server: Server) -> Iterator[Mistake]:
    """The liveness probe gives up before gunicorn's timeout, or before the boot is over."""
    if server.container is None:
        return
    node = server.container.node
    liveness = node["livenessProbe"]
    if not liveness:
        return
    window = _window(liveness)
    timeout = float(server.read.cfg.timeout) if server.knows("timeout") else 0.0
    if window < timeout and not _on_probe_bind(server, liveness):
        yield Mistake(
            WARNING,
            liveness.place,
            f"the liveness probe gives up after {window:g} s, and gunicorn's timeout is "
            f"{timeout:g} s",
            "when slow requests keep the workers busy the whole pod is restarted, and everything "
            "in it is cut, before gunicorn would replace the one worker that hangs",
            f"failureThreshold: {math.ceil(timeout / _number(liveness['periodSeconds'], 10)) + 1}",
        )
    if node["startupProbe"]:
        return
    boot = max(SHORTEST_BOOT, _number(node["readinessProbe"]["initialDelaySeconds"], 0))
    alive = _number(liveness["initialDelaySeconds"], 0) + window
    if alive < boot:
        yield Mistake(
            WARNING,
            liveness.place,
            f"the liveness probe ends the container {alive:g} s after its start, and the boot may "
            f"take {boot:g} s",
            "a pod that boots slowly (a busy node, a cold disk) is restarted over and over",
            "add a startupProbe with the same handler and failureThreshold: 30",
        )


@rule("liveness-is-readiness")
def liveness_is_readiness(server: Server) -> Iterator[Mistake]:
    """One handler for both probes, and a second to answer in: busy counts as dead."""
    if server.container is None:
        return
    liveness = server.container.node["livenessProbe"]
    readiness = server.container.node["readinessProbe"]
    if not liveness["httpGet"] or not readiness["httpGet"] or _on_probe_bind(server, liveness):
        return
    is_same = all(
        liveness["httpGet"][key].text == readiness["httpGet"][key].text for key in ("path", "port")
    )
    # A liveness probe that waits longer, in either way, is not the same.
    if not is_same or _number(liveness["timeoutSeconds"], 1) > 1:
        return
    if _window(liveness) > _window(readiness):
        return
    yield Mistake(
        WARNING,
        liveness.place,
        "the liveness probe is the readiness probe, with a timeout of 1 s",
        "under load the probe waits behind requests: the pod is restarted, instead of being left "
        "alone until it has caught up, and its requests are cut",
        "timeoutSeconds: 5 and a higher failureThreshold for the liveness probe, or no liveness "
        "probe (gunicorn replaces workers that hang by itself)",
    )


@rule("readiness-probe")
def readiness_probe(server: Server) -> Iterator[Mistake]:
    """No readiness probe, one that is green while nobody accepts, or one that nobody answers."""
    if server.container is None:
        return
    node = server.container.node
    if not node["readinessProbe"]:
        yield Mistake(
            WARNING,
            node["readinessProbe"].place,
            "there is no readiness probe",
            "at each deploy new pods get requests before the application has been imported: "
            "connection refused, or a long wait",
            "a readinessProbe with httpGet on a path of the application",
        )
    for name in ("readinessProbe", "livenessProbe"):
        probe = node[name]
        if probe["tcpSocket"]:
            yield Mistake(
                WARNING,
                probe["tcpSocket"].place,
                f"the {name} is a tcpSocket",
                "it is green as soon as the port is open, which gunicorn's main process sees to "
                "before any worker has booted, and while none accepts: requests wait or fail",
                "httpGet on a path of the application",
            )
        if probe["httpGet"]:
            yield from _unanswered(server, name, probe["httpGet"])


def _unanswered(server: Server, name: str, get: Node) -> Iterator[Mistake]:
    """A probe on a port, or a path, that nobody answers."""
    assert server.pod is not None and server.container is not None
    effect = "the pod never becomes ready, or is restarted over and over"
    port = _port(server, get["port"])
    if port is None:
        if get["port"].text is not None:
            yield Mistake(
                ERROR,
                get["port"].place,
                f"the {name} asks the port {get['port'].text}, which the container does not "
                "declare",
                effect,
                "the name of one of the container's ports, or its number",
            )
        return
    path = get["path"].text or "/"
    if server.ours is not None and server.ours.probe_bind and server.ours.probe_bind.port == port:
        paths = server.ours.probe_paths
        if server.is_complete and path.partition("?")[0] not in paths:
            yield Mistake(
                ERROR,
                get["path"].place,
                f"the {name} asks {path} of graceful_probe_bind, where only "
                f"{' and '.join(paths)} is answered",
                effect,
                "one of those paths",
            )
        return
    if "bind" not in server.read.given or not server.knows("bind"):
        return
    addresses = [str(address) for address in server.read.cfg.settings["bind"].get()]
    ports = {_port_of_address(address) for address in addresses}
    # A proxy in the same pod may well answer there.
    others = [c for c in server.pod.containers if c["name"].text != server.container.name]
    is_foreign = others or any(address.startswith(("unix:", "fd:")) for address in addresses)
    if is_foreign or port in ports:
        local = ("127.", "localhost", "[::1]")
        if not is_foreign and all(address.startswith(local) for address in addresses):
            yield Mistake(
                ERROR,
                server.place,
                f"gunicorn is bound to {', '.join(addresses)}, which nobody outside the container "
                "can reach",
                effect,
                f"--bind 0.0.0.0:{port}",
            )
        return
    yield Mistake(
        ERROR,
        get["port"].place,
        f"the {name} asks port {port}, and gunicorn is bound to {', '.join(addresses)}",
        effect,
        "the port that gunicorn is bound to",
    )


@rule("graceful-timeout")
def graceful_timeout(server: Server) -> Iterator[Mistake]:
    """A graceful_timeout that was chosen, and a period that was forgotten or is just as long."""
    sums = budget(server)
    if sums is None or sums.fits:
        return
    if sums.is_presleep_alone or not sums.is_unset_or_equal:
        return
    is_set = bool(sums.pod.spec["terminationGracePeriodSeconds"])
    period = f"{sums.pod.period:g} s"
    yield Mistake(
        sums.severity,
        _period_place(sums.pod),
        f"graceful_timeout is {sums.finish:g} s, and terminationGracePeriodSeconds is "
        + (f"{period} too: " if is_set else f"not set, which means {period}: ")
        + f"{sums.sum}",
        "requests still under way when the period ends are cut by SIGKILL, without an answer and "
        "without a log line",
        f"terminationGracePeriodSeconds: {sums.needed}",
    )


@rule("options")
def options(server: Server) -> Iterator[Mistake]:
    """Options that are misspelt, doubled, without effect or refused."""
    ignored = "the service does not run, or stop, as it was meant to"
    refused = "gunicorn does not start: the deploy hangs, or the service is down"
    for source, is_fatal, sentence in server.read.mistakes:
        yield Mistake(
            ERROR if is_fatal else WARNING,
            server.place_of(source),
            sentence,
            refused if is_fatal else ignored,
            "correct or remove it (`gunicorn --help` has all options)",
        )
    if server.refusal is not None and server.is_delayed:
        place = server.place_of(server.refusal)
        yield Mistake(ERROR, place, server.refusal, refused, "as the sentence says")
    for warning in server.ours.warnings if server.ours is not None else ():
        place = server.place_of(warning)
        yield Mistake(WARNING, place, warning, ignored, "as the sentence says")


@rule("sidecar")
def sidecar(server: Server) -> Iterator[Mistake]:
    """A proxy in the same pod that stops at SIGTERM, while gunicorn goes on serving through it."""
    delay, finish, presleep = server.delay, server.finish, server.presleep()
    if server.pod is None or server.container is None or delay is None or presleep is None:
        return
    kept = delay + presleep
    if not kept:
        return
    effect = (
        f"the proxy refuses clients at once at each deploy, although gunicorn serves on for "
        f"{kept:g} s"
    )
    for node in server.pod.containers:
        image = (node["image"].text or "").split("@")[0].rsplit("/", 1)[-1].split(":")[0]
        if node["name"].text == server.container.name or image not in PROXIES:
            continue
        sleep = prestop_sleep(node)
        if sleep is not None and (not sleep or sleep + HANDOVER < kept):
            yield Mistake(
                ERROR,
                node["lifecycle"]["preStop"].place if sleep else node.place,
                f"the container {node['name'].text} ({image}) in front of gunicorn stops "
                f"{kept - sleep:g} s before it",
                effect,
                f"a preStop sleep of {kept:g} s for that container, and graceful_delay = "
                f"{delay + HANDOVER:g} for what it then hands over; or make it a native sidecar "
                "(initContainers with restartPolicy: Always), which ends after gunicorn",
            )
    yield from _istio(server, server.pod, kept + (finish or 0.0))


def _istio(server: Server, pod: Pod, needed: float) -> Iterator[Mistake]:
    """Istio's proxy is not in the file: it is added when the pod is created."""
    inject = "sidecar.istio.io/inject"
    annotations = pod.annotations
    if "true" not in (pod.labels.get(inject), annotations.get(inject)):
        return
    config = annotations.get("proxy.istio.io/config", "")
    is_native = annotations.get("sidecar.istio.io/nativeSidecar") == "true"
    waits = "terminationDrainDuration" in config or "EXIT_ON_ZERO_ACTIVE_CONNECTIONS" in config
    if is_native or waits:
        return
    source = "labels" if pod.labels.get(inject) == "true" else "annotations"
    yield Mistake(
        WARNING,
        pod.metadata[source][inject].place,
        f"Istio's proxy ends 5 s after SIGTERM, and gunicorn may need {needed:g} s",
        "requests that take longer than that are cut, and so are the application's own calls to "
        "other services",
        'the annotation sidecar.istio.io/nativeSidecar: "true", or in proxy.istio.io/config a '
        f"terminationDrainDuration of {math.ceil(needed)}s",
    )


@rule("unready")
def unready(server: Server) -> Iterator[Mistake]:
    """graceful_unready behind kube-proxy, which does not need it and falls back on ready pods."""
    if server.pod is None or not server.is_unready or not server.is_delayed:
        return
    services = server.cluster.services_of(server.pod)
    direct = [
        service
        for service in services
        if any(service["metadata"]["annotations"][name] for name in DIRECT)
    ]
    classes = {_class(ingress) for ingress in server.cluster.ingresses_of(server.pod)}
    is_probed = classes & {"alb", "gce", "gce-internal", "haproxy"}
    if not services or direct or is_probed or server.cluster.target_groups:
        return
    yield Mistake(
        WARNING,
        server.place_of("GRACEFUL_UNREADY"),
        "graceful_unready is set, and only kube-proxy stands in front",
        "when all pods are leaving (a node goes, one replica is left) kube-proxy would still use "
        "one that is ready, and now has none: connection refused",
        "remove it: a pod that is being deleted is out of the Service without it",
    )


@rule("no-delay")
def no_delay(server: Server) -> Iterator[Mistake]:
    """Nothing waits for the balancer, neither gunicorn nor a preStop hook; or Recreate."""
    if server.pod is not None:
        strategy = server.pod.workload["spec"]["strategy"]["type"]
        if strategy.text == "Recreate":
            yield Mistake(
                WARNING,
                strategy.place,
                "the strategy is Recreate",
                "at each deploy all pods stop before a new one starts: nobody is served meanwhile, "
                "whatever gunicorn does",
                "the default strategy, RollingUpdate, also with one replica",
            )
    elif not server.is_procfile:
        return  # a Dockerfile does not say what will stop it
    if server.delay != 0 or server.presleep() != 0:
        return
    worker = server.worker or "sync"
    name = worker.removeprefix("egg:gunicorn#")
    if server.is_delayed:
        fix = "remove graceful_delay = 0 (5 s is the default)"
    elif name in ("sync", "gthread", "gevent"):
        fix = f"-k gracefulworker.{name}"
    else:
        fix = "`from gracefulworker.hooks import when_ready` in gunicorn's config file"
    if server.read.names == {}:
        fix += " (should a config file in the image do so already, give it with -c)"
    yield Mistake(
        ERROR if server.pod is not None else WARNING,
        server.place_of("GRACEFUL_DELAY"),
        f"gunicorn (worker class {name}) stops as soon as SIGTERM arrives, and there is no preStop "
        "hook",
        "for some seconds at each deploy new connections are refused: 502 from the balancer",
        fix,
    )
