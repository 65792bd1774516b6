"""IsoFLOP bowls: at each budget a parabola through log loss over log N, and power laws through their minima.

The one idea (approach 2 of Hoffmann et al. 2022): at a fixed budget a model can be too small to learn or too large
to be trained long enough; between them lies a minimum, and the minima of several budgets lie on a power law.

The noise of all bowls is pooled: one bowl of four sizes has a single degree of freedom left, three have three. As in
`fit.py`, the pooled residuals are shuffled and everything is fitted again for the intervals.

What it is not: an assumption about the shape of the loss away from the minimum; a parabola is only the nearest one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fledgling.plan.scaling_laws import PowerLaw
from fledgling.scaling.fits import RESAMPLES, Estimate, bootstrap_interval, leverage_adjusted, student_to_normal_ratio

MIN_CURVE_SIZES = 3  # of a bowl: a parabola has three coefficients
MAX_EXTRAPOLATION = math.log(4)  # a minimum is followed this far beyond the sizes that were run, and no farther


@dataclass(frozen=True)
class IsoFlopCurve:
    """One budget: log L = curve (quadratic, centred at `middle`, in log N), its minimum, and whether it is a bowl.

    `inside`: the parabola opens upward and its minimum lies between the smallest and the largest size run.
    """

    budget: float
    coefficients: tuple[float, float, float]  # of (log N - middle)^2, its first power, and 1
    center: float
    N: Estimate
    D: Estimate
    loss: Estimate
    is_interior: bool

    def loss_at(self, N: float) -> float:
        """Return the parabola's loss at N."""
        return math.exp(float(np.polyval(self.coefficients, math.log(N) - self.center)))


@dataclass(frozen=True)
class PowerLawFit:
    """A power law of C through the bowls' minima, with its exponent's interval and the draws behind it."""

    law: PowerLaw
    exponent: Estimate
    bootstrap: tuple[PowerLaw, ...]
    widening: float

    def value_at(self, C: float) -> Estimate:
        """Return the law's value at C with its 95 % interval."""
        return bootstrap_interval(self.law(C), [draw(C) for draw in self.bootstrap], self.widening)


@dataclass(frozen=True)
class IsoFlopFit:
    """The bowls of a sweep in rising order of budget, and the power laws N_opt, D_opt and L_min of C."""

    curves: tuple[IsoFlopCurve, ...]
    N: PowerLawFit | None
    D: PowerLawFit | None
    loss: PowerLawFit | None


@dataclass(frozen=True)
class _Group:
    """The runs of one budget, as logs."""

    budget: float
    n: np.ndarray  # log N - middle
    d: np.ndarray
    y: np.ndarray
    middle: float

    def basis(self) -> np.ndarray:
        """(n, 3): the parabola's terms."""
        return np.vander(self.n, 3)

    def minimum(self, curve: np.ndarray) -> tuple[float, float, float, bool]:
        """(log N, log D, log L) of a parabola's minimum, followed at most `OUTSIDE` the sizes run, and `inside`."""
        opens = curve[0] > 0
        low, high = self.n.min(), self.n.max()
        best = (
            -curve[1] / (2 * curve[0]) if opens else (low if np.polyval(curve, low) < np.polyval(curve, high) else high)
        )
        at = float(np.clip(best, low - MAX_EXTRAPOLATION, high + MAX_EXTRAPOLATION))
        tokens = np.polyval(np.polyfit(self.n, self.d, 2), at)  # no noise in it: at a budget D follows from N
        return at + self.middle, float(tokens), float(np.polyval(curve, at)), bool(opens and low <= best <= high)


def fit_isoflop(
    N: Sequence[float],
    D: Sequence[float],
    budgets: Sequence[float],
    loss: Sequence[float],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> IsoFlopFit:
    """Return the bowls of runs of N parameters and D tokens at their budgets (FLOPs; equal ones make a bowl).

    Budgets of fewer than `LEAST_SIZES` sizes are left out; power laws need two bowls, intervals a spare run.
    """
    groups = _groups(N, D, budgets, loss)
    curves = [np.linalg.lstsq(group.basis(), group.y, rcond=None)[0] for group in groups]
    noise = [leverage_adjusted(g.y - g.basis() @ c, g.basis()) for g, c in zip(groups, curves, strict=True)]
    spare = sum(len(group.y) - 3 for group in groups)
    draws: list[list[tuple[float, float, float, bool]]] = []
    if resamples and spare > 0:
        pool = np.concatenate([part for group, part in zip(groups, noise, strict=True) if len(group.y) > 3])
        chance = np.random.default_rng(seed)
        inverses = [np.linalg.pinv(group.basis()) for group in groups]
        for _ in range(resamples):
            shaken = [chance.choice(pool, len(group.y)) for group in groups]
            moved = [c + inverse @ s for c, inverse, s in zip(curves, inverses, shaken, strict=True)]
            draws.append([group.minimum(curve) for group, curve in zip(groups, moved, strict=True)])
    widening = student_to_normal_ratio(spare)
    made = []
    for i, (group, curve) in enumerate(zip(groups, curves, strict=True)):
        *point, inside = group.minimum(curve)
        values = [
            bootstrap_interval(math.exp(value), [math.exp(draw[i][k]) for draw in draws], widening)
            for k, value in enumerate(point)
        ]
        made.append(IsoFlopCurve(group.budget, tuple(map(float, curve)), group.middle, *values, inside))
    budgets_there = np.log([bowl.budget for bowl in made])
    trends = [_trend(budgets_there, made, draws, name, k, widening) for k, name in enumerate(("N", "D", "loss"))]
    return IsoFlopFit(tuple(made), *trends)


def _groups(N: Sequence[float], D: Sequence[float], budgets: Sequence[float], loss: Sequence[float]) -> list[_Group]:
    """The budgets with enough sizes, in rising order."""
    rows = np.array([budgets, np.log(N), np.log(D), np.log(loss)]).T
    made = []
    for budget in sorted(set(budgets)):
        _, n, d, y = rows[rows[:, 0] == budget].T
        if len(set(n)) >= MIN_CURVE_SIZES:
            made.append(_Group(float(budget), n - n.mean(), d, y, float(n.mean())))
    return made


def _trend(
    x: np.ndarray,
    bowls: Sequence[IsoFlopCurve],
    draws: Sequence[Sequence[tuple]],
    name: str,
    place: int,
    widening: float,
) -> PowerLawFit | None:
    """The power law of one quantity through the minima; None for fewer than two bowls."""
    if len(bowls) < 2:
        return None

    def power(y: Sequence[float]) -> PowerLaw:
        exponent, constant = np.polyfit(x - x.mean(), y, 1)
        return PowerLaw(math.exp(constant - exponent * x.mean()), float(exponent))

    law = power([math.log(getattr(bowl, name).value) for bowl in bowls])
    drawn = tuple(power([minimum[place] for minimum in draw]) for draw in draws)
    exponent = Estimate(law.exponent)
    if drawn:
        low, high = np.quantile([one.exponent - law.exponent for one in drawn], [0.025, 0.975]) * widening
        exponent = Estimate(law.exponent, law.exponent + float(low), law.exponent + float(high))
    return PowerLawFit(law, exponent, drawn, widening)
