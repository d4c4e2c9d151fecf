"""The mistakes that cost requests, one small function for each.

A rule is a generator function that takes a `Server` and yields a `Finding` for each place where the
mistake was made; `@rule` with its name puts it on the list. It must be sure: what is not known (a
value that comes from a Secret, a config file that was not given) is no mistake. The severity is
``error`` when gunicorn does not start or cannot stop in the way that the files say, whatever the
traffic; ``warning`` when it costs something else, or only with some traffic or in surroundings that
the files do not show. The fixes of one server's findings must fit each other. What may be changed
here: rules, and the figures at the top. A rule's docstring is its section in docs/check.md (`python
tests/docs/generated.py` writes it): the mistake, "Clients:" and "Fix:". Each has a file with just
that mistake among the tests.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import gracefulworker
from gracefulworker.settings import MARGIN, whole
from gracefulworker.tools import engines
from gracefulworker.tools.manifests import launch
from gracefulworker.tools.manifests.documents import Node
from gracefulworker.tools.manifests.servers import Pod, Server, quits_after
from gracefulworker.tools.manifests.sources import Place
from gracefulworker.tools.manifests.units import Stop, base_of

ERROR, WARNING = "error", "warning"

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

#: Those who answer one request per connection have no keep-alive.
KEEPERS = ("gthread", "gevent", "eventlet", "tornado", "uvicorn", "asgi")

#: How a worker class gets our delay that has no engine of ours.
HOOK = "`from gracefulworker.hooks import when_ready` in gunicorn's config file"

#: Programs that may stand in front of gunicorn in its pod, which are the names of their images too.
PROXIES = frozenset(
    {"nginx", "nginx-unprivileged", "openresty", "envoy", "haproxy", "caddy", "httpd", "traefik"}
)

#: Those of them that SIGQUIT lets finish what is under way.
NGINXES = frozenset({"nginx", "nginx-unprivileged", "openresty"})

#: Seconds that gunicorn may go on after a proxy in its pod has closed its door, for what that has
#: let in.
HANDOVER = 2.0

#: graceful_delay's own default, which is enough for kube-proxy and ingress-nginx.
USUAL_DELAY = 5.0


class Balancer(NamedTuple):
    """One of AWS that sends requests to a pod's own address, past kube-proxy."""

    name: str
    takes: float  #: seconds until it has heard that a target is leaving, as users measured
    enough: float  #: a delay that holds them


#: docs/platforms.md; kube-proxy and ingress-nginx take less than 5 s. Of which kind a target group
#: is, its binding does not say.
ALB, NLB = Balancer("the ALB", 25.0, 30.0), Balancer("the NLB", 120.0, 150.0)
TARGET_GROUP = ALB._replace(name="the target group")

#: Less than this from the start of the container to its end by the liveness probe is no boot time
#: for a Python service, which takes 1 to 10 s on an idle machine.
SHORTEST_BOOT = 10.0

#: How addresses begin that nobody outside the pod can reach.
LOCAL = ("127.", "localhost", "[::1]")

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

#: Where docs/check.md is read.
PAGE = "https://gracefulworker.readthedocs.io/check/"


def rule(name: str) -> Callable[[Rule], Rule]:
    """Put a function on the list of rules."""

    def register(function: Rule) -> Rule:
        RULES[name] = function
        return function

    return register


def describe(name: str) -> str:
    """What a rule finds: its docstring, whose first line is a sentence for itself.

    Under ``python -OO``, which has none, it is the name.
    """
    return inspect.getdoc(RULES[name]) or name


def page(name: str) -> str:
    """Where a rule is explained."""
    return f"{PAGE}#{name}"


def judge(server: Server) -> Iterator[Finding]:
    """Yield what all rules find."""
    for name, function in RULES.items():
        for m in function(server):
            yield Finding(name, m.severity, server.name, m.place, m.mistake, m.effect, m.fix)


# -- the time from the deletion of a pod to its SIGKILL


@dataclass(frozen=True)
class Budget:
    """How the time from SIGTERM to SIGKILL is spent; all in seconds."""

    stop: Stop
    period: float
    presleep: float
    delay: float
    finish: float
    is_chosen: bool

    @property
    def used(self) -> float:
        """What it takes when a request is as slow as it may be."""
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
        if self.needed <= self.period:
            return True
        is_default = not self.is_chosen and not self.delay
        return is_default and self.presleep + MARGIN <= self.period

    @property
    def severity(self) -> str:
        """Requests are cut, or there is no time for the exit alone."""
        return ERROR if self.used > self.period else WARNING

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
        would_fit = self.needed - self.presleep <= self.period
        return self.presleep > 0 and self.delay > 0 and would_fit

    @property
    def is_needless_hook(self) -> bool:
        """Whether the preStop hook is what is to go: our delay does what it does."""
        has_both = self.presleep > 0 and self.delay > 0
        return has_both and (self.needed <= self.period or self.is_presleep_alone)

    @property
    def is_unset_or_equal(self) -> bool:
        """Whether nobody thought of the period: that of the rule `graceful-timeout`."""
        if not self.stop.is_set:
            return self.is_chosen
        return self.is_chosen and self.finish == self.period and not self.presleep

    @property
    def fix(self) -> str:
        """A period that is long enough; where there is none, what fits into it."""
        if self.stop.written is not None:
            return self.stop.written.format(self.needed)
        if self.delay:
            return f"GRACEFUL_DELAY=0 and GRACEFUL_KILL_AFTER={self.period:g}"
        return (
            f"--graceful-timeout {max(self.period - MARGIN, 1):g}, and no request that takes longer"
        )


def budget(server: Server) -> Budget | None:
    """Return the sum for a server, None when one of its figures is not known."""
    delay, finish, stop = server.delay, server.finish, server.stop
    if stop is None or stop.seconds is None or delay is None or finish is None:
        return None
    presleep = server.presleep() or 0.0
    chosen = "graceful_timeout" in server.read.given
    return Budget(stop, stop.seconds, presleep, delay, finish, chosen)


@rule("grace-period")
def grace_period(server: Server) -> Iterator[Mistake]:
    """preStop, delay and graceful_timeout together are longer than the period.

    The period is the platform's: `terminationGracePeriodSeconds`, `stop_grace_period`,
    `stopTimeout`, `TimeoutStopSec`, `stopwaitsecs`, `kill_timeout`, Cloud Run's 10 s; and 1 s
    is for the exit.

    Clients: slow requests are cut by SIGKILL, without an answer and without a log line.
    Fix: a longer period; `GRACEFUL_KILL_AFTER`; no preStop.
    """
    sums = budget(server)
    if sums is None or sums.fits:
        return
    if sums.is_presleep_alone or sums.is_unset_or_equal:
        return
    fix = sums.fix
    if sums.stop.written is not None:
        left = max(sums.period - sums.presleep, 0)
        shorter = f"GRACEFUL_KILL_AFTER={left:g}, which shortens graceful_timeout"
        fix += f", or {shorter if sums.delay else 'lower graceful_timeout'}"
    yield Mistake(
        sums.severity,
        sums.stop.place,
        f"{sums.sum} is more than the {sums.period:g} s of {sums.stop.label}",
        "requests still under way when the period ends are cut by SIGKILL, without an answer and "
        "without a log line",
        fix,
    )


@rule("prestop-sleep")
def prestop(server: Server) -> Iterator[Mistake]:
    """A preStop sleep before a gunicorn that has a delay of its own.

    Clients: a warning when all fits: each pod takes longer to go. An error when it does not:
    slow requests are cut by SIGKILL.
    Fix: remove the preStop.
    """
    sums = budget(server)
    if server.container is None or sums is None or not sums.is_needless_hook:
        return
    severity = WARNING
    effect = f"nothing is lost, but each pod takes {sums.presleep:g} s longer to go"
    if sums.needed > sums.period:
        severity = ERROR
        effect = "the time for requests under way is too short by that: they are cut by SIGKILL"
    planned = _planned(server, sums)
    yield Mistake(
        severity,
        server.container.node["lifecycle"]["preStop"].place,
        f"the preStop sleep of {sums.presleep:g} s and graceful_delay of {sums.delay:g} s add up: "
        f"{sums.sum}, in a period of {sums.period:g} s",
        effect,
        "remove the preStop hook"
        + (f", and set GRACEFUL_DELAY={planned:g}" if planned > sums.delay else ""),
    )


def _planned(server: Server, sums: Budget | None) -> float:
    """How long gunicorn serves on after SIGTERM once the other findings have been followed."""
    delay, presleep = server.delay or 0.0, server.presleep() or 0.0
    if sums is None or not sums.is_needless_hook:
        return delay + presleep
    # What the hook was there for must not be lost with it.
    ends = [quits_after(node, is_native(node)) or 0.0 for node, _ in in_front(server)]
    longer = [end + HANDOVER for end in ends if delay < end < math.inf]
    balancer = _targets(server)
    if balancer is not None and delay < balancer.takes:
        longer.append(presleep if presleep >= balancer.takes else balancer.enough)
    return max([delay, *longer])


@rule("sigterm-lost")
def sigterm_lost(server: Server) -> Iterator[Mistake]:
    """A shell stays above gunicorn and keeps SIGTERM to itself, or another signal is sent.

    Shell form, `sh -c` without `exec`, a script without `exec`, a pipeline, the background, a
    trap that does not pass SIGTERM on or does not wait; `--daemon` in a container;
    `STOPSIGNAL`, `KillSignal`, Fly.io's SIGINT.

    Clients: a shell as PID 1: nobody notices for as long as the period lasts, then SIGKILL
    cuts each request that takes longer; each pod takes that long to go. A shell below an init,
    supervisord or systemd (`KillMode=mixed`): everything is cut at once.
    Fix: `exec gunicorn ...`, or the exec form.
    """
    stop, holder = server.stop, server.launch.holder
    is_daemon = server.knows("daemon") and server.read.cfg.daemon
    # systemd alone knows what to do with a daemon.
    is_unit = stop is not None and stop.label == "TimeoutStopSec"
    is_contained = (stop is not None or server.image is not None) and not is_unit
    if is_daemon and (is_contained or (holder is not None and not is_unit)):
        yield Mistake(
            ERROR,
            server.place,
            "gunicorn goes into the background (--daemon), where nobody passes SIGTERM on to it",
            "a container lives as long as its first process: it ends at once, or goes on with a "
            "gunicorn that is killed at the end without having heard of it",
            "remove --daemon, and start gunicorn last, with exec",
        )
    elif holder is not None and not is_daemon and (stop is None or stop.to != "all"):
        yield _held(server, holder)
    yield from _other_signals(server)


def _held(server: Server, holder: launch.Holder) -> Mistake:
    stop = server.stop
    is_child = server.launch.has_init or (stop is not None and stop.to == "child")
    if holder.is_cut:
        effect = "every request under way is cut at once"
    elif is_child:
        effect = (
            "the shell ends at SIGTERM, and what it has started is killed or left behind: every "
            "request under way is cut at once"
        )
    else:
        known = stop is not None and stop.seconds is not None
        period = f"{stop.seconds:g} s" if known and stop is not None else "some seconds"
        effect = (
            f"gunicorn hears nothing of the stop and serves on until SIGKILL {period} later, which "
            "cuts every request that takes longer; each restart takes that long"
        )
    return Mistake(
        ERROR,
        server.place,
        f"gunicorn is started by {holder.name}, which {holder.reason}",
        effect,
        holder.fix,
    )


def _other_signals(server: Server) -> Iterator[Mistake]:
    fix = "remove it, so that SIGTERM is sent"
    signals = []
    if server.image is not None and server.image.stop_signal is not None:
        signals = [(*server.image.stop_signal, fix)]
    if server.container is not None and server.container.node["lifecycle"]["stopSignal"]:
        node = server.container.node["lifecycle"]["stopSignal"]
        signals = [(node.text or "", node.place, fix)]
    if server.stop is not None and server.stop.signal is not None:
        signals = [server.stop.signal]
    for signal, place, remedy in signals:
        name = signal.upper().removeprefix("SIG")
        takes_sigint = not server.knows_ours("graceful_sigint") or (
            server.ours is not None and server.ours.sigint
        )
        is_taken = name in ("TERM", "15") or "$" in name or (name in ("INT", "2") and takes_sigint)
        if not is_taken:
            yield Mistake(
                ERROR,
                place,
                f"gunicorn is stopped with {signal}, which ends it at once or not at all",
                "connections are cut at each deploy",
                remedy,
            )


@rule("keep-alive")
def keep_alive(server: Server) -> Iterator[Mistake]:
    """gunicorn closes idle connections before the balancer in front does.

    ALB and nginx keep them for 60 s, Traefik 90 s, Google 600 s; for a Procfile it is Heroku's
    router, 90 s.

    Clients: a 502 now and then, at any time.
    Fix: `--keep-alive 65` (or 95, 605).
    """
    worker = server.worker
    if worker is None or not server.knows("keepalive"):
        return
    name = worker.rsplit(".", 1)[-1].rsplit("#", 1)[-1].lower()
    if not name.startswith(KEEPERS):
        return
    keepalive = float(server.read.cfg.keepalive)
    # With 0 every answer says close, and no connection is idle; uvicorn closes without a word.
    if keepalive == 0 and not name.startswith("uvicorn"):
        return
    # With a proxy in the pod, the balancer's connections end there.
    balancers = [] if in_front(server) else list(_balancers(server))
    for name, idle in balancers:
        if keepalive <= idle:
            yield Mistake(
                WARNING,
                server.place,
                f"keep-alive is {keepalive:g} s, and the balancer ({name}) keeps idle connections "
                f"for {idle:g} s",
                "now and then, at any time, a 502: the balancer sends a request on a connection "
                "that gunicorn is just closing",
                f"--keep-alive {idle + 5:g}",
            )


def _balancers(server: Server) -> Iterator[tuple[str, float]]:
    """The balancers in front, each with the seconds that it keeps an idle connection for."""
    if server.is_procfile:
        yield "Heroku's router", HEROKU_IDLE
    if server.pod is None:
        return
    for ingress in server.cluster.ingresses_of(server.pod):
        idle = _idle_time(ingress)
        if idle is not None:
            place = f"{os.path.basename(ingress.file)}:{ingress.line}"
            yield f"{_class(ingress)}, {place}", idle


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
    """The liveness probe gives up before gunicorn's timeout, or before the boot is over.

    Clients: the whole pod is restarted when workers are busy; or over and over at its start.
    Fix: a higher `failureThreshold`; a `startupProbe`.
    """
    if server.container is None:
        return
    node = server.container.node
    liveness = node["livenessProbe"]
    if not liveness:
        return
    window = _window(liveness)
    timeout = float(server.read.cfg.timeout) if server.knows("timeout") else 0.0
    # Only a request to the application waits behind others: the kernel completes a connection, and
    # a command mostly looks elsewhere.
    asks = " ".join(word.text or "" for word in liveness["exec"]["command"])
    if not liveness["httpGet"] and not any(word in asks for word in ("curl", "wget", "http")):
        timeout = 0.0
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
    """One handler for both probes, and a second to answer in: busy counts as dead.

    Clients: restarts under load.
    Fix: `timeoutSeconds: 5` and more patience, or no liveness probe.
    """
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
    """No readiness probe, one that is green while nobody accepts, or one that nobody answers.

    Neither for gunicorn nor for a proxy in front of it; a `tcpSocket`; or a port or path that
    nobody answers.

    Clients: refused or waiting requests at each deploy; or a pod that is never ready.
    Fix: `httpGet` on a path of the application.
    """
    if server.container is None:
        return
    node = server.container.node
    # One that asks the proxy in front asks gunicorn too.
    through_proxy = any(front["readinessProbe"]["httpGet"] for front, _ in in_front(server))
    if not node["readinessProbe"] and not through_proxy:
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
        if not is_foreign and all(address.startswith(LOCAL) for address in addresses):
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
    """A graceful_timeout that was chosen, and a period that was forgotten or is just as long.

    Clients: slow requests are cut by SIGKILL, without an answer and without a log line.
    Fix: the period that the finding names.
    """
    sums = budget(server)
    if sums is None or sums.fits:
        return
    if sums.is_presleep_alone or not sums.is_unset_or_equal:
        return
    period = f"{sums.period:g} s"
    yield Mistake(
        sums.severity,
        sums.stop.place,
        f"graceful_timeout is {sums.finish:g} s, and {sums.stop.label} is "
        + (f"{period} too: " if sums.stop.is_set else f"not set, which means {period}: ")
        + f"{sums.sum}",
        "requests still under way when the period ends are cut by SIGKILL, without an answer and "
        "without a log line",
        sums.fix,
    )


@rule("options")
def options(server: Server) -> Iterator[Mistake]:
    """Options that are misspelt, doubled, without effect or refused.

    Also a worker class of ours that does not exist, and settings of ours likewise.

    Clients: no start; or another behaviour than was meant.
    Fix: as the finding says.
    """
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
    yield from _worker_class(server, refused)
    if server.refusal is not None and server.is_delayed:
        place = server.place_of(server.refusal)
        yield Mistake(ERROR, place, server.refusal, refused, "as the sentence says")
    for warning in server.ours.warnings if server.ours is not None else ():
        place = server.place_of(warning)
        yield Mistake(WARNING, place, warning, ignored, "as the sentence says")


def _worker_class(server: Server, refused: str) -> Iterator[Mistake]:
    """A worker class of ours that is misspelt, or cannot be found by gunicorn."""
    worker = server.worker or ""
    for prefix in ("gracefulworker.", "egg:gracefulworker#"):
        name = worker.removeprefix(prefix)
        if name != worker and "." not in name and name not in engines.STOCK:
            yield Mistake(
                ERROR,
                server.place,
                f"{worker} is not a worker class",
                refused,
                f"-k gracefulworker.{gracefulworker.nearest_worker(name)}",
            )
    if worker == "gracefulworker" and server.is_complete and not server.read.imports_ours:
        yield Mistake(
            ERROR,
            server.place,
            "gunicorn knows the worker class gracefulworker only after `import gracefulworker` in "
            "its config file",
            refused,
            "-k gracefulworker.gthread",
        )


def in_front(server: Server) -> list[tuple[Node, bool]]:
    """The containers of the pod through which clients reach gunicorn, each with whether it is sure.

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
    own |= {str(_port_of_address(address)) for address in addresses}
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
        if _is_proxy(node) and (is_target or not targets & _all_ports(server.pod)):
            found.append((node, is_target or is_hidden))
        elif is_target and is_hidden:
            found.append((node, True))
    return found


def _all_ports(pod: Pod) -> set[str | None]:
    return {
        port[key].text
        for node in [*pod.containers, *pod.sidecars]
        for port in node["ports"]
        for key in ("name", "containerPort")
    }


def is_native(node: Node) -> bool:
    """Whether a container is a native sidecar, which is told to stop after all others."""
    return "initContainers[" in node.field


def _is_proxy(node: Node) -> bool:
    """Whether a container runs one of the proxies; one of their images may run something else."""
    words = [word.text or "" for word in node["command"]]
    if not words:
        return base_of(node["image"].text or "") in PROXIES
    return any(os.path.basename(word) in PROXIES for line in words for word in line.split())


@rule("sidecar")
def sidecar(server: Server) -> Iterator[Mistake]:
    """A proxy in the same pod that stops before gunicorn, or goes on without it.

    The Service points to it, or it is nginx, Envoy, HAProxy and the like, or Istio's; and it
    stops more than 2 s before gunicorn.

    Clients: refused at each deploy, although gunicorn still serves; or 502, since gunicorn has
    gone.
    Fix: a preStop sleep for it, and a delay that is 2 s longer. For nginx as a native sidecar the
    sleep ends with `kill -QUIT 1`: by itself it is told to stop when gunicorn has gone.
    """
    delay, finish, presleep = server.delay, server.finish, server.presleep()
    if server.pod is None or server.container is None or delay is None or presleep is None:
        return
    kept = delay + presleep
    sums = budget(server)
    hook = 0.0 if sums is not None and sums.is_needless_hook else presleep
    planned = _planned(server, sums)
    for node, is_sure in in_front(server):
        name = f"the container {node['name'].text} ({base_of(node['image'].text or '')})"
        sleep = quits_after(node, is_native(node))
        if sleep is None:
            continue
        severity = ERROR if is_sure else WARNING
        hooked = node["lifecycle"]["preStop"]
        place = hooked.place if hooked else node.place
        if sleep == math.inf:
            end = max(planned, USUAL_DELAY)
            yield Mistake(
                severity if not kept else WARNING,
                place,
                f"{name} in front of gunicorn is a native sidecar, which is told to stop when "
                "gunicorn has gone, and its preStop hook does not tell it before",
                "502: until then the proxy keeps its clients' connections, and takes requests that "
                "gunicorn is no longer there for",
                f"{_hook(node, end)} together with {_longer(server, end + HANDOVER, hook)}",
            )
        elif kept and (not sleep or sleep + HANDOVER < kept):
            yield Mistake(
                severity,
                place,
                f"{name} in front of gunicorn stops {kept - sleep:g} s before it",
                f"the proxy refuses clients at once at each deploy, although gunicorn serves on "
                f"for {kept:g} s",
                f"{_hook(node, planned)} together with "
                f"{_longer(server, planned + HANDOVER, hook)} for what it then hands over",
            )
        elif sleep > kept:
            yield Mistake(
                severity if not kept else WARNING,
                place,
                f"{name} in front of gunicorn goes on for {sleep - kept:g} s after it",
                "502: the proxy takes requests that gunicorn is no longer there for",
                _longer(server, sleep + HANDOVER, hook),
            )
    if kept:
        yield from _istio(server, server.pod, kept + (finish or 0.0))


def _hook(node: Node, seconds: float) -> str:
    """What ends a proxy in front after so many seconds."""
    of = f"for the container {node['name'].text}"
    if not is_native(node):
        return f"a preStop sleep of {seconds:g} s {of}"
    if base_of(node["image"].text or "") not in NGINXES:
        return f"a preStop hook {of} that makes it quit after {seconds:g} s"
    command = f'["sh", "-c", "sleep {seconds:g}; kill -QUIT 1; sleep 1"]'
    return f"the preStop hook {command} {of}"


def _longer(server: Server, seconds: float, hook: float) -> str:
    """How gunicorn is made to serve on for so long, with a preStop hook that stays."""
    if server.delay:
        return f"GRACEFUL_DELAY={seconds - hook:g}"
    if hook:
        return f"a preStop sleep of {seconds:g} s for gunicorn's"
    return f"{_our_worker(server)} with GRACEFUL_DELAY={seconds:g}"


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
    """graceful_unready behind kube-proxy, which does not need it and falls back on ready pods.

    Clients: refused when all pods leave at once.
    Fix: remove it, unless containers are often restarted in place: of that only readiness tells.
    """
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
        "when all pods are leaving (a node goes, one replica is left; with externalTrafficPolicy: "
        "Local, all of one node) kube-proxy would still use one that is ready, and now has none: "
        "connection refused",
        "remove it: a pod that is being deleted is out of the Service without it. (Keep it where "
        "a balancer that is not in the files probes the pod itself, and hears of the end by that; "
        "or where containers are often restarted in place, by the liveness probe: of that only "
        "readiness tells.)",
    )


@rule("no-delay")
def no_delay(server: Server) -> Iterator[Mistake]:
    """Nothing waits for the balancer, neither gunicorn nor a preStop hook.

    Clients: 502 for some seconds at each deploy.
    Fix: `-k gracefulworker.gthread`.
    """
    if server.pod is None and not server.is_procfile:
        return  # a Dockerfile does not say what will stop it; other platforms stop sending first
    if server.delay != 0 or server.presleep() != 0:
        return
    worker = server.worker or "sync"
    name = worker.removeprefix("egg:gunicorn#")
    fix = "remove graceful_delay = 0 (5 s is the default)"
    if not server.is_delayed:
        fix = _our_worker(server)
    if server.read.names == {}:
        fix += " (should a config file in the image do so already, give it with -c)"
    balancer = _targets(server)
    fronts = [node for node, _ in in_front(server)]
    if balancer is not None:
        fix += f", with {_enough(server, balancer.enough)} for {balancer.name}"
    elif fronts:
        quits = quits_after(fronts[0], is_native(fronts[0])) or 0.0
        end = max(0.0 if quits == math.inf else quits, USUAL_DELAY)
        fix += f", with GRACEFUL_DELAY={end + HANDOVER:g} and {_hook(fronts[0], end)}"
    yield Mistake(
        ERROR if server.pod is not None else WARNING,
        server.place_of("GRACEFUL_DELAY"),
        f"gunicorn (worker class {name}) stops as soon as SIGTERM arrives, and there is no preStop "
        "hook"
        + (
            ""
            if server.container is None or not server.container.node["lifecycle"]["preStop"]
            else " that sleeps before it"
        ),
        "for some seconds at each deploy new connections are refused: 502 from the balancer"
        + (" (as soon as it hears of SIGTERM, see sigterm-lost)" if server.launch.holder else ""),
        fix,
    )


def _our_worker(server: Server) -> str:
    ours = engines.ours_beside(server.worker or "sync")
    return f"-k {ours}" if ours else HOOK


@rule("hook-only")
def hook_only(server: Server) -> Iterator[Mistake]:
    """A worker class that one of ours could stand for has the hook alone.

    `gracefulworker.hooks` gives it the delay and the probes; then it stops in its own way.

    Clients: kept-alive connections are closed at each deploy without a word before, and what
    waits in the accept queue is reset: a 502 now and then, and nobody counts it.
    Fix: `-k gracefulworker.uvicorn`, say; the hook may stay.
    """
    ours = engines.ours_beside(server.worker or "")
    if ours is None or not server.is_delayed:
        return
    yield Mistake(
        WARNING,
        server.place,
        f"the worker class {server.worker} has the hook of gracefulworker alone: the delay, and "
        "after it the class's own end",
        "502 now and then at each deploy: nobody is told to close before the connections are, and "
        "what waits in the accept queue is reset; the last log line cannot say how many",
        f"-k {ours}",
    )


@rule("short-delay")
def short_delay(server: Server) -> Iterator[Mistake]:
    """A delay that is long enough for kube-proxy, and an AWS balancer that needs more.

    Less than 25 s behind an ALB, or than two minutes behind an NLB, whose targets are the pods
    themselves (`target-type: ip`).

    Clients: 502 for up to two minutes at each deploy.
    Fix: `GRACEFUL_DELAY=30` (ALB) or `GRACEFUL_DELAY=150` (NLB), and a period that holds it.
    """
    delay, presleep, balancer = server.delay, server.presleep(), _targets(server)
    if balancer is None or delay is None or presleep is None:
        return
    kept = delay + presleep
    if not 0 < kept < balancer.takes:
        return
    yield Mistake(
        WARNING,
        server.place_of("GRACEFUL_DELAY"),
        f"gunicorn serves on for {kept:g} s, and {balancer.name} sends requests to the pod's own "
        f"address for some {balancer.takes:g} s",
        "new connections are refused after that: 502 from the balancer",
        _enough(server, balancer.enough),
    )


def _enough(server: Server, delay: float) -> str:
    period = whole(delay + float(server.read.cfg.graceful_timeout) + MARGIN)
    by = f"GRACEFUL_DELAY={delay:g}"
    if server.presleep() and not server.is_delayed:
        by = f"a preStop sleep of {delay:g} s"
    return f"{by} and terminationGracePeriodSeconds: {period}"


def _targets(server: Server) -> Balancer | None:
    """The AWS balancer that sends requests to the pod itself, past kube-proxy."""
    if server.pod is None:
        return None
    services = server.cluster.services_of(server.pod)
    for ingress in server.cluster.ingresses_of(server.pod):
        kind = ingress["metadata"]["annotations"]["alb.ingress.kubernetes.io/target-type"].text
        if _class(ingress) == "alb" and kind == "ip":
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


@rule("recreate")
def recreate(server: Server) -> Iterator[Mistake]:
    """The strategy Recreate: a choice, with a cost that no setting of gunicorn's takes away.

    Clients: nobody is served from the end of the old pods to the start of the new ones.
    Fix: RollingUpdate, where two versions can run side by side.
    """
    if server.pod is None:
        return
    strategy = server.pod.workload["spec"]["strategy"]["type"]
    if strategy.text != "Recreate":
        return
    yield Mistake(
        WARNING,
        strategy.place,
        "the strategy is Recreate: all pods stop before a new one starts",
        "at each deploy nobody is served meanwhile, whatever gunicorn does",
        "RollingUpdate, also with one replica; unless two versions cannot run side by side, or "
        "share a volume that only one node can mount",
    )
