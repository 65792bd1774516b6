"""Fitting a loss surface and power laws to runs: robust least squares on log losses, with bootstrap intervals.

The one idea: the runs are few and chosen, so what is drawn anew is their noise, not the runs. Residuals, each
widened for the leverage of its run, are shuffled onto the fitted values and everything is fitted again; all
those fits are one batch of the same Levenberg-Marquardt iteration in numpy, so hundreds cost a second.

The loss is Huber's on log L, as in approach 3 of Hoffmann et al. 2022. Theirs turns linear at 1e-3 whatever the
noise; here it turns at 1.345 robust standard deviations, where it keeps 95 % of the efficiency of least squares.

B fits at once, n runs, P coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist

import numpy as np

from fledgling.plan.scaling_laws import ChinchillaLoss

RESAMPLES = 400
ITERATIONS = 200
TUNING = 1.345  # Huber's: 95 % as efficient as least squares where the noise is normal
COEFFICIENTS = ("E", "A", "alpha", "B", "beta")
MIN_RUNS = len(COEFFICIENTS) + 1
EXPONENTS = (0.02, 3.0)  # an exponent outside is no scaling law, and ends a flat valley
STARTS = (0.1, 0.3, 0.6, 1.0)  # exponents to start from
SHARES = (0.2, 0.5, 0.8)  # of the mean loss that E is at a start; then of the rest that A / N^alpha is

ResidualModel = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # (B, P) -> values (B, n), derivatives (B, n, P)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; (nan, nan) where the runs are too few to judge the noise."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def contains(self, value: float) -> bool:
        """Whether the interval holds `value`."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class SurfaceFit:
    """A fitted E + A / N^alpha + B / D^beta: its intervals hold all five coefficients at once in 95 of 100.

    draws: the surfaces of the bootstrap, for intervals of whatever is computed from one; noise: standard deviation
    of log loss around the fit.
    """

    law: ChinchillaLoss
    intervals: dict[str, Estimate]
    bootstrap: tuple[ChinchillaLoss, ...]
    noise: float
    widening: float

    def interval(self, of: Callable[[ChinchillaLoss], float]) -> Estimate:
        """Return a quantity of the surface with its 95 % interval; the quantity must be above zero."""
        value = of(self.law)
        return bootstrap_interval(value, [of(draw) for draw in self.bootstrap], self.widening)


def bootstrap_interval(value: float, draws: Sequence[float], widening: float = 1.0) -> Estimate:
    """Return `value` with the 95 % interval of its draws, on a log scale, widened for few degrees of freedom."""
    if not len(draws):
        return Estimate(value)
    steps = np.log(np.asarray(draws) / value)
    low, high = np.quantile(steps, [0.025, 0.975]) * widening
    return Estimate(value, value * math.exp(low), value * math.exp(high))


def student_to_normal_ratio(freedom: int) -> float:
    """Return how much wider Student's 95 % interval is than the normal one (1 % too narrow at 3, less above).

    The Cornish-Fisher series (Abramowitz and Stegun 26.7.5), to the third order.
    """
    z, v = NormalDist().inv_cdf(0.975), max(1, freedom)
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return 1 + sum(terms) / z


# ---- the iteration -------------------------------------------------------------------------------


def minimize_huber(
    model: ResidualModel, targets: np.ndarray, start: np.ndarray, turn: float, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (B, P) coefficients of least Huber loss and their (B,) losses, by Levenberg-Marquardt.

    targets (B, n) or (1, n); start (B, P); turn: the residual at which the loss turns linear; low, high (P,): box.
    """
    at = np.clip(start, low, high)
    damping = np.full(len(at), 1e-2)
    values, slopes = model(at)
    cost = huber_loss(targets - values, turn)
    for _ in range(ITERATIONS):
        residuals = targets - values
        weights = np.minimum(1.0, turn / np.maximum(np.abs(residuals), 1e-300))  # (B, n)
        weighted = slopes * weights[:, :, None]
        normal = np.einsum("bnp,bnq->bpq", weighted, slopes)
        gradient = np.einsum("bnp,bn->bp", weighted, residuals)
        scale = np.einsum("bpp->bp", normal)
        ridge = damping[:, None] * scale + 1e-12 * scale.max(1, keepdims=True) + 1e-30
        step = np.linalg.solve(normal + ridge[:, :, None] * np.eye(at.shape[1]), gradient[:, :, None])[:, :, 0]
        trial = np.clip(at + step, low, high)
        values_there, slopes_there = model(trial)
        cost_there = huber_loss(targets - values_there, turn)
        better = cost_there < cost
        done = np.abs(trial - at).max(1) < 1e-9
        at = np.where(better[:, None], trial, at)
        values = np.where(better[:, None], values_there, values)
        slopes = np.where(better[:, None, None], slopes_there, slopes)
        cost = np.where(better, cost_there, cost)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
        if (done | (damping >= 1e12)).all():
            break
    return at, cost


def huber_loss(residuals: np.ndarray, turn: float) -> np.ndarray:
    """Return the summed Huber loss (B,) of residuals (B, n): r^2 / 2 up to `turn`, linear beyond."""
    size = np.abs(residuals)
    return np.where(size <= turn, size**2 / 2, turn * (size - turn / 2)).sum(1)


# ---- the surface ---------------------------------------------------------------------------------


def fit_surface(
    N: Sequence[float], D: Sequence[float], loss: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> SurfaceFit:
    """Return the `Surface` fitted to runs of N parameters, D tokens and their losses.

    Needs `LEAST_POINTS` runs, of at least three sizes; with fewer it asserts (`scaling.analysis` tells users).
    """
    n, d, y = (np.log(np.asarray(values, dtype=float)) for values in (N, D, loss))
    assert len(y) >= MIN_RUNS and len(set(N)) > 2, "too few runs to fit five coefficients"
    middle = (n.mean(), d.mean())
    model = _additive(n - middle[0], d - middle[1])
    low = np.array([y.min() - 9.0, y.min() - 15.0, EXPONENTS[0], y.min() - 15.0, EXPONENTS[0]])
    high = np.array([y.max(), y.max(), EXPONENTS[1], y.max(), EXPONENTS[1]])
    starts = np.array(list(_starts(y.mean())))
    found, cost = minimize_huber(model, y[None], starts, math.inf, low, high)
    best = found[[int(cost.argmin())]]
    freedom = len(y) - len(COEFFICIENTS)
    turn = TUNING * _robust(y - model(best)[0][0], freedom)
    nearby = np.concatenate([best, found[np.argsort(cost)[:8]]])
    found, cost = minimize_huber(model, y[None], nearby, turn, low, high)
    best = found[[int(cost.argmin())]]
    fitted, slopes = (part[0] for part in model(best))
    residuals = leverage_adjusted(y - fitted, slopes)
    widening = student_to_normal_ratio(freedom)
    draws = np.empty((0, len(COEFFICIENTS)))
    if resamples and freedom > 0:
        pick = np.random.default_rng(seed).integers(len(y), size=(resamples, len(y)))
        draws, _ = minimize_huber(model, fitted + residuals[pick], np.repeat(best, resamples, 0), turn, low, high)
    law, *others = (_law(row, middle) for row in np.concatenate([best, draws]))
    noise = float(np.sqrt((residuals**2).mean()))
    return SurfaceFit(law, _together(law, others, widening), tuple(others), noise, widening)


def _additive(n: np.ndarray, d: np.ndarray) -> ResidualModel:
    """log(exp(e) + exp(a - alpha n) + exp(b - beta d)) and its derivatives; n and d (n,) are centred logs."""

    def model(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e, a, alpha, b, beta = (column[:, None] for column in at.T)
        parts = np.stack(np.broadcast_arrays(e + 0 * n, a - alpha * n, b - beta * d))  # (3, B, n)
        top = parts.max(0)
        value = top + np.log(np.exp(parts - top).sum(0))
        share = np.exp(parts - value)
        return value, np.stack([share[0], share[1], -share[1] * n, share[2], -share[2] * d], axis=2)

    return model


def _starts(mean: float) -> Iterator[tuple[float, ...]]:
    """Rows (e, a, alpha, b, beta) from which the search begins, for a mean log loss."""
    for alpha, beta, floor, share in product(STARTS, STARTS, SHARES, SHARES):
        rest = math.exp(mean) * (1 - floor)
        yield mean + math.log(floor), math.log(rest * share), alpha, math.log(rest * (1 - share)), beta


def _law(row: np.ndarray, middle: tuple[float, float]) -> ChinchillaLoss:
    """Coefficients of centred logs as the law in N and D."""
    e, a, alpha, b, beta = row
    return ChinchillaLoss(
        *map(float, (np.exp(e), np.exp(a + alpha * middle[0]), alpha, np.exp(b + beta * middle[1]), beta))
    )


def _together(law: ChinchillaLoss, draws: Sequence[ChinchillaLoss], widening: float) -> dict[str, Estimate]:
    """Intervals that hold all coefficients at once in 95 of 100 (A and B on a log scale).

    Each is as many standard deviations wide as the most deviating coefficient of a draw is in 95 % of the draws.
    """
    here = np.array([math.log(v) if k in "AB" else v for k, v in vars(law).items()])
    if not draws:
        return {name: Estimate(getattr(law, name)) for name in COEFFICIENTS}
    there = np.array([[math.log(v) if k in "AB" else v for k, v in vars(draw).items()] for draw in draws])
    deviation = np.maximum((there - here).std(0), 1e-12)
    reach = widening * np.quantile(np.abs((there - here) / deviation).max(1), 0.95)
    made = {}
    for i, name in enumerate(COEFFICIENTS):
        low, high = float(here[i] - reach * deviation[i]), float(here[i] + reach * deviation[i])
        low, high = (math.exp(low), math.exp(high)) if name in "AB" else (low, high)
        made[name] = Estimate(getattr(law, name), low, high)
    return made


def _robust(residuals: np.ndarray, freedom: int) -> float:
    """A standard deviation that a few outliers do not move: from the median size, for the fit's freedom."""
    size = 1.4826 * float(np.median(np.abs(residuals))) * math.sqrt(len(residuals) / max(1, freedom))
    return max(size, 1e-9)


def leverage_adjusted(residuals: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Residuals (n,) as large as the noise: a run the fit leans on, h of itself, shows only sqrt(1 - h) of it."""
    q = np.linalg.svd(slopes, full_matrices=False)[0]
    leverage = np.minimum((q**2).sum(1), 0.99)
    wide = residuals / np.sqrt(1 - leverage)
    return wide - wide.mean()
