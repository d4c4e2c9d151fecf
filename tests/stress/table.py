"""What a scenario counted, and the table in which ours stands beside stock.

What may be changed here: columns. A row is one scenario on one kind of worker; `conftest.table`
collects them, and a row is shown whether its test passed or failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness import Ending

#: An ending's kind -> where it is counted. Refusals depend on their time: see `Tally.count`.
COUNTED = {
    "response": "answered",
    "reset": "reset",
    "timeout": "hung",
    "truncated": "cut",
    "eof": "eof",
}
LOSSES = ("reset", "hung", "cut", "eof", "early")
COLUMNS = ("rounds", "answered", *LOSSES)


@dataclass
class Tally:
    """How the requests of a scenario ended."""

    rounds: int = 0
    answered: int = 0
    reset: int = 0
    hung: int = 0  #: nothing came within the harness' ceiling
    cut: int = 0  #: the response stopped short
    eof: int = 0  #: closed without a byte of the response
    early: int = 0  #: refused while the service should have been open
    note: str = ""  #: what else was measured

    def count(self, endings: Iterable[Ending], open_until: float = float("inf")) -> None:
        """:param open_until: monotonic seconds from which on a refusal is right."""
        for end in endings:
            kind = end.kind.removeprefix("after the response: ")
            if kind != "refused":
                column = COUNTED[kind]
                setattr(self, column, getattr(self, column) + 1)
            elif end.at < open_until:
                self.early += 1

    def __add__(self, other: Tally) -> Tally:
        """A scenario that is divided among tests."""
        numbers = {column: getattr(self, column) + getattr(other, column) for column in COLUMNS}
        return Tally(**numbers, note="; ".join(filter(None, (self.note, other.note))))

    @property
    def losses(self) -> dict[str, int]:
        return {column: getattr(self, column) for column in LOSSES if getattr(self, column)}

    def remark(self, text: str) -> None:
        self.note = f"{self.note}; {text}" if self.note else text


def lines(rows: dict[tuple[str, str], dict[str, Tally]]) -> list[str]:
    """The table; (scenario, worker) -> {"ours": ..., "stock": ...}."""
    width = max(len(scenario) for scenario, _ in rows)
    head = " ".join(f"{column:>8}" for column in COLUMNS)
    found = [
        f"{'':{width}} {'':8} | {'ours':^{len(head)}} | {'stock':^{len(head)}}",
        f"{'':{width}} {'':8} | {head} | {head}",
    ]
    for (scenario, worker), sides in rows.items():
        cells = [_cells(sides.get(side), len(head)) for side in ("ours", "stock")]
        found.append(f"{scenario:{width}} {worker:8} | {' | '.join(cells)}")
        for side in ("ours", "stock"):
            if side in sides and sides[side].note:
                found.append(f"{'':{width}} {'':8} |   {side}: {sides[side].note}")
    return found


def _cells(tally: Tally | None, width: int) -> str:
    if tally is None:
        return " " * width
    return " ".join(f"{getattr(tally, column):>8}" for column in COLUMNS)
