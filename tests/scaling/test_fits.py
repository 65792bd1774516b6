"""Tests that the fits recover known laws inside their intervals and resist outliers."""

import math

import numpy as np
import pytest

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
