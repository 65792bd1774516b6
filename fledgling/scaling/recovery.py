"""Tests the fitter on synthetic runs of a known law: how often do the intervals contain the true coefficients?

An interval that claims 95 of 100 can be tried 100 times. The true law is the 2024 re-fit, the runs are placed as in an
isoFLOP sweep (sizes around the optimum of each budget), their losses have log-normal noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fledgling.plan.scaling_laws import REFIT, ChinchillaLoss
from fledgling.scaling import fits

TRUTH = REFIT
BUDGETS = tuple(np.geomspace(1e18, 1e21, 5))
SIZES = tuple(np.geomspace(1 / 6, 6, 7))  # times the optimum of the budget
NOISE = 0.003  # standard deviation of log loss; about that between seeds of one recipe in small runs


@dataclass(frozen=True)
class Recovery:
    """How many of `seeds` sweeps had the true values inside: each coefficient's interval, and all five at once."""

    seeds: int
    all_five: int
    each: dict[str, int]
    runs: int
    noise: float


def make_synthetic_sweep(
    seed: int, noise: float = NOISE, truth: ChinchillaLoss = TRUTH
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (N, D, loss) of a synthetic sweep, each (runs,)."""
    pairs = np.array([(truth.optimum(C)[0] * size, C) for C in BUDGETS for size in SIZES])
    N, D = pairs[:, 0], pairs[:, 1] / (6 * pairs[:, 0])
    exact = np.array([truth.loss(n, d) for n, d in zip(N, D, strict=True)])
    return N, D, exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(exact)))


def run_recovery(seeds: int, noise: float = NOISE, on_seed: Callable[[int, int], None] | None = None) -> Recovery:
    """Fits `seeds` synthetic sweeps and counts the true values inside; on_seed: (seeds done, all five inside)."""
    each, all_five, runs = dict.fromkeys(fits.COEFFICIENTS, 0), 0, 0
    for seed in range(seeds):
        N, D, loss = make_synthetic_sweep(seed, noise)
        intervals = fits.fit_surface(N, D, loss, seed=seed).intervals
        inside = {name: intervals[name].contains(getattr(TRUTH, name)) for name in fits.COEFFICIENTS}
        each = {name: count + inside[name] for name, count in each.items()}
        all_five += all(inside.values())
        runs = len(N)
        if on_seed:
            on_seed(seed + 1, all_five)
    return Recovery(seeds, all_five, each, runs, noise)
