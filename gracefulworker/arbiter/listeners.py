"""The listening sockets of one arbiter, which are in its `LISTENERS`.

`gracefulworker.arbiter.gate` is how the kernel is asked; here is for which of them. A listener that
outlives us (USR2 upgrade, systemd's) is left alone. What workers do with their copies follows from
`Page.listeners`. All of it may be called in a signal handler, so nothing is logged.
"""

from __future__ import annotations

from typing import Any

from gracefulworker.arbiter import gate
from gracefulworker.phases import ListenerState


class ArbiterListeners:
    """Gates and closes them."""

    def __init__(self, arbiter: Any) -> None:
        self.arbiter = arbiter
        self.unix_paths = gate.UnixPaths()
        self._ungated: list[Any] = []
        self.names_of_ungated = ""
        self._tcp_ports: frozenset[int] = frozenset()

    def remember(self) -> None:
        """Note whose the paths of Unix listeners are, before each fork."""
        self.unix_paths.remember(self.arbiter.LISTENERS, self.are_ours())

    def are_ours(self) -> bool:
        """Whether nobody else serves from them: no USR2 upgrade under way, not systemd's."""
        arbiter = self.arbiter
        return bool(arbiter.reexec_pid == arbiter.master_pid == 0 and not arbiter.systemd)

    def shut(self) -> ListenerState:
        """Refuse newcomers, as far as the kernel can; what workers are told."""
        listeners = self.arbiter.LISTENERS
        self._tcp_ports = gate.ports(listeners)
        if not self.are_ours():
            # With reuse_port the other arbiter binds its own. The kernel would still pick one of
            # ours that is gated, and drop its SYN.
            alone = not any(listener.get_inheritable() for listener in listeners)
            return ListenerState.SEALED if alone else ListenerState.LEFT
        self._ungated = [listener for listener in listeners if not gate.shut(listener)]
        self.names_of_ungated = ", ".join(map(str, self._ungated))
        return ListenerState.SEALED if self._ungated == listeners else ListenerState.GATED

    def handshakes(self) -> bool | None:
        """Whether any is under way; None where the kernel does not tell."""
        under_way = [gate.handshakes_under_way(port) for port in self._tcp_ports]
        return True if any(under_way) else None if None in under_way else False

    def close_ungated(self) -> None:
        self._close(self._ungated)

    def close_all(self) -> None:
        self._close(self.arbiter.LISTENERS)

    def unlink(self) -> None:
        self.unix_paths.unlink()

    def leave_at_once(self) -> None:
        """For a quick stop; Arbiter.stop would unlink by name alone, and not an abstract one."""
        if self.are_ours():
            self.unlink()
            self.close_all()

    def _close(self, listeners: list[Any]) -> None:
        self.arbiter.LISTENERS = [one for one in self.arbiter.LISTENERS if one not in listeners]
        for listener in listeners:
            listener.close()
