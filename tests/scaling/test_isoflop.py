"""Tests that isoFLOP curves find known minima, and that their power laws have the true exponent inside the interval."""

import math

import numpy as np
import pytest

from fledgling.plan.scaling_laws import ChinchillaLoss
from fledgling.scaling.isoflop import fit_isoflop


def isoflop_runs(noise: float, seed: int = 0):
    law = ChinchillaLoss(1.8172, 482.01, 0.3478, 2085.43, 0.3658)
    rows = [(law.optimum(C)[0] * k, C) for C in (1e18, 4e18, 1.6e19) for k in np.geomspace(0.4, 2.5, 5)]
    N, C = np.array(rows).T
    D = C / (6 * N)
    exact = np.array([law.loss(n, d) for n, d in zip(N, D, strict=True)])
    return law, N, D, C, exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))


def test_isoflop_curves_find_the_optimum_and_its_exponent():
    law, *runs = isoflop_runs(1e-6)
    found = fit_isoflop(*runs)
    for curve in found.curves:
        N, D = law.optimum(curve.budget)
        assert curve.is_interior
        assert (curve.N.value, curve.D.value) == (pytest.approx(N, rel=0.02), pytest.approx(D, rel=0.02))
        assert curve.loss.value == pytest.approx(law.loss(N, D), rel=1e-3) == curve.loss_at(curve.N.value)
    assert found.N.exponent.value == pytest.approx(law.beta / (law.alpha + law.beta), abs=0.003)


def test_the_interval_of_the_exponent_contains_it():
    inside = 0
    for seed in range(10):
        law, *runs = isoflop_runs(0.002, seed)
        inside += fit_isoflop(*runs, resamples=200, seed=seed).N.exponent.contains(law.beta / (law.alpha + law.beta))
    assert inside >= 8


def test_a_monotonic_curve_has_no_interior_minimum():
    N = np.array([1.0, 2.0, 4.0, 8.0]) * 1e6
    falling = 3.0 - 0.1 * np.log(N / 1e6)
    (curve_value,) = fit_isoflop(N, 1e15 / N, [1e16] * 4, falling).curves
    assert not curve_value.is_interior and curve_value.N.value > 7.9e6


def test_three_sizes_leave_no_degrees_of_freedom_for_intervals():
    _, N, D, C, loss = isoflop_runs(0.002)
    keep = [i for i in range(len(N)) if i % 5 in (0, 2, 4)]
    found = fit_isoflop(N[keep], D[keep], C[keep], loss[keep])
    assert math.isnan(found.curves[0].N.low) and found.N is not None
