"""The settings of one arbiter, as they are at present: a HUP makes new ones."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any

from gracefulworker import settings
from gracefulworker.arbiter.crew import Crew
from gracefulworker.arbiter.kinds import OTHERS, OURS, Kind
from gracefulworker.arbiter.probe_listener import ProbeListener
from gracefulworker.phases import Plan


class Configuration:
    """Reads them, and has probes answered where they say.

    :raises SettingsError: while no worker serves; later a slip is a log line.
    """

    def __init__(self, arbiter: Any, crew: Crew) -> None:
        self.arbiter = arbiter
        self.crew = crew
        self.log = arbiter.log
        self._cfg: Any = None
        try:
            self._read()
        except settings.SettingsError as error:
            if not arbiter.WORKERS:
                raise
            # A HUP has brought our workers into a service that runs.
            self.log.error("%s; using the defaults", error)
            self.settings = settings.read(self._cfg, {}, {})

    def open(self) -> None:
        """Begin to answer probes.

        :raises SettingsError: `graceful_probe_bind` cannot be listened on.
        """
        self._probes = ProbeListener(self.crew, self.log)
        self._probes_wait = False  # after USR2: the former arbiter has graceful_probe_bind
        try:
            self._open_probes()
        except settings.SettingsError as error:
            if not self.arbiter.WORKERS:
                raise
            self.log.error("%s", error)
        objection = self.kind.objection(self.settings)
        if objection:
            self.log.warning("%s", objection)

    @property
    def kind(self) -> Kind:
        """Of the workers that are spawned."""
        return OURS if self.crew.are_ours() else OTHERS

    def plan(self) -> Plan:
        return self.kind.plan(self.settings)

    def follow(self) -> None:
        """Read the settings anew if there is a new configuration (before each fork)."""
        if self.arbiter.cfg is self._cfg:
            return
        # The service runs: a slip in a reloaded file must not end it.
        try:
            self._read()
        except settings.SettingsError as error:
            self._cfg = self.arbiter.cfg
            self.log.error("%s; keeping the former settings", error)
            return
        try:
            self._open_probes()
        except settings.SettingsError as error:
            self.log.error("%s; probes are answered where they were", error)

    def try_probes_again(self) -> None:
        """In each pass of the main loop, as long as another arbiter has their address."""
        if self._probes_wait:
            with contextlib.suppress(settings.SettingsError):
                self._open_probes()

    def _read(self) -> None:
        self._cfg = self.arbiter.cfg
        self.settings = settings.read(self._cfg, os.environ)
        for sentence in self.settings.warnings:
            self.log.warning("%s", sentence)
        self.log.info("%s", self.settings.plan())

    def _open_probes(self) -> None:
        """:raises SettingsError: `graceful_probe_bind` cannot be listened on."""
        try:
            self._probes.follow(self.settings)
            self._probes_wait = False
        except (OSError, TypeError, ValueError) as error:  # the latter two: NUL, surrogates
            number = getattr(error, "errno", None)
            if self.arbiter.master_pid and number == errno.EADDRINUSE:
                self._probes_wait = True
                return
            raise settings.SettingsError(
                f"graceful_probe_bind = {self.settings.probe_bind!s:.100} cannot be listened on"
                f" ({getattr(error, 'strerror', None) or 'this is no host name'}): give an address"
                " of this machine and a port that is free"
            ) from None
