"""What runs in a worker: an engine for each of gunicorn's, and what they have in common."""

from __future__ import annotations

from typing import Any

from gracefulworker import missing


def __getattr__(name: str) -> Any:
    """`-k gracefulworker.workers.gthread`, which names a module (PEP 562)."""
    raise missing(__name__, name)
