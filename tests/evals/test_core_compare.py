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


def test_the_difference_of_means_over_categories_is_in_its_interval():
    """180 and 20 items: over plain items the difference is .10, of the mean over both categories .5."""
    categories = np.repeat([0, 1], [180, 20])
    a = np.concatenate([np.tile([1.0, 0.0], 90), np.zeros(20)])
    b = np.concatenate([np.tile([1.0, 0.0], 90), np.ones(20)])
    b[:2] = 0.0
    difference = paired_difference("x", a, b, categories=categories)
    assert (difference.a, difference.b) == (pytest.approx(0.25), pytest.approx((89 / 180 + 1) / 2))
    assert difference.low < difference.value < difference.high and difference.p < 0.01
    assert difference.low > 0.48 and difference.high < 0.51
    opposed = paired_difference("x", np.concatenate([a[:180], np.ones(20)]), 1 - a, categories=categories)
    assert opposed.value == 0 and opposed.low < 0 < opposed.high and opposed.p > 0.5


def test_core_of_tasks_with_categories_is_in_its_interval(core_engine, core_tokenizer, core_tasks, tmp_path):
    a, b, other = (tmp_path / f"{name}.jsonl" for name in "abc")
    settings = CoreSettings(convention="foundry")
    run_logged(core_engine, core_tasks, a, settings)
    engine = Engine(make_random_model(core_tokenizer.vocab_size, seed=5), core_tokenizer)
    results = run_logged(engine, core_tasks, b, settings)
    for difference in compare_core_logs(a, b):
        assert difference.low <= difference.value + 1e-9 and difference.value - 1e-9 <= difference.high
    assert {d.name: d.b for d in compare_core_logs(a, b)[1:]} == {r.label: pytest.approx(r.accuracy) for r in results}
    run_logged(engine, core_tasks, other)
    with pytest.raises(UserError, match="has --convention foundry"):
        compare_core_logs(a, other)


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
