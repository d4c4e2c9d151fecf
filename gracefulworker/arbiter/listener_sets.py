"""With `reuse_port`: the arbiter holds a set of listeners for each worker.

In stock each worker binds listeners of its own after the fork, the kernel spreads newcomers over
them, and what waits in a worker's queue is reset when that worker ends. Here the arbiter binds
them, and they outlive the workers: the successor of a worker inherits its set, and whoever waits
there with it.

The kernel goes on sending newcomers to a set that nobody accepts from, and drops those that it
sends to a gated one while another is open. So no set is closed or gated before all of them are:
when the workers become fewer (TTOU), one of them takes care of several sets. Listeners that cannot
be bound twice (Unix) are in all sets, and those that gunicorn itself has made are in the only one:
`fd://`, a new address at HUP, and with gunicorn 23, which has no such sets.

What may be changed here: who gets which set.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Iterator
from typing import Any

from gunicorn import sock

from gracefulworker import seam
from gracefulworker.shared.forks import at_fork


class ListenerSets:
    """The sets of one arbiter, which are all in its `LISTENERS`."""

    def __init__(self, arbiter: seam.Arbiter) -> None:
        self.arbiter = arbiter
        self._sets: list[list[Any]] = []
        self._grow = False  # whether more workers get more sets
        self._dealt: list[Any] | None = None  # to the worker that is being forked
        at_fork(after_in_child=self._close_the_others)

    @contextlib.contextmanager
    def dealt(self, staying: list[Any], ours: bool, missing: int) -> Iterator[None]:
        """Let the arbiter fork a worker that inherits the sets which are to be its own.

        Arbiter.spawn_worker (20.1 on) gives the worker `LISTENERS`, and with `reuse_port` it
        replaces them in the child.

        :param staying: the workers that are not about to leave.
        :param ours: whether it is of our classes; a stock one binds for itself, as ever, unless a
            HUP has brought it where sets are held, and then it shares them all.
        :param missing: how many workers there are to be forked, with this one.
        """
        arbiter, cfg = self.arbiter, self.arbiter.cfg
        if not (cfg.reuse_port and hasattr(socket, "SO_REUSEPORT") and (ours or self._sets)):
            yield
            return
        self._look_for_changes()
        self._dealt = self._choose(staying, missing) if ours else self._all()
        arbiter.LISTENERS = self._dealt
        cfg.set("reuse_port", False)
        try:
            yield
        finally:
            cfg.set("reuse_port", True)
            arbiter.LISTENERS = self._all()
            self._dealt = None

    def _all(self) -> list[Any]:
        return list(dict.fromkeys(listener for one in self._sets for listener in one))

    def _look_for_changes(self) -> None:
        """Make the first set, or take over what gunicorn has made: at HUP, and 23 at the start."""
        arbiter = self.arbiter
        if not arbiter.LISTENERS:
            arbiter.LISTENERS = sock.create_sockets(arbiter.cfg, arbiter.log)
            arbiter.log.info("Listening at: %s", ",".join(map(str, arbiter.LISTENERS)))
            self._sets = [_kept_from_exec(arbiter.LISTENERS)]
            # fd:// is shared in stock, too
            self._grow = not any(isinstance(bind, int) for bind in arbiter.cfg.address)
        elif self._all() != arbiter.LISTENERS:
            self._sets = [arbiter.LISTENERS]
            self._grow = False

    def _choose(self, staying: list[Any], missing: int) -> list[Any]:
        """Sets without a worker, shared out among those that are missing; else a new one."""
        alone = [one for one in self._sets if not any(_shares(one, w) for w in staying)]
        if alone:
            taken = alone[: math.ceil(len(alone) / missing)]
            return list(dict.fromkeys(listener for one in taken for listener in one))
        if len(self._sets) < self.arbiter.num_workers and self._grow:
            self._sets.append(_kept_from_exec(_siblings(self._sets[0])))
            return self._sets[-1]
        # More workers than ever before are followed by more: the worker with the most sets shares.
        return min(self._sets, key=lambda one: _attendance(one, staying))

    def _close_the_others(self) -> None:
        """In a new worker: the sets of the others are not to be held open by it."""
        if self._dealt is not None:
            for listener in self._all():
                if listener not in self._dealt:
                    listener.close()
            self._dealt = None


def _shares(listeners: list[Any], worker: Any) -> bool:
    return any(listener in worker.sockets for listener in listeners)


def _attendance(listeners: list[Any], workers: list[Any]) -> float:
    """How much of a worker a set has."""
    return sum(1 / len(worker.sockets) for worker in workers if _shares(listeners, worker))


def _siblings(listeners: list[Any]) -> list[Any]:
    """Other listeners on the same ports; the same ones where there can be only one.

    :raises OSError: out of descriptors.
    """
    siblings = []
    with contextlib.ExitStack() as undo:
        for listener in listeners:
            if listener.family == socket.AF_UNIX:
                siblings.append(listener)
                continue
            sibling = type(listener)(listener.getsockname(), listener.conf, listener.log)
            undo.callback(sibling.close)
            siblings.append(sibling)
        undo.pop_all()
    return siblings


def _kept_from_exec(listeners: list[Any]) -> list[Any]:
    """The new arbiter after USR2 binds its own, and must not hold these open."""
    for listener in listeners:
        listener.set_inheritable(False)
    return listeners
