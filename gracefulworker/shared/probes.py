"""What probes are told: from the state of the service to a status and a body.

Readiness: may requests be sent here? Only once all configured workers have been up together; a
crash afterwards changes nothing while one of them is up. In LAME_DUCK the answer is still yes, for
a pod that is being deleted has left the endpoints anyway, and kube-proxy falls back to terminating
pods that are ready when no other is left (KEP-1669). Liveness: is there anything that a restart
would cure? Past SERVING there is not, whatever the workers do.

The workers answer on paths of their own listeners (`gracefulworker.workers.requests`), the arbiter
on an address of its own (`gracefulworker.arbiter.probe_listener`). This module is pure, but for the
user's check that it calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from gracefulworker.phases import Phase
from gracefulworker.seam import Log

#: The methods that a probe may have; a prober that sends another one is told.
METHODS = ("GET", "HEAD")


@dataclass(frozen=True)
class State:
    """How the service stands.

    :param complete: whether all configured workers have been up together.
    """

    phase: Phase
    booted: int
    expected: int
    complete: bool


@dataclass(frozen=True)
class Answer:
    """A response; its body is left out for HEAD."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


def unready_reason(state: State, unready: bool) -> str | None:
    """Why no request is to be sent here; None when they may come.

    :param unready: whether the answer is no from SIGTERM on, for balancers that probe for
        themselves.
    """
    if state.phase >= Phase.DRAINING or (unready and state.phase == Phase.LAME_DUCK):
        return "shutting down"
    if not state.complete:
        return f"{state.booted} of {state.expected} workers have booted"
    return None if state.booted else "no worker is up"


def objection(check: Callable[[], object], log: Log) -> str | None:
    """What the user's `graceful_readiness_check` has against it; None when it agrees."""
    try:
        said = check()
    except Exception:
        log.exception("graceful_readiness_check failed")
        return "graceful_readiness_check failed"  # whose type strangers need not know
    if isinstance(said, str):
        return said
    return "graceful_readiness_check returned False" if said is False else None


def answer(method: str, state: State, reason: str | None, well: str) -> Answer:
    """The response to a probe.

    :param reason: why not; None for yes.
    :param well: what is given as the reason of a yes.
    """
    status = "200 OK" if reason is None else "503 Service Unavailable"
    said: dict[str, object] = {
        "phase": state.phase.name,
        "booted": state.booted,
        "expected": state.expected,
        "reason": well if reason is None else reason,
    }
    if method not in METHODS:
        return NOT_ALLOWED
    whole = _answer(status, said)
    return replace(whole, body=b"") if method == "HEAD" else whole


def _answer(status: str, said: dict[str, object], *more: tuple[str, str]) -> Answer:
    body = json.dumps(said).encode() + b"\n"
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        *more,
    ]
    return Answer(status, headers, body)


NOT_ALLOWED = _answer(
    "405 Method Not Allowed",
    {"reason": "a probe is GET or HEAD"},
    ("Allow", ", ".join(METHODS)),
)
NOT_FOUND = _answer("404 Not Found", {"reason": "only probes are answered here"})
