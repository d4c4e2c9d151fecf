"""Whether anybody still comes: the figure behind `graceful_quiet`.

Workers count new connections and responses from SIGTERM on, and always say how many requests they
hold, so the way of a request has nothing more to do for this. The arbiter looks at these numbers
now and then; what grew since the last look is somebody new. What may be changed here: what counts
as somebody. In doubt the delay goes on, which harms nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gracefulworker.phases import SECOND

if TYPE_CHECKING:
    from gracefulworker.arbiter.crew import Crew

#: Seconds between two looks.
STEP = 0.05


class Quiet:
    """How long nobody has come.

    :param now: ns at which the delay began.
    """

    def __init__(self, crew: Crew, now: int) -> None:
        self._crew = crew
        self._stirred_at = now
        self._seen = crew.traffic()

    def lasted(self, now: int) -> float:
        """Seconds without a new connection or request, up to `now` ns."""
        seen = self._crew.traffic()
        # One that waits in an accept queue may wait for a worker that is busy.
        grown = any(mine > before for mine, before in zip(seen, self._seen, strict=True))
        if grown or self._crew.someone_waits():
            self._stirred_at = now
        self._seen = seen
        return (now - self._stirred_at) / SECOND
