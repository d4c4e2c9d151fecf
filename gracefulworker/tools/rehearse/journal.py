"""What happened to each connection and each request, in seconds since the rehearsal began.

What may be changed here: what is noted. The journal judges one thing only, which endings are
losses; what is made of it is the business of `report` and `picture`.
"""

from __future__ import annotations

import collections
import enum
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

#: Seconds by which an answer that was sent before the pod's SIGTERM may seem to come after it.
SLACK = 0.1


class Ending(enum.Enum):
    """How a request can end. Everything but OK and LEFT is a loss."""

    OK = "ok"
    LEFT = "still open"  #: not ended when the load was (or Ctrl-C came), and left by the client
    REFUSED = "refused"
    RESET_FRESH = "reset (fresh)"  #: RST before the first byte of the answer
    RESET_REUSED = "reset (reused)"
    CLOSED_FRESH = "closed (fresh)"  #: FIN before the first byte of the answer
    CLOSED_REUSED = "closed (reused)"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    SERVER_ERROR = "5xx"
    WRONG = "wrong answer"  #: another status or body than before the rollout


#: What each ending means, for whoever reads the result.
MEANINGS = {
    Ending.OK: "answered, as before the rollout",
    Ending.LEFT: "not ended when the load was, and left by the client",
    Ending.REFUSED: "no connection: nobody listened any more, or there was no endpoint",
    Ending.RESET_FRESH: "a new connection was reset before a byte of the answer",
    Ending.RESET_REUSED: "a connection that had been used was reset before a byte of the answer",
    Ending.CLOSED_FRESH: "a new connection was closed before a byte of the answer",
    Ending.CLOSED_REUSED: "a connection that had been used was closed before a byte of the answer",
    Ending.TRUNCATED: "the answer broke off",
    Ending.TIMEOUT: "no whole answer in time",
    Ending.SERVER_ERROR: "an answer of 500 or more",
    Ending.WRONG: "an answer with another status or body than before the rollout",
}


class Close(enum.Enum):
    """How a connection ended, if not by a request's loss."""

    OPEN = "open"
    CLIENT = "by the client"
    ANNOUNCED = "after Connection: close"
    UNANNOUNCED = "by the server, unannounced"
    RESET = "reset while idle"
    LOST = "with its request"


@dataclass
class Exchange:
    """One request and its ending. `due` is when it should have begun, had there been no wait."""

    kind: str
    request: str
    due: float
    began: float
    ended: float = 0.0
    ending: Ending = Ending.OK
    status: int = 0

    @property
    def lost(self) -> bool:
        return self.ending not in (Ending.OK, Ending.LEFT)

    @property
    def label(self) -> str:
        """The ending in a word or two, 5xx by its code."""
        return str(self.status) if self.ending is Ending.SERVER_ERROR else self.ending.value


@dataclass
class Track:
    """One connection, or the attempt at one, with the requests that it carried."""

    kind: str
    opened: float
    port: int = 0  #: the client's own; 0 if it was never connected
    pod: str | None = None
    idle_since: float | None = None  #: when its last answer ended, while it is idle
    closed: float | None = None
    close: Close = Close.OPEN
    exchanges: list[Exchange] = field(default_factory=list)

    def end(self, at: float, close: Close) -> None:
        """Note the end; the first word counts."""
        if self.closed is None:
            self.closed, self.close = at, close


class Journal:
    """All connections of one rollout; the clock starts when it is made."""

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self._zero = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._zero

    def open(self, kind: str) -> Track:
        track = Track(kind, self.now())
        self.tracks.append(track)
        return track

    def exchanges(self) -> Iterator[Exchange]:
        for track in self.tracks:
            yield from track.exchanges

    def settle(self, pods: dict[int, str]) -> None:
        """Note the pod of each connection, which the Service knows by the client's port."""
        for track in self.tracks:
            if track.pod is None and track.port:
                track.pod = pods.get(track.port)

    @property
    def asked(self) -> int:
        return sum(len(track.exchanges) for track in self.tracks)

    @property
    def lost(self) -> int:
        return sum(exchange.lost for exchange in self.exchanges())

    @property
    def median_wait(self) -> float:
        """Seconds from a request's first byte to the end of its answer; 0 if none was answered."""
        waits = [x.ended - x.began for x in self.exchanges() if x.ending is Ending.OK]
        return statistics.median(waits) if waits else 0.0

    def endings(self, kind: str | None = None) -> collections.Counter[str]:
        """How often each ending came, of all requests or of one kind of client's."""
        return collections.Counter(
            exchange.label for exchange in self.exchanges() if kind in (None, exchange.kind)
        )

    def statuses(self, kind: str | None = None) -> collections.Counter[int]:
        """How often each status came, of all requests or of one kind of client's."""
        return collections.Counter(
            exchange.status
            for exchange in self.exchanges()
            if kind in (None, exchange.kind) and exchange.status
        )

    def idle_closes(self, pod: str, since: float) -> list[Track]:
        """Idle connections of `pod` that it closed unannounced, `since` (its SIGTERM) or later."""
        return [
            track
            for track in self.tracks
            if track.pod == pod
            and track.close in (Close.UNANNOUNCED, Close.RESET)
            and track.closed is not None
            and track.closed >= since
        ]

    def last_active(self, pod: str) -> float:
        """When the last request that `pod` answered ended; 0 if there was none."""
        answered = (
            x.ended
            for track in self.tracks
            if track.pod == pod
            for x in track.exchanges
            if not x.lost
        )
        return max(answered, default=0.0)


def slept_through(track: Track, told: float) -> bool:
    """Whether the connection was idle since its pod was told: nothing could be announced on it."""
    return track.idle_since is not None and track.idle_since <= told + SLACK
