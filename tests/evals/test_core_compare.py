"""Comparison of two CORE logs: McNemar's test, paired intervals, and equal items."""

import numpy as np
import pytest

from fledgling.config import UserError
from fledgling.evals.core_compare import compare_core_logs, mcnemar_p_value, paired_difference
from fledgling.evals.core_results import CoreSettings, compute_core
from fledgling.infer.engine import Engine
from tests.evals.random_model import make_random_model
from tests.evals.test_core_log import run_logged


def test_mcnemar_is_the_binomial_test():
    assert mcnemar_p_value(0, 0) == 1.0 and mcnemar_p_value(5, 5) == 1.0
    assert mcnemar_p_value(1, 9) == pytest.approx(2 * 11 / 1024)  # 2 * (1 + 10) / 2^10
    assert mcnemar_p_value(9, 1) == mcnemar_p_value(1, 9)


def test_a_paired_interval_is_narrower_than_two_wide_ones():
    a = np.array([1.0] * 60 + [0.0] * 40)
    b = a.copy()
    b[60:66] = 1.0
    difference = paired_difference("x", a, b)
    assert (difference.only_a, difference.only_b, round(difference.value, 3)) == (
        0,
        6,
        0.06,
    ) and difference.p == pytest.approx(2 / 64)
    assert 0 < difference.low < 0.06 < difference.high < 0.12


def test_a_paired_difference_over_passages_is_wider_than_over_their_items():
    rng = np.random.default_rng(0)
    gain = np.repeat(rng.choice([-1.0, 0.0, 1.0], 40, p=[0.1, 0.6, 0.3]), 5)
    a, b = (gain < 0).astype(float), (gain > 0).astype(float)
    separate = paired_difference("x", a, b)
    shared = paired_difference("x", a, b, np.repeat(np.arange(40), 5))
    assert (separate.clusters, shared.clusters, shared.value) == (200, 40, separate.value)
    assert shared.high - shared.low > 1.8 * (separate.high - separate.low) and shared.p > separate.p


def test_two_logs_are_compared_item_by_item(core_engine, core_tokenizer, core_tasks, tmp_path):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first = run_logged(core_engine, core_tasks, a)
    second = run_logged(Engine(make_random_model(core_tokenizer.vocab_size, seed=5), core_tokenizer), core_tasks, b)
    differences = {d.name: d for d in compare_core_logs(a, b)}
    assert differences["core"].value == pytest.approx(compute_core(second).value - compute_core(first).value)
    assert differences["core"].low <= differences["core"].value <= differences["core"].high
    for one, other in zip(first, second, strict=True):
        assert differences[one.label].value == pytest.approx(other.accuracy - one.accuracy)
    same = compare_core_logs(a, a)
    assert all((d.value, d.low, d.high, d.p) == (0, 0, 0, 1) for d in same)
    cut = tmp_path / "cut.jsonl"
    run_logged(core_engine, core_tasks, cut, CoreSettings(2))
    with pytest.raises(UserError, match="have different items"):
        compare_core_logs(a, cut)
