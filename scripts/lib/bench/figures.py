"""What a figure is: our samples, the baseline's, and what follows from them."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Optional, Sequence

# From so many pairs on the spread is the quartiles, below it the least and the most.
ENOUGH_FOR_QUARTILES = 10


class NotMeasured(Exception):
    """A figure could not be measured; the message says why, for the table."""


def quantile(samples: Sequence[float], fraction: float) -> float:
    """The value below which `fraction` of the samples lie, interpolated between neighbours."""
    ordered = sorted(samples)
    at = fraction * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass
class Spread:
    """Samples summed up."""

    median: float
    low: float
    high: float
    kind: str
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        median = statistics.median(samples)
        if len(samples) >= ENOUGH_FOR_QUARTILES:
            return cls(median, quantile(samples, 0.25), quantile(samples, 0.75), "quartiles", len(samples))
        return cls(median, min(samples), max(samples), "range", len(samples))


@dataclass
class Figure:
    """One figure.

    `judged` says what `goal` and `hoped` are about: "ours" (the measured value itself) or "ratio"
    (ours to the baseline's); `better` whether less or more of it is good. Samples that were taken in
    pairs, A B A B, give the ratio of each pair, so that what slows both cancels out.
    """

    part: str
    name: str
    unit: str
    ours: Sequence[float]
    baseline: Sequence[float]
    baseline_name: str
    judged: str = "ratio"
    better: str = "less"
    goal: Optional[float] = None
    hoped: Optional[float] = None
    note: str = ""

    @property
    def ratio(self) -> Spread:
        if len(self.ours) == len(self.baseline):
            pairs = [a / b if b else math.inf for a, b in zip(self.ours, self.baseline)]
            return Spread.of(pairs)
        return Spread.of([statistics.median(self.ours) / statistics.median(self.baseline)])

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return "no goal"
        value = self.ratio.median if self.judged == "ratio" else statistics.median(self.ours)

        def reached(mark: float) -> bool:
            return value <= mark if self.better == "less" else value >= mark

        if self.hoped is not None and reached(self.hoped):
            return "met, as hoped"
        return "met" if reached(self.goal) else "missed"


@dataclass
class Missing:
    """A figure that could not be measured, and why."""

    part: str
    name: str
    reason: str


@dataclass
class Plan:
    """How often things are repeated."""

    scale: float = 1.0
    only: Optional[int] = None

    def pairs(self, usual: int) -> int:
        """How many pairs of a kind that is usually taken `usual` times: three at least, unless fewer
        were asked for."""
        return self.only if self.only is not None else max(3, round(usual * self.scale))


@dataclass
class Results:
    """What has been measured, in order."""

    entries: list = field(default_factory=list)

    def add(self, *entries) -> None:
        self.entries.extend(entries)
