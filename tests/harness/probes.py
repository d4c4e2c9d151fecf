"""What kubelets do."""

from __future__ import annotations

import json
import re
import socket
from typing import Any

from harness.clients import Address, Ending, fetch
from harness.server import Server


def probe_address(server: Server) -> Address:
    """Where ``graceful_probe_bind`` listens, as the log says."""
    found = re.search(r":(\d+)/", server.wait_log("^probes at").message)
    assert found
    return Address(socket.AF_INET, ("127.0.0.1", int(found[1])))


def said(end: Ending) -> tuple[int, dict[str, Any]]:
    """The status and what the body says."""
    assert end.kind == "response", f"{end}"
    assert end.header("content-type") == "application/json"
    return end.status, json.loads(end.body)


def ask(server: Server, path: str = "/readyz") -> tuple[int, dict[str, Any]]:
    """What the main process answers there."""
    return said(fetch(probe_address(server), path))
