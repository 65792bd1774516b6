"""A value with its 90 % interval, from the errors of past runs that were predicted without themselves.

An interval contains the prediction, moved by those errors, 90 times of 100 (jackknife+, arXiv 1905.02928). With fewer
than nine runs that quantile does not exist: Student's t is taken instead. Outside the range of the past runs an
interval is wider by a half for each doubling, and says so; the error of a past run outside the others counts as much
less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEVEL = 0.9
WIDENING = 0.5  # of an interval, for each doubling outside the past runs
BEYOND = 0.03  # of the logarithm of a value, for each doubling outside, however well the past runs agree
UNKNOWN_SPREAD = 0.15  # of the logarithm of a value of which no past run says anything
STUDENT_95 = (6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89, 1.86, 1.83)  # 95 % quantiles for 1, 2, ... degrees of freedom
NORMAL_95 = 1.645  # the same of a normal distribution


@dataclass(frozen=True)
class Forecast:
    """A value with its 90 % interval, from `runs` independent past runs. note: what the interval cannot say, or ""."""

    name: str
    value: float
    low: float
    high: float
    runs: int
    note: str = ""

    def holds(self, measured: float) -> bool:
        """Returns whether a measurement lies in the interval."""
        return self.low <= measured <= self.high


def quantile_radius(errors: Sequence[float], level: float = LEVEL) -> float:
    """Returns r, so that the error of another run is at most r in size with probability `level`.

    errors: of runs that were predicted without themselves. For fewer than `level` / (1 - `level`), Student's t.
    """
    sizes = sorted(map(abs, errors))
    rank = math.ceil((len(sizes) + 1) * level)
    if rank <= len(sizes):
        return sizes[rank - 1]
    if len(sizes) < 2:
        return UNKNOWN_SPREAD if not sizes else max(UNKNOWN_SPREAD, 3 * sizes[0])
    spread = math.sqrt(sum(size**2 for size in sizes) / len(sizes))
    factor = STUDENT_95[min(len(sizes) - 1, len(STUDENT_95)) - 1] * math.sqrt(1 + 1 / len(sizes))
    return max(sizes[-1], factor * spread)


def count_doublings_outside(value: float, known: Sequence[float]) -> float:
    """Returns by how many doublings a value above 0 lies outside the range of the known ones; 0 inside."""
    known = [each for each in known if each > 0]
    if not known or value <= 0:
        return 0.0
    return max(0.0, math.log2(min(known) / value), math.log2(value / max(known)))


def error_inside(error: float, outside: float) -> float:
    """Returns the size that an error of a run outside of the past ones would have inside; the inverse of `widen`.

    Args:
        error: natural logarithm of measured / predicted.
        outside: doublings by which the run lay outside.
    """
    return max(0.0, abs(error) - BEYOND * outside) / (1 + WIDENING * outside)


def widen(name: str, middle: float, radius: float, outside: float, runs: int, note: str) -> Forecast:
    """Returns a forecast whose interval is wider outside of the past runs, by a half and 3 % for each doubling.

    Args:
        name: of the quantity.
        middle: natural logarithm of the value.
        radius: of the interval of that logarithm, inside of the past runs.
        outside: doublings by which the run lies outside.
        runs: independent past runs.
        note: for the user; "": how far outside the run lies, where it does.
    """
    wider = radius * (1 + WIDENING * outside) + BEYOND * outside
    if outside > 0.1 and not note:
        times = f"the interval is {wider / radius:.1f} times as wide" if radius else "the interval is wider"
        note = f"beyond the past runs by a factor of {2**outside:.1f}: {times}"
    return Forecast(name, math.exp(middle), math.exp(middle - wider), math.exp(middle + wider), runs, note)


def limit_ends(forecast: Forecast, low: float, high: float) -> Forecast:
    """Returns a forecast whose interval reaches from `low` to `high` at most; its note says which end was limited."""
    notes = [forecast.note] if forecast.note else []
    if forecast.high > high:
        notes.append("upper end: of past runs no larger that read no more")
    if forecast.low < low:
        notes.append("lower end: of past runs no smaller that read no less")
    return replace(forecast, low=max(forecast.low, low), high=min(forecast.high, high), note="; ".join(notes))
