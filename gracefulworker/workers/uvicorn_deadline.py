"""The deadline of an event loop: its tasks are answered, cut and named.

What may be changed here: how what runs in an event loop is found, and where its code stands.
"""

from __future__ import annotations

from gracefulworker.workers.deadline import Deadline


class UvicornDeadline(Deadline):
    """As in the other engines; the requests are tasks."""
