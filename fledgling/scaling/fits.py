"""Fits loss surfaces to runs: robust least squares on log losses, with bootstrap intervals.

Runs are few and their sizes are chosen, so the bootstrap resamples their noise, not the runs: residuals, each corrected
for the leverage of its run, are drawn with replacement, added to the fitted values, and everything is fitted again; all
those fits are one batch of the same Levenberg-Marquardt iteration in numpy, so hundreds take a second.

The loss is Huber's on log L, as in approach 3 of Hoffmann et al. 2022. Theirs becomes linear at 1e-3 for any noise;
here it does so at 1.345 robust standard deviations, where it keeps 95 % of the efficiency of least squares.

B simultaneous fits, n runs, P coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from fledgling.evals.intervals import student_to_normal_ratio
from fledgling.plan.scaling_laws import ChinchillaLoss

RESAMPLES = 400
ITERATIONS = 200
TUNING = 1.345  # Huber: 95 % of the efficiency of least squares for normal noise
COEFFICIENTS = ("E", "A", "alpha", "B", "beta")
MIN_RUNS = len(COEFFICIENTS) + 1
EXPONENTS = (0.02, 3.0)  # excludes exponents of no plausible law and flat valleys
STARTS = (0.1, 0.3, 0.6, 1.0)  # start values of the exponents
SHARES = (0.2, 0.5, 0.8)  # start values: E as a share of the mean loss, A / N^alpha as a share of the rest

Values = Sequence[float] | np.ndarray
ResidualModel = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # (B, P) -> values (B, n), derivatives (B, n, P)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; (nan, nan) if the runs are too few to estimate the noise."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def contains(self, value: float) -> bool:
        """Returns whether the interval contains `value`."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class SurfaceFit:
    """A fitted E + A / N^alpha + B / D^beta; its intervals contain all five coefficients at once in 95 of 100.

    bootstrap: the refitted surfaces, for intervals of derived quantities; noise: standard deviation of log loss.
    """

    law: ChinchillaLoss
    intervals: dict[str, Estimate]
    bootstrap: tuple[ChinchillaLoss, ...]
    noise: float
    widening: float

    def interval(self, quantity: Callable[[ChinchillaLoss], float]) -> Estimate:
        """Returns a quantity of the surface with its 95 % interval; the quantity must be above zero."""
        value = quantity(self.law)
        return bootstrap_interval(value, [quantity(law) for law in self.bootstrap], self.widening)


def bootstrap_interval(value: float, samples: Values, widening: float = 1.0) -> Estimate:
    """Returns `value` with the 95 % interval of its samples, on a log scale, times `widening`."""
    if not len(samples):
        return Estimate(value)
    log_ratios = np.log(np.asarray(samples) / value)
    low, high = np.quantile(log_ratios, [0.025, 0.975]) * widening
    return Estimate(value, value * math.exp(low), value * math.exp(high))


# ---- the iteration ----


def minimize_huber(
    model: ResidualModel, targets: np.ndarray, start: np.ndarray, delta: float, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns coefficients (B, P) of least Huber loss and their losses (B,), by Levenberg-Marquardt.

    Args:
        model: maps coefficients (B, P) to values (B, n) and derivatives (B, n, P).
        targets: (B, n) or (1, n).
        start: (B, P).
        delta: the residual at which the loss becomes linear.
        low, high: (P,), the bounds of the coefficients.
    """
    coefficients = np.clip(start, low, high)
    damping = np.full(len(coefficients), 1e-2)
    values, slopes = model(coefficients)
    cost = huber_loss(targets - values, delta)
    for _ in range(ITERATIONS):
        residuals = targets - values
        weights = np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))  # (B, n)
        weighted = slopes * weights[:, :, None]
        transposed = weighted.transpose(0, 2, 1)  # (B, P, n)
        normal, gradient = transposed @ slopes, transposed @ residuals[:, :, None]
        diagonal = np.diagonal(normal, axis1=1, axis2=2)
        ridge = damping[:, None] * diagonal + 1e-12 * diagonal.max(1, keepdims=True) + 1e-30
        step = np.linalg.solve(normal + ridge[:, :, None] * np.eye(coefficients.shape[1]), gradient)[:, :, 0]
        trial = np.clip(coefficients + step, low, high)
        trial_values, trial_slopes = model(trial)
        trial_cost = huber_loss(targets - trial_values, delta)
        better = trial_cost < cost
        converged = np.abs(trial - coefficients).max(1) < 1e-9
        coefficients = np.where(better[:, None], trial, coefficients)
        values = np.where(better[:, None], trial_values, values)
        slopes = np.where(better[:, None, None], trial_slopes, slopes)
        cost = np.where(better, trial_cost, cost)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
        if (converged | (damping >= 1e12)).all():
            break
    return coefficients, cost


def huber_loss(residuals: np.ndarray, delta: float) -> np.ndarray:
    """Returns the summed Huber loss (B,) of residuals (B, n): r^2 / 2 up to `delta`, linear beyond."""
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum(1)


# ---- the surface ----


def fit_surface(N: Values, D: Values, loss: Values, resamples: int = RESAMPLES, seed: int = 0) -> SurfaceFit:
    """Returns the `SurfaceFit` of runs.

    Needs `MIN_RUNS` runs, of at least three sizes, which it asserts (`fledgling.scaling.analysis` reports it to users).

    Args:
        N: parameters of each run.
        D: tokens of each run.
        loss: of each run.
        resamples: of the bootstrap; 0: no intervals.
        seed: of the bootstrap.
    """
    n, d, y = (np.log(np.asarray(values, dtype=float)) for values in (N, D, loss))
    assert len(y) >= MIN_RUNS and len(set(N)) > 2, "too few runs to fit five coefficients"
    center = (n.mean(), d.mean())
    model = _make_additive_model(n - center[0], d - center[1])
    low = np.array([y.min() - 9.0, y.min() - 15.0, EXPONENTS[0], y.min() - 15.0, EXPONENTS[0]])
    high = np.array([y.max(), y.max(), EXPONENTS[1], y.max(), EXPONENTS[1]])
    starts = np.array(list(_list_start_values(y.mean())))
    candidates, cost = minimize_huber(model, y[None], starts, math.inf, low, high)
    best = candidates[[int(cost.argmin())]]
    degrees = len(y) - len(COEFFICIENTS)
    delta = TUNING * _estimate_deviation(y - model(best)[0][0], degrees)
    restarts = np.concatenate([best, candidates[np.argsort(cost)[:8]]])
    candidates, cost = minimize_huber(model, y[None], restarts, delta, low, high)
    best = candidates[[int(cost.argmin())]]
    fitted, slopes = (part[0] for part in model(best))
    residuals = adjust_for_leverage(y - fitted, slopes)
    widening = student_to_normal_ratio(degrees)
    samples = np.empty((0, len(COEFFICIENTS)))
    if resamples and degrees > 0:
        indices = np.random.default_rng(seed).integers(len(y), size=(resamples, len(y)))
        samples, _ = minimize_huber(model, fitted + residuals[indices], np.repeat(best, resamples, 0), delta, low, high)
    law, *bootstrap = (_make_law(row, center) for row in np.concatenate([best, samples]))
    noise = float(np.sqrt((residuals**2).mean()))
    return SurfaceFit(law, _compute_joint_intervals(law, bootstrap, widening), tuple(bootstrap), noise, widening)


def _make_additive_model(n: np.ndarray, d: np.ndarray) -> ResidualModel:
    """Returns log(exp(e) + exp(a - alpha n) + exp(b - beta d)) with derivatives; n, d (n,): centered logarithms."""

    def model(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e, a, alpha, b, beta = (column[:, None] for column in coefficients.T)
        parts = np.stack(np.broadcast_arrays(e + 0 * n, a - alpha * n, b - beta * d))  # (3, B, n)
        maximum = parts.max(0)
        value = maximum + np.log(np.exp(parts - maximum).sum(0))
        weights = np.exp(parts - value)
        return value, np.stack([weights[0], weights[1], -weights[1] * n, weights[2], -weights[2] * d], axis=2)

    return model


def _list_start_values(mean: float) -> Iterator[tuple[float, ...]]:
    """Yields start values (e, a, alpha, b, beta) for a mean log loss."""
    for alpha, beta, floor_share, size_share in product(STARTS, STARTS, SHARES, SHARES):
        rest = math.exp(mean) * (1 - floor_share)
        yield mean + math.log(floor_share), math.log(rest * size_share), alpha, math.log(rest * (1 - size_share)), beta


def _make_law(row: np.ndarray, center: tuple[float, float]) -> ChinchillaLoss:
    """Returns the coefficients of centered logarithms as the law in N and D."""
    e, a, alpha, b, beta = row
    return ChinchillaLoss(
        *map(float, (np.exp(e), np.exp(a + alpha * center[0]), alpha, np.exp(b + beta * center[1]), beta))
    )


def _compute_joint_intervals(
    law: ChinchillaLoss, bootstrap: Sequence[ChinchillaLoss], widening: float
) -> dict[str, Estimate]:
    """Returns intervals that contain all coefficients at once in 95 of 100 (A and B on a log scale).

    Each is as many standard deviations wide as the most deviating coefficient of a sample is in 95 % of the samples.
    """
    fitted = np.array([math.log(v) if k in "AB" else v for k, v in vars(law).items()])
    if not bootstrap:
        return {name: Estimate(getattr(law, name)) for name in COEFFICIENTS}
    samples = np.array([[math.log(v) if k in "AB" else v for k, v in vars(sample).items()] for sample in bootstrap])
    deviation = np.maximum((samples - fitted).std(0), 1e-12)
    reach = widening * np.quantile(np.abs((samples - fitted) / deviation).max(1), 0.95)
    intervals = {}
    for i, name in enumerate(COEFFICIENTS):
        low, high = float(fitted[i] - reach * deviation[i]), float(fitted[i] + reach * deviation[i])
        low, high = (math.exp(low), math.exp(high)) if name in "AB" else (low, high)
        intervals[name] = Estimate(getattr(law, name), low, high)
    return intervals


def _estimate_deviation(residuals: np.ndarray, degrees: int) -> float:
    """Returns a standard deviation from the median absolute residual, corrected for the degrees of freedom."""
    deviation = 1.4826 * float(np.median(np.abs(residuals))) * math.sqrt(len(residuals) / max(1, degrees))
    return max(deviation, 1e-9)


def adjust_for_leverage(residuals: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Returns residuals (n,) at the scale of the noise, with mean 0: a run of leverage h shows only sqrt(1 - h) of it.

    slopes: derivatives of the fitted values by the coefficients (n, P).
    """
    q = np.linalg.svd(slopes, full_matrices=False)[0]
    leverage = np.minimum((q**2).sum(1), 0.99)
    adjusted = residuals / np.sqrt(1 - leverage)
    return adjusted - adjusted.mean()
