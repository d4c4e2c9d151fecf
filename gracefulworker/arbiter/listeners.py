"""The arbiter's part in the listeners: when they are gated, sealed and closed.

`gracefulworker.arbiter.gate` is how the kernel is asked; here is for which of them. A listener that
outlives us (USR2 upgrade, systemd's) is left alone.

What may be changed here: the order of these steps. What workers do with their copies of the
listeners follows from `Page.listeners`.
"""

from __future__ import annotations

from typing import Any

from gracefulworker.arbiter import gate
from gracefulworker.phases import SETTLE_MAX, SETTLE_MIN
from gracefulworker.shared.page import ListenerState, Page


class Gatekeeper:
    """Holds the listeners of one arbiter, which are in its `LISTENERS`."""

    def __init__(self, arbiter: Any, page: Page) -> None:
        self.arbiter = arbiter
        self.page = page
        self.unix_paths = gate.UnixPaths()
        self.ungated: list[Any] = []
        self.names_of_ungated = ""
        self.tcp_ports: frozenset[int] = frozenset()

    def remember(self) -> None:
        """Note whose the paths of Unix listeners are, before each fork."""
        self.unix_paths.remember(self.arbiter.LISTENERS)

    def are_ours(self) -> bool:
        """Whether nobody else serves from them: no USR2 upgrade under way, not systemd's."""
        arbiter = self.arbiter
        return bool(arbiter.reexec_pid == arbiter.master_pid == 0 and not arbiter.systemd)

    def shut(self) -> ListenerState:
        """The delay is over: refuse newcomers, as far as the kernel can; what workers are told.

        This and what follows may be called in a signal handler, so nothing is logged.
        """
        listeners = self.arbiter.LISTENERS
        self.tcp_ports = gate.ports(listeners)
        if not self.are_ours():
            # With reuse_port the other arbiter binds its own. The kernel would still pick one of
            # ours that is gated, and drop its SYN.
            alone = not any(listener.get_inheritable() for listener in listeners)
            return ListenerState.SEALED if alone else ListenerState.LEFT
        self.ungated = [listener for listener in listeners if not gate.shut(listener)]
        self.names_of_ungated = ", ".join(map(str, self.ungated))
        return ListenerState.SEALED if self.ungated == listeners else ListenerState.GATED

    def settled(self, since: float) -> bool:
        """Whether no handshake is under way any more, `since` seconds after the gate."""
        if since < SETTLE_MIN:
            return False
        if since >= SETTLE_MAX:
            return True
        under_way = [gate.handshakes_under_way(port) for port in self.tcp_ports]
        return not any(under_way) and (None not in under_way or since >= gate.SETTLE_BLIND)

    def seal(self, ours: bool) -> None:
        """Nothing more will come into the accept queues.

        :param ours: whether the workers are; else Arbiter.stop closes the listeners.
        """
        if self.page.listeners == ListenerState.GATED:
            self.page.listeners = ListenerState.SEALED
            # As long as one process has an open one that is not gated, clients hang in its queue.
            self.close(self.ungated)
        elif ours:
            self.close_all()
        if self.page.listeners != ListenerState.LEFT:
            self.unix_paths.unlink()

    def leave_at_once(self) -> None:
        """For a quick stop; Arbiter.stop would unlink by name alone, and not an abstract one."""
        if self.are_ours():
            self.unix_paths.unlink()
            self.close_all()

    def close_all(self) -> None:
        self.close(self.arbiter.LISTENERS)

    def close(self, listeners: list[Any]) -> None:
        self.arbiter.LISTENERS = [one for one in self.arbiter.LISTENERS if one not in listeners]
        for listener in listeners:
            listener.close()
