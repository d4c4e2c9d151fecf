"""Minimum, median and maximum of figures that were measured more than once.

What may be changed here: how a figure is written.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    low: float
    median: float
    high: float

    def text(self, form: str = ".3f") -> str:
        """The median, and in brackets the minimum and the maximum."""
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


def spread(values: Iterable[float]) -> Spread:
    """:raises statistics.StatisticsError: there is no value."""
    found = sorted(values)
    median = statistics.median(found)
    return Spread(found[0], median, found[-1])


def ratios(ours: Iterable[float], stock: Iterable[float]) -> Spread:
    """Of the values that were measured in the same turn."""
    return spread(a / b for a, b in zip(ours, stock, strict=True))


def differences(ours: Iterable[float], stock: Iterable[float]) -> Spread:
    return spread(a - b for a, b in zip(ours, stock, strict=True))
