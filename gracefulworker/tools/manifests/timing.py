"""How long a stop takes, how long it may, and the one change with which all of it is right.

`budget` is the sum as the files have it. `remedy` is what the fixes of all findings about time are
made of, so that they fit each other: who follows them has nothing left to find. What may be changed
here: the sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gracefulworker import settings
from gracefulworker.settings import MARGIN, whole
from gracefulworker.tools import engines
from gracefulworker.tools.manifests.fronts import Front, direct_balancer, in_front
from gracefulworker.tools.manifests.servers import Server
from gracefulworker.tools.manifests.units import Stop

#: Seconds that gunicorn may go on after a proxy in its pod has closed its door, for what that has
#: let in.
HANDOVER = 2.0

#: graceful_delay's own default, which is enough for kube-proxy and ingress-nginx.
USUAL_DELAY = 5.0

#: Seconds that a preStop sleep has to leave for requests, of a period that nobody chose.
LEAST = 10.0

#: How a worker class gets our delay that has no engine of ours.
HOOK = "`from gracefulworker.hooks import when_ready` in gunicorn's config file"


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

        Stock's default graceful_timeout of 30 s passes with a period that nobody chose, or that is
        as long: what the exit or a preStop sleep takes away is missed by slow requests only.
        """
        if self.needed <= self.period:
            return True
        if self.is_chosen or self.delay:
            return False
        is_shortened = self.stop.is_set and self.stop.written is not None
        is_shortened &= self.period < self.finish
        is_left = not self.presleep or self.presleep + LEAST + MARGIN <= self.period
        return is_left and not is_shortened

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
        return self.presleep > 0 and self.delay > 0

    @property
    def is_unset_or_equal(self) -> bool:
        """Whether nobody thought of the period: that of the rule `graceful-timeout`."""
        if not self.stop.is_set:
            return self.is_chosen
        return self.is_chosen and self.finish == self.period and not self.presleep


def budget(server: Server) -> Budget | None:
    """Return the sum for a server, None when one of its figures is not known."""
    delay, finish, stop = server.delay, server.finish, server.stop
    if stop is None or stop.seconds is None or delay is None or finish is None:
        return None
    presleep = server.presleep() or 0.0
    chosen = "graceful_timeout" in server.read.given
    return Budget(stop, stop.seconds, presleep, delay, finish, chosen)


@dataclass(frozen=True)
class Remedy:
    """What is to be set so that the delay, the proxies in front and the period fit each other.

    :param way: how gunicorn gets a delay of ours, "" if it has one, or needs none.
    :param is_hook_gone: whether the preStop hook of its own container is to be removed.
    :param variables: values of our settings that are to be changed, by their variables.
    :param presleep: the new preStop sleep of its own container.
    :param period: the new period, as it is written.
    :param fronts: the sleeps of proxies that are to be changed.
    """

    way: str = ""
    is_hook_gone: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    presleep: float | None = None
    period: str = ""
    fronts: tuple[tuple[Front, float], ...] = ()

    def __str__(self) -> str:
        parts = [self.way] if self.way else []
        parts += [f"{name}={value}" for name, value in self.variables.items()]
        if self.presleep is not None:
            parts.append(f"a preStop sleep of {self.presleep:g} s for gunicorn's container")
        parts += [self.period] if self.period else []
        parts += [front.hook(seconds) for front, seconds in self.fronts]
        text = " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
        if self.is_hook_gone:
            return f"remove the preStop hook, and set {text}" if text else "remove the preStop hook"
        return text


def has_no_delay(server: Server) -> bool:
    """Whether nothing waits for the balancer, where one is: neither gunicorn nor a preStop hook.

    A Dockerfile does not say what will stop it, and other platforms stop sending first.
    """
    is_balanced = server.pod is not None or server.is_procfile
    return is_balanced and server.delay == 0 and server.presleep() == 0


def remedy(server: Server) -> Remedy:
    """Return what is to be changed about the time of a server whose delay is known."""
    delay, presleep, sums = server.delay or 0.0, server.presleep() or 0.0, budget(server)
    is_hook_gone = sums is not None and sums.is_needless_hook
    kept = delay if is_hook_gone else delay + presleep
    lacks = has_no_delay(server)
    if lacks:
        kept = (server.ours.delay if server.ours is not None else 0.0) or USUAL_DELAY
    after, fronts = _ends(server, kept, presleep if is_hook_gone else 0.0)
    # What waits may be a hook, which can do so for longer.
    is_ours = lacks or delay > 0
    hook = 0.0 if is_hook_gone or lacks else presleep if is_ours else after
    variables = _variables(server, after - hook) if is_ours else {}
    period = ""
    if sums is not None and sums.stop.written is not None:
        planned = _read(server, variables) if is_ours else None
        new = replace(sums, presleep=hook)
        if planned is not None:
            new = replace(new, delay=planned.delay, finish=planned.finish)
        if not new.fits:
            period = sums.stop.written.format(new.needed)
    way = "" if not lacks or server.is_delayed else _way(server)
    presleeps = hook if hook != presleep and not is_hook_gone else None
    return Remedy(way, is_hook_gone, variables, presleeps, period, fronts)


def _ends(
    server: Server, kept: float, gone: float
) -> tuple[float, tuple[tuple[Front, float], ...]]:
    """For how long gunicorn is to serve on, and the proxies in front that are to be changed.

    :param kept: seconds that it serves on for as it is.
    :param gone: the preStop sleep that is to be removed.
    """
    if not kept:
        return kept, ()
    end, balancer = kept, direct_balancer(server)
    if balancer is not None and end < balancer.takes:
        end = gone if gone >= balancer.takes else balancer.enough
    sleeps = {front: front.quits_after for front in in_front(server)}
    known = {front: sleep for front, sleep in sleeps.items() if sleep is not None}
    if all(sleep and end - HANDOVER <= sleep <= end for sleep in known.values()):
        return end, ()
    end = max([end, *(sleep for sleep in known.values() if sleep != math.inf)])
    changed = tuple((front, end) for front, sleep in known.items() if sleep != end)
    return end + HANDOVER, changed


def _way(server: Server) -> str:
    """How a server of another class gets a delay of ours."""
    ours = engines.ours_beside(server.worker or "sync")
    return f"-k {ours}" if ours else HOOK


def _variables(server: Server, delay: float) -> dict[str, str]:
    """The variables that give a server this delay, and time to finish after it."""
    ours, finish = server.ours, server.finish
    found = {"GRACEFUL_DELAY": f"{delay:g}"}
    if ours is not None and delay == ours.delay:
        found = {}
    if ours is None or finish is None:
        return found
    needed = whole(delay + finish + MARGIN)
    planned = _read(server, found)
    if ours.kill_after is not None and needed > ours.kill_after:
        found["GRACEFUL_KILL_AFTER"] = f"{needed}"
    # A service with a long delay says at its start that it knows of no period which holds it.
    elif planned is not None and not set(planned.warnings) <= set(ours.warnings):
        found["GRACEFUL_KILL_AFTER"] = f"{planned.needed}"
    return found


def _read(server: Server, variables: Mapping[str, str]) -> settings.Settings | None:
    """Our settings with these variables set, None where they are refused for another reason."""
    options = {name.lower(): value for name, value in variables.items()}
    try:
        return settings.read(server.read.cfg, server.known, server.read.names, options)
    except settings.SettingsError:
        return None
