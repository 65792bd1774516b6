"""Tests the loss against steps and batch size: published relations and their consistency."""

import math

import pytest

from fledgling.plan import critical_batch
from fledgling.plan.critical_batch import ALPHA_N, ALPHA_S, N_C, S_C, critical_batch_size


def loss_after_steps(N: float, S_min: float) -> float:
    """Returns L(N, S_min), nats per token, of N parameters after S_min steps of a batch far above B_crit."""
    return (N_C / N) ** ALPHA_N + (S_C / S_min) ** ALPHA_S


def test_the_optimal_run_is_the_minimum_of_the_learning_curves():
    best = critical_batch.optimal_run(1e20)
    assert pytest.approx(1e20) == best.C == pytest.approx(6 * best.N * best.D)
    assert critical_batch_size(best.loss) == best.B and pytest.approx(best.B * best.S) == best.D
    assert best.loss == pytest.approx((1 + ALPHA_N / ALPHA_S) * (N_C / best.N) ** ALPHA_N)
    assert loss_after_steps(best.N, best.S) == pytest.approx(best.loss)
    power = math.log10(critical_batch.optimal_run(1e21).N / best.N)
    assert power == pytest.approx(critical_batch.ALPHA_C / ALPHA_N) == pytest.approx(0.68, abs=0.01)
    assert pytest.approx(0.052, abs=5e-4) == critical_batch.ALPHA_C  # equation B.7
    for factor in (0.5, 2.0):  # the same FLOPs on another size, at the same batch: worse
        other = best.N * factor
        assert loss_after_steps(other, 1e20 / (6 * other * best.B)) > best.loss
