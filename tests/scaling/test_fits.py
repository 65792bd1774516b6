"""Tests that the fits recover known laws inside their intervals, resist outliers, and find minima."""

import math

import numpy as np
import pytest

from fledgling.plan.scaling_laws import ChinchillaLoss
from fledgling.scaling import fits
from fledgling.scaling.recovery import TRUTH, make_synthetic_sweep


def test_without_noise_the_exact_law_is_recovered():
    N, D, loss = make_synthetic_sweep(0, noise=1e-9)
    found = fits.fit_surface(N, D, loss, resamples=0).law
    for name in fits.COEFFICIENTS:
        assert getattr(found, name) == pytest.approx(getattr(TRUTH, name), rel=1e-3)


def test_intervals_grow_with_the_noise():
    N, D, loss = make_synthetic_sweep(1)
    intervals = fits.fit_surface(N, D, loss).intervals
    assert all(0 < i.high - i.low < 0.2 for i in (intervals["alpha"], intervals["beta"], intervals["E"]))
    wide = fits.fit_surface(*make_synthetic_sweep(1, noise=0.02)).intervals["alpha"]
    assert wide.high - wide.low > 3 * (intervals["alpha"].high - intervals["alpha"].low)


def test_one_outlier_hardly_changes_the_surface():
    N, D, loss = make_synthetic_sweep(2, noise=0.002)
    clean = fits.fit_surface(N, D, loss, resamples=0).law
    loss[17] *= 1.25
    bad = fits.fit_surface(N, D, loss, resamples=0).law
    assert bad.alpha == pytest.approx(clean.alpha, rel=0.03) and pytest.approx(clean.E, rel=0.02) == bad.E


def test_the_same_runs_give_the_same_fit():
    runs = make_synthetic_sweep(3)
    assert fits.fit_surface(*runs, resamples=20).intervals == fits.fit_surface(*runs, resamples=20).intervals


def test_minimize_huber_fits_a_line_and_resists_an_outlier():
    x = np.arange(5.0)

    def line(at):
        return at[:, :1] + at[:, 1:] * x, np.stack(np.broadcast_arrays(np.ones(5), x), -1)[None].repeat(len(at), 0)

    box = np.array([-9.0, -9.0]), np.array([9.0, 9.0])
    targets = (1 + 2 * x)[None]
    found, cost = fits.minimize_huber(line, targets, np.zeros((3, 2)), math.inf, *box)
    assert np.allclose(found, [1, 2], atol=1e-6) and (cost < 1e-10).all()
    targets[0, 4] += 5
    found, _ = fits.minimize_huber(line, targets, np.zeros((1, 2)), 0.01, *box)
    assert np.allclose(found, [1, 2], atol=0.05)


def isoflop_runs(noise: float, seed: int = 0):
    law = ChinchillaLoss(1.8172, 482.01, 0.3478, 2085.43, 0.3658)
    rows = [(law.optimum(C)[0] * k, C) for C in (1e18, 4e18, 1.6e19) for k in np.geomspace(0.4, 2.5, 5)]
    N, C = np.array(rows).T
    D = C / (6 * N)
    exact = np.array([law.loss(n, d) for n, d in zip(N, D, strict=True)])
    return law, N, D, C, exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))


def test_isoflop_curves_find_the_optimum_and_its_exponent():
    law, *runs = isoflop_runs(1e-6)
    found = fits.fit_isoflop(*runs)
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
        inside += fits.fit_isoflop(*runs, resamples=200, seed=seed).N.exponent.contains(
            law.beta / (law.alpha + law.beta)
        )
    assert inside >= 8


def test_a_monotonic_curve_has_no_interior_minimum():
    N = np.array([1.0, 2.0, 4.0, 8.0]) * 1e6
    falling = 3.0 - 0.1 * np.log(N / 1e6)
    (curve_value,) = fits.fit_isoflop(N, 1e15 / N, [1e16] * 4, falling).curves
    assert not curve_value.is_interior and curve_value.N.value > 7.9e6


def test_three_sizes_leave_no_degrees_of_freedom_for_intervals():
    _, N, D, C, loss = isoflop_runs(0.002)
    keep = [i for i in range(len(N)) if i % 5 in (0, 2, 4)]
    found = fits.fit_isoflop(N[keep], D[keep], C[keep], loss[keep])
    assert math.isnan(found.curves[0].N.low) and found.N is not None
