"""Tests the loss against steps and batch size: published relations and their consistency."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.plan import critical_batch


def test_the_optimal_run_is_the_minimum_of_the_learning_curves():
    best = critical_batch.optimal_run(1e20)
    assert pytest.approx(1e20) == best.C
    assert best.loss == pytest.approx(
        (1 + critical_batch.ALPHA_N / critical_batch.ALPHA_S) * (critical_batch.N_C / best.N) ** critical_batch.ALPHA_N
    )
    assert critical_batch.loss_after_steps(best.N, best.S) == pytest.approx(best.loss)
    power = math.log10(critical_batch.optimal_run(1e21).N / best.N)
    assert power == pytest.approx(critical_batch.ALPHA_C / critical_batch.ALPHA_N) == pytest.approx(0.68, abs=0.01)
    assert pytest.approx(0.052, abs=5e-4) == critical_batch.ALPHA_C  # equation B.7
    for factor in (0.5, 2.0):  # the same FLOPs on another size, at the same batch: worse
        other = best.N * factor
        assert critical_batch.loss_after_steps(other, 1e20 / (6 * other * best.B)) > best.loss


@given(N=st.floats(1e5, 1e12), B=st.floats(1e3, 1e8), S=st.floats(1e3, 1e6))
def test_a_solved_run_is_self_consistent(N, B, S):
    run = critical_batch.solve_run(N, B, S)
    assert critical_batch.loss_after_steps(N, run.S_min) == pytest.approx(run.loss, rel=1e-9)
    assert run.D == B * S and pytest.approx(6 * N * B * S) == run.C
    assert run.C_min / run.C + run.S_min / run.S == pytest.approx(1)  # equations 5.4 and 5.5 share one trade-off
    assert critical_batch.solve_run(N, B, 2 * S).loss < run.loss


def test_at_the_critical_batch_steps_and_compute_are_twice_the_minimum():
    run = critical_batch.KaplanRun(1e9, critical_batch.critical_batch_size(2.5), 1e5, 2.5)
    assert pytest.approx(2 * run.S_min) == run.S and pytest.approx(2 * run.C_min) == run.C
