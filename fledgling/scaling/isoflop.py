"""Fits isoFLOP curves to runs, and power laws to their minima (approach 2 of Hoffmann et al.), with intervals.

As in `fledgling.scaling.fits`, the bootstrap resamples the noise of the runs, not the runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fledgling.evals.intervals import student_to_normal_ratio
from fledgling.plan.scaling_laws import PowerLaw
from fledgling.scaling.fits import RESAMPLES, Estimate, Values, adjust_for_leverage, bootstrap_interval

MIN_CURVE_SIZES = 3  # of a curve: a parabola has three coefficients
MAX_EXTRAPOLATION = math.log(4)  # in log N: how far outside the trained sizes a minimum may lie


@dataclass(frozen=True)
class IsoFlopCurve:
    """One budget: log L as a parabola in log N (centered at `center`), and its minimum.

    is_interior: the parabola opens upward and its minimum lies between the smallest and the largest trained size.
    """

    budget: float
    coefficients: tuple[float, float, float]  # of (log N - center)^2, its first power, and 1
    center: float
    N: Estimate
    D: Estimate
    loss: Estimate
    is_interior: bool

    def loss_at(self, N: float) -> float:
        """Returns the parabola's loss at N."""
        return math.exp(float(np.polyval(self.coefficients, math.log(N) - self.center)))


@dataclass(frozen=True)
class PowerLawFit:
    """A power law of C through the minima of the curves, with the interval of its exponent and its bootstrap fits."""

    law: PowerLaw
    exponent: Estimate
    bootstrap: tuple[PowerLaw, ...]
    widening: float

    def value_at(self, C: float) -> Estimate:
        """Returns the law's value at C with its 95 % interval."""
        return bootstrap_interval(self.law(C), [draw(C) for draw in self.bootstrap], self.widening)


@dataclass(frozen=True)
class IsoFlopFit:
    """The curves of a sweep in rising order of budget, and the power laws N_opt, D_opt and L_min of C."""

    curves: tuple[IsoFlopCurve, ...]
    N: PowerLawFit | None
    D: PowerLawFit | None
    loss: PowerLawFit | None


@dataclass(frozen=True)
class _Group:
    """The runs of one budget, as logarithms."""

    budget: float
    n: np.ndarray  # log N - center
    d: np.ndarray
    y: np.ndarray
    center: float

    def basis(self) -> np.ndarray:
        """Returns the terms of the parabola, (n, 3)."""
        return np.vander(self.n, 3)

    @functools.cached_property
    def tokens_by_size(self) -> np.ndarray:
        """log D as a parabola in `n`, without noise: at a fixed budget D follows from N."""
        return np.polyfit(self.n, self.d, 2)

    def minimum(self, curve: np.ndarray) -> tuple[float, float, float, bool]:
        """Returns (log N, log D, log L) at a parabola's minimum, limited by MAX_EXTRAPOLATION, and `is_interior`."""
        opens = curve[0] > 0
        low, high = self.n.min(), self.n.max()
        best = (
            -curve[1] / (2 * curve[0]) if opens else (low if np.polyval(curve, low) < np.polyval(curve, high) else high)
        )
        at = float(np.clip(best, low - MAX_EXTRAPOLATION, high + MAX_EXTRAPOLATION))
        tokens = np.polyval(self.tokens_by_size, at)
        return at + self.center, float(tokens), float(np.polyval(curve, at)), bool(opens and low <= best <= high)


def fit_isoflop(
    N: Values, D: Values, budgets: Values, loss: Values, resamples: int = RESAMPLES, seed: int = 0
) -> IsoFlopFit:
    """Returns a parabola through log loss over log N for each budget, and power laws through their minima.

    At a fixed budget a model can be too small to learn or too large to be trained long enough; between them lies a
    minimum, and the minima of several budgets lie on a power law (approach 2 of Hoffmann et al. 2022). The parabola is
    only an approximation of the loss near the minimum.

    The noise of all curves is pooled: one curve of four sizes has a single degree of freedom, three have three. As for
    the surface, the pooled residuals are drawn with replacement and everything is fitted again for the intervals.

    Power laws need two curves, intervals a spare run.

    budgets: FLOPs of each run; equal ones form a curve, of at least `MIN_CURVE_SIZES` sizes.
    The other arguments are those of `fits.fit_surface`.
    """
    groups = _group_by_budget(N, D, budgets, loss)
    coefficients = [np.linalg.lstsq(group.basis(), group.y, rcond=None)[0] for group in groups]
    residuals = [adjust_for_leverage(g.y - g.basis() @ c, g.basis()) for g, c in zip(groups, coefficients, strict=True)]
    spare = sum(len(group.y) - 3 for group in groups)
    samples: list[list[tuple[float, float, float, bool]]] = []
    if resamples and spare > 0:
        pool = np.concatenate([part for group, part in zip(groups, residuals, strict=True) if len(group.y) > 3])
        rng = np.random.default_rng(seed)
        inverses = [np.linalg.pinv(group.basis()) for group in groups]
        for _ in range(resamples):
            resampled = [rng.choice(pool, len(group.y)) for group in groups]
            refitted = [c + inverse @ s for c, inverse, s in zip(coefficients, inverses, resampled, strict=True)]
            samples.append([group.minimum(parabola) for group, parabola in zip(groups, refitted, strict=True)])
    widening = student_to_normal_ratio(spare)
    curves = []
    for i, (group, parabola) in enumerate(zip(groups, coefficients, strict=True)):
        *minimum, is_interior = group.minimum(parabola)
        N_best, D_best, loss_best = (
            bootstrap_interval(math.exp(value), [math.exp(sample[i][k]) for sample in samples], widening)
            for k, value in enumerate(minimum)
        )
        a, b, c = map(float, parabola)
        curves.append(IsoFlopCurve(group.budget, (a, b, c), group.center, N_best, D_best, loss_best, is_interior))
    x = np.log([curve.budget for curve in curves])
    N_trend, D_trend, loss_trend = (
        _fit_trend(x, curves, samples, name, k, widening) for k, name in enumerate(("N", "D", "loss"))
    )
    return IsoFlopFit(tuple(curves), N_trend, D_trend, loss_trend)


def _group_by_budget(N: Values, D: Values, budgets: Values, loss: Values) -> list[_Group]:
    """Returns the budgets with enough sizes, in rising order."""
    rows = np.array([budgets, np.log(N), np.log(D), np.log(loss)]).T
    groups = []
    for budget in sorted(set(budgets)):
        _, n, d, y = rows[rows[:, 0] == budget].T
        if len(set(n)) >= MIN_CURVE_SIZES:
            groups.append(_Group(float(budget), n - n.mean(), d, y, float(n.mean())))
    return groups


def _fit_trend(
    x: np.ndarray,
    curves: Sequence[IsoFlopCurve],
    samples: Sequence[Sequence[tuple]],
    name: str,
    index: int,
    widening: float,
) -> PowerLawFit | None:
    """Returns the power law of one quantity through the minima of all curves; None for fewer than two.

    Curves whose minimum lies outside the trained sizes count too.

    Args:
        x: log FLOPs of each curve.
        curves: with their minima.
        samples: the minima of each bootstrap fit.
        name: of the quantity in `IsoFlopCurve`.
        index: of the quantity in a minimum of `samples`.
        widening: of the interval.
    """
    if len(curves) < 2:
        return None

    def power(y: Sequence[float]) -> PowerLaw:
        exponent, constant = np.polyfit(x - x.mean(), y, 1)
        return PowerLaw(math.exp(constant - exponent * x.mean()), float(exponent))

    law = power([math.log(getattr(curve, name).value) for curve in curves])
    bootstrap = tuple(power([minimum[index] for minimum in sample_minima]) for sample_minima in samples)
    exponent = Estimate(law.exponent)
    if bootstrap:
        low, high = np.quantile([sample.exponent - law.exponent for sample in bootstrap], [0.025, 0.975]) * widening
        exponent = Estimate(law.exponent, law.exponent + float(low), law.exponent + float(high))
    return PowerLawFit(law, exponent, bootstrap, widening)
