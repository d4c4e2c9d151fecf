"""The phases of a service's end, and the schedule that leads through them.

Kubernetes removes a pod along two paths that run side by side: the kubelet sends SIGTERM at once,
while kube-proxies, ingresses and load balancers learn of it seconds later. A server that stops at
SIGTERM refuses clients that were sent to it in good faith; one that just exits cuts the
connections that it already holds. So the end has phases, one way only::

    SERVING --SIGTERM--> LAME_DUCK --delay over--> DRAINING --nothing in flight--> STOPPED

- ``LAME_DUCK`` (the SRE book's and CoreDNS's word): the listener is open and everything is served
  as before, but each response says ``Connection: close``.
- ``DRAINING`` (Envoy's and nginx's word): newcomers are refused, the accept queue is emptied and
  served, idle keep-alive connections are closed, a request that has begun is finished.
- ``STOPPED``: the process exits; 0, or `EXIT_CUT` when a request was cut at the deadline.

A single worker that stops while the service goes on (max_requests, HUP, TTOU) skips LAME_DUCK:
its own phase is the larger of the shared one and its own.

This module is pure: elapsed time goes in, a phase comes out; no clock, no I/O. Only the arbiter
moves the shared phase (`gracefulworker.arbiter.takeover`). What may be changed here: the schedule's
arithmetic. The numbers of the phases are compared with ``<`` everywhere; keep their order.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

#: ns, the unit of all times that processes share.
SECOND = 1_000_000_000

#: Exit status of an arbiter that had to cut a request, so that scripts can tell it from 0.
EXIT_CUT = 5

#: Seconds between the workers' deadline, where they cut what is left and name it themselves, and
#: the arbiter's, where it sends SIGKILL to a worker that did not.
KILL_MARGIN = 0.5

#: Seconds in which a second SIGTERM is noise: process managers repeat it, and one that is sent to
#: a whole process group arrives more than once.
REPEAT_WINDOW = 1.0

#: Seconds after the gate in which a handshake may still complete, at least and at most.
SETTLE_MIN = 0.05
SETTLE_MAX = 1.0


class Phase(enum.IntEnum):
    """Where a service stands on its way out; it only ever grows."""

    SERVING = 0
    LAME_DUCK = 1
    DRAINING = 2
    STOPPED = 3


@dataclass(frozen=True)
class Schedule:
    """When each phase ends.

    :param delay: seconds of LAME_DUCK.
    :param finish: seconds of DRAINING at the most, for what is in flight.
    """

    delay: float
    finish: float

    @property
    def deadline(self) -> float:
        """Seconds after SIGTERM at which what is left is cut."""
        return self.delay + self.finish

    def phase(self, elapsed: float | None) -> Phase:
        """The phase by the clock alone, `elapsed` seconds after SIGTERM (None: there was none)."""
        if elapsed is None:
            return Phase.SERVING
        if elapsed < self.delay:
            return Phase.LAME_DUCK
        if elapsed < self.deadline:
            return Phase.DRAINING
        return Phase.STOPPED

    def shortened(self, elapsed: float) -> Schedule:
        """The same schedule with the delay ended `elapsed` seconds after SIGTERM, never later."""
        return replace(self, delay=min(self.delay, max(elapsed, 0.0)))
