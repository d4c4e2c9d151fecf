"""The two kinds of workers that an arbiter can have: those of our classes, and others.

Ours see the phase and know how to drain. Workers of another class (`gracefulworker.hooks`) are
given LAME_DUCK, and then left to gunicorn's own stop. Everything that the arbiter does differently
for them is here, or follows from `phases.Plan.drains`.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Protocol

from gracefulworker import seam
from gracefulworker.phases import Plan
from gracefulworker.settings import PREFIX, Settings


class Kind(Protocol):
    """What the arbiter asks about the class of its workers."""

    #: Whether they know how to drain.
    drains: bool

    def plan(self, settings: Settings) -> Plan:
        """What these settings promise."""

    def before_spawn(self, cfg: seam.Config, settings: Settings) -> None:
        """A worker is about to be forked."""

    def objection(self, settings: Settings) -> str | None:
        """A sentence about settings that they cannot follow."""


class Ours:
    """Of the classes in `gracefulworker.workers`."""

    drains = True

    def plan(self, settings: Settings) -> Plan:
        return Plan(settings.delay, settings.finish, settings.quiet, settings.sigint)

    def before_spawn(self, cfg: seam.Config, settings: Settings) -> None:
        """They read the phase and the deadline from the page."""

    def objection(self, settings: Settings) -> str | None:
        return None


class Others:
    """Of any other class."""

    drains = False

    def plan(self, settings: Settings) -> Plan:
        return Plan(settings.delay, settings.finish, sigint=settings.sigint, drains=False)

    def before_spawn(self, cfg: seam.Config, settings: Settings) -> None:
        """Arbiter.stop and the stock workers look at no other figure than graceful_timeout."""
        cfg.set("graceful_timeout", max(1, math.floor(settings.finish)))

    def objection(self, settings: Settings) -> str | None:
        names = ["warmup", "quiet", "first_byte", "idle", "overlap"]
        if settings.probe_bind is None:
            names[:0] = ["readiness_path", "liveness_path"]
        plain = {field.name: field.default for field in fields(settings)}
        unheard = [PREFIX + name for name in names if getattr(settings, name) != plain[name]]
        if not unheard:
            return None
        return (
            f"{', '.join(unheard)}: needs a worker class of gracefulworker; probes of this one are"
            " answered at graceful_probe_bind"
        )


OURS, OTHERS = Ours(), Others()
