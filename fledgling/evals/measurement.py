"""A measured value and what is needed to trust it: interval, how many independent cases, the best constant answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

Z95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Measurement:
    """value with its 95 % interval [low, high] over n cases.

    baseline: the score of the best constant answer; chance: the expected score of a random answer; tools: what answers
    could call, "none" for nothing; None where nothing is generated. clusters: how many of the cases are independent of
    each other, where several share a `cluster_unit` (wordings, passages, documents). subject: the part of an exam that
    the value is of; "" for all of it. Measurements of two sources of questions never share a name.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    baseline: float | None = None
    chance: float | None = None
    tools: str | None = None
    clusters: int | None = None
    cluster_unit: str = ""
    subject: str = ""

    @property
    def label(self) -> str:
        """The name, with the subject behind a slash."""
        return f"{self.name}/{self.subject}" if self.subject else self.name

    def with_tools(self, tools: str) -> Measurement:
        """Returns an exam's measurement with the tools of its engine, unless it had its own.

        A choice among letters calls none.
        """
        return replace(self, tools="none" if self.chance else self.tools or tools)


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion (Wilson 1927): inside [0, 1], and valid at 0 and n successes."""
    assert n > 0 and 0 <= successes <= n, f"{successes} of {n}"
    p, z2 = successes / n, Z95 * Z95
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the edge the sum is exact except for rounding.
    return (max(0.0, center - half) if successes else 0.0), (min(1.0, center + half) if successes < n else 1.0)
