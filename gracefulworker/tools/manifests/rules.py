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
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import gracefulworker
from gracefulworker.settings import MARGIN
from gracefulworker.tools import engines
from gracefulworker.tools.manifests import launch
from gracefulworker.tools.manifests.documents import Node
from gracefulworker.tools.manifests.fronts import (
    LOCAL,
    class_of,
    direct_balancer,
    in_front,
    keeping,
    port_of,
)
from gracefulworker.tools.manifests.servers import Pod, Server
from gracefulworker.tools.manifests.sources import Place
from gracefulworker.tools.manifests.timing import HANDOVER, Budget, budget, has_no_delay, remedy

ERROR, WARNING = "error", "warning"

#: Those who answer one request per connection have no keep-alive.
KEEPERS = ("gthread", "gevent", "eventlet", "tornado", "uvicorn", "asgi")

#: Worker classes, by the beginnings of their names, to whom gunicorn's threads are nothing.
WITHOUT_THREADS = ("gevent", "eventlet", "uvicorn", "tornado")

#: Less than this from the start of the container to its end by the liveness probe is no boot time
#: for a Python service, which takes 1 to 10 s on an idle machine.
SHORTEST_BOOT = 10.0

#: Commands of probes that are green whatever gunicorn does.
ASKS_NOBODY = frozenset({"true", "/bin/true", "ls", "pwd", "echo", "date", "hostname"})

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


#: What clients see when the period is too short.
CUT = (
    "requests still under way when the period ends are cut by SIGKILL, without an answer and "
    "without a log line"
)

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
    if sums is None or sums.fits or sums.is_presleep_alone or sums.is_unset_or_equal:
        return
    yield Mistake(
        _severity(sums),
        sums.stop.place,
        f"{sums.sum} is more than the {sums.period:g} s of {sums.stop.label}",
        CUT,
        _longer(server, sums),
    )


def _severity(sums: Budget) -> str:
    """Requests are cut as was not meant, or there is no time for the exit alone."""
    is_meant = sums.is_chosen or sums.delay > 0
    return ERROR if is_meant and sums.used > sums.period else WARNING


def _longer(server: Server, sums: Budget) -> str:
    """A period that is long enough; where there is none, what fits into it."""
    left = sums.period - sums.presleep
    shorter = ""
    if not sums.delay:
        shorter = f"--graceful-timeout {max(left - MARGIN, 1):g}, and no request that takes longer"
    elif left - sums.delay - MARGIN >= 1:
        shorter = f"GRACEFUL_KILL_AFTER={left:g}, which shortens graceful_timeout"
    elif sums.stop.written is None:
        shorter = f"GRACEFUL_DELAY=0 and GRACEFUL_KILL_AFTER={left:g}"
    change = remedy(server)
    if not change.period and change.way:
        return f"{change}, which fits graceful_timeout into the period"
    return ", or ".join(filter(None, [change.period, shorter]))


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
    yield Mistake(
        severity,
        server.container.node["lifecycle"]["preStop"].place,
        f"the preStop sleep of {sums.presleep:g} s and graceful_delay of {sums.delay:g} s add up: "
        f"{sums.sum}, in a period of {sums.period:g} s",
        effect,
        str(remedy(server)),
    )


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
    stop, holders = server.stop, server.launch.holders
    is_daemon = server.knows("daemon") and server.read.cfg.daemon
    # systemd alone knows what to do with a daemon.
    is_unit = stop is not None and stop.label == "TimeoutStopSec"
    is_contained = (stop is not None or server.image is not None) and not is_unit
    if is_daemon and (is_contained or (holders and not is_unit)):
        yield Mistake(
            ERROR,
            server.place,
            "gunicorn goes into the background (--daemon), where nobody passes SIGTERM on to it",
            "a container lives as long as its first process: it ends at once, or goes on with a "
            "gunicorn that is killed at the end without having heard of it",
            "remove --daemon, and start gunicorn last, with exec",
        )
    elif not is_daemon and (stop is None or stop.to != "all"):
        yield from (_held(server, holder) for holder in holders)
    yield from _other_signals(server)


def _held(server: Server, holder: launch.Holder) -> Mistake:
    stop = server.stop
    is_child = server.launch.has_init or (stop is not None and stop.to == "child")
    if holder.effect:
        effect = holder.effect
    elif is_child:
        effect = (
            "the shell ends at SIGTERM, and what it has started is killed or left behind: every "
            "request under way is cut at once"
        )
    else:
        known = stop is not None and stop.seconds is not None
        period = f"{stop.seconds:g} s" if known and stop is not None else "some seconds"
        # Of a script nobody says whether it is run in a container.
        effect = "" if stop is not None or server.image is not None else "as PID 1 of a container: "
        effect += (
            f"gunicorn hears nothing of the stop and serves on until SIGKILL {period} later, which "
            "cuts every request that takes longer; each restart takes that long"
        )
    return Mistake(
        ERROR,
        holder.place,
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
    for signal, place, way in signals:
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
                way,
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
    name = _short(worker)
    if not name.startswith(KEEPERS):
        return
    keepalive = float(server.read.cfg.keepalive)
    # With 0 every answer says close, and no connection is idle; uvicorn closes without a word.
    if keepalive == 0 and not name.startswith("uvicorn"):
        return
    for name, idle in keeping(server):
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

    Neither for gunicorn nor for a proxy in front of it; a `tcpSocket`, or a command that asks
    nobody; or a port or path that nobody answers.

    Clients: refused or waiting requests at each deploy; or a pod that is never ready.
    Fix: `httpGet` on a path of the application.
    """
    if server.container is None:
        return
    node = server.container.node
    # One that asks the proxy in front asks gunicorn too.
    through_proxy = any(front.node["readinessProbe"]["httpGet"] for front in in_front(server))
    if not node["readinessProbe"] and not through_proxy:
        yield Mistake(
            WARNING,
            node["readinessProbe"].place,
            "there is no readiness probe",
            "at each deploy new pods get requests before the application has been imported: "
            "connection refused, or a long wait",
            "a readinessProbe with httpGet on a path of the application",
        )
    probe = node["readinessProbe"]
    asked = next((word.text or "" for word in probe["exec"]["command"]), "")
    if probe["tcpSocket"] or asked in ASKS_NOBODY:
        what = f"runs `{asked}`" if asked else "is a tcpSocket"
        since = "as soon as the port is open, which gunicorn's main process sees to "
        yield Mistake(
            WARNING,
            (probe["exec"] if asked else probe["tcpSocket"]).place,
            f"the readinessProbe {what}",
            f"it is green {'' if asked else since}before any worker has booted, and while none "
            "accepts: requests wait or fail",
            "httpGet on a path of the application",
        )
    for name in ("readinessProbe", "livenessProbe"):
        if node[name]["httpGet"]:
            yield from _unanswered(server, name, node[name]["httpGet"])


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
    ports = {port_of(address) for address in addresses}
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
    if sums is None or sums.fits or sums.is_presleep_alone or not sums.is_unset_or_equal:
        return
    period = f"{sums.period:g} s"
    yield Mistake(
        _severity(sums),
        sums.stop.place,
        f"graceful_timeout is {sums.finish:g} s, and {sums.stop.label} is "
        + (f"{period} too: " if sums.stop.is_set else f"not set, which means {period}: ")
        + f"{sums.sum}",
        CUT,
        _longer(server, sums),
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
    threads = server.read.given.get("threads")
    if (
        threads is not None
        and server.knows("threads")
        and _short(server.worker or "").startswith(WITHOUT_THREADS)
    ):
        yield Mistake(
            WARNING,
            server.place_of(threads),
            f"--threads has no effect with the worker class {server.worker}",
            ignored,
            "remove it",
        )
    if server.refusal is not None and server.is_delayed:
        place = server.place_of(server.refusal)
        yield Mistake(ERROR, place, server.refusal, refused, "as the sentence says")
    for warning in server.ours.warnings if server.ours is not None else ():
        place = server.place_of(warning)
        yield Mistake(WARNING, place, warning, ignored, "as the sentence says")


def _short(worker: str) -> str:
    """A worker class's own name: ``egg:gunicorn#gevent`` and ``gracefulworker.gevent`` alike."""
    return worker.rsplit(".", 1)[-1].rsplit("#", 1)[-1].lower()


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


@rule("sidecar")
def sidecar(server: Server) -> Iterator[Mistake]:
    """A proxy in the same pod that stops before gunicorn, or goes on without it.

    It is nginx, Envoy, HAProxy and the like, or Istio's, or the Service points to it while
    gunicorn listens inside the pod alone; and it stops more than 2 s before gunicorn.

    Clients: refused at each deploy, although gunicorn still serves; or 502, since gunicorn has
    gone.
    Fix: a preStop sleep for it, and a delay that is 2 s longer. For nginx as a native sidecar the
    sleep ends with `kill -QUIT 1`: by itself it is told to stop when gunicorn has gone.
    """
    delay, finish, presleep = server.delay, server.finish, server.presleep()
    if server.pod is None or server.container is None or delay is None or presleep is None:
        return
    kept, fronts = delay + presleep, in_front(server)
    fix = str(remedy(server)) if fronts else ""
    for front in fronts:
        name = f"{front.name} ({front.program})"
        sleep = front.quits_after
        if sleep is None:
            continue
        severity = ERROR if front.is_sure else WARNING
        hooked = front.node["lifecycle"]["preStop"]
        place = hooked.place if hooked else front.node.place
        if sleep == math.inf:
            yield Mistake(
                severity if not kept else WARNING,
                place,
                f"{name} in front of gunicorn is a native sidecar, which is told to stop when "
                "gunicorn has gone, and its preStop hook does not tell it before",
                "502: until then the proxy keeps its clients' connections, and takes requests that "
                "gunicorn is no longer there for",
                fix,
            )
        elif kept and (not sleep or sleep + HANDOVER < kept):
            yield Mistake(
                severity,
                place,
                f"{name} in front of gunicorn stops {kept - sleep:g} s before it",
                f"the proxy refuses clients at once at each deploy, although gunicorn serves on "
                f"for {kept:g} s",
                fix,
            )
        elif sleep > kept:
            yield Mistake(
                severity if not kept else WARNING,
                place,
                f"{name} in front of gunicorn goes on for {sleep - kept:g} s after it",
                "502: the proxy takes requests that gunicorn is no longer there for",
                fix,
            )
    if kept:
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
    """graceful_unready behind kube-proxy, which does not need it and falls back on ready pods.

    Clients: refused when all pods leave at once.
    Fix: remove it, unless containers are often restarted in place: of that only readiness tells.
    """
    if server.pod is None or not server.is_unready or not server.is_delayed:
        return
    if server.ours is None or not (server.ours.probe_bind or server.ours.readiness_path):
        return  # it has no effect, which `options` says
    services = server.cluster.services_of(server.pod)
    direct = [
        service
        for service in services
        if any(service["metadata"]["annotations"][name] for name in DIRECT)
    ]
    classes = {class_of(ingress) for ingress in server.cluster.ingresses_of(server.pod)}
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
    if not has_no_delay(server):
        return
    name = (server.worker or "sync").removeprefix("egg:gunicorn#")
    fix = str(remedy(server))
    if server.is_delayed and server.read.cfg.reload:
        fix = "remove --reload, which is for developing: with it there is no delay"
    elif server.refusal is not None:
        fix += f"; it would refuse what is set: {server.refusal}"
    elif not server.is_delayed and server.read.names == {}:
        fix += " (should a config file in the image do so already, give it with -c)"
    if server.is_procfile:
        yield Mistake(
            WARNING,
            server.place,
            f"gunicorn (worker class {name}) stops as soon as SIGTERM arrives",
            "on Heroku, and wherever else a balancer hears of the stop later: for some seconds at "
            "each deploy new connections are refused",
            fix,
        )
        return
    container = server.container
    has_hook = container is not None and bool(container.node["lifecycle"]["preStop"])
    yield Mistake(
        ERROR,
        server.place_of("GRACEFUL_DELAY"),
        f"gunicorn (worker class {name}) stops as soon as SIGTERM arrives, and there is no preStop "
        f"hook{' that sleeps before it' if has_hook else ''}",
        "for some seconds at each deploy new connections are refused: 502 from the balancer"
        + (" (as soon as it hears of SIGTERM, see sigterm-lost)" if server.launch.holders else ""),
        fix,
    )


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
    delay, presleep, balancer = server.delay, server.presleep(), direct_balancer(server)
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
        str(remedy(server)),
    )


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
