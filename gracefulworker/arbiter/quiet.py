"""Whether anybody still comes: what `graceful_quiet` goes by.

Workers count new connections and responses from SIGTERM on, and always say how many requests they
hold, so the way of a request has nothing more to do for this. The arbiter looks at these numbers
now and then; what grew since the last look is somebody new. In doubt the delay goes on, which
harms nobody.
"""

from __future__ import annotations

from gracefulworker.arbiter.crew import Crew


class Traffic:
    """Remembers what the workers had counted at the last look."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._seen: tuple[int, ...] | None = None

    def stirred(self) -> bool:
        """Whether there is a new connection or request since the last time."""
        seen = self._crew.traffic()
        before, self._seen = self._seen or seen, seen
        grown = any(mine > then for mine, then in zip(seen, before, strict=True))
        # One that waits in an accept queue may wait for a worker that is busy.
        return grown or self._crew.someone_waits()
