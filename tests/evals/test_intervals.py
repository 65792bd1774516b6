"""Intervals over clusters: as wide as theory says, and as often right as they say."""

import numpy as np
import pytest

from fledgling.evals.intervals import (
    combine_intervals,
    number_clusters,
    ratio_interval,
    resample_clusters,
    share_interval,
    student_to_normal_ratio,
    sum_by_cluster,
)
from fledgling.evals.measurement import wilson_interval


def make_answers(rng, wordings: int, each: int, mean: float, spread: float) -> np.ndarray:
    """Returns (wordings * each,) scores; the accuracy of a wording is drawn from a beta distribution.

    spread: the correlation of two answers in one wording.
    """
    scale = (1 - spread) / spread
    rates = rng.beta(mean * scale, (1 - mean) * scale, wordings)
    return (rng.random((wordings, each)) < rates[:, None]).ravel().astype(float)


def test_questions_that_share_nothing_have_wilson_s_interval():
    scores = np.array([1.0] * 81 + [0.0] * 182)
    assert share_interval(scores, np.arange(263)) == wilson_interval(81, 263)


def test_copies_of_questions_add_no_information():
    scores = np.array([1.0] * 45 + [0.0] * 15)
    once = share_interval(scores, np.arange(60))
    copies = share_interval(np.repeat(scores, 4), np.repeat(np.arange(60), 4))
    assert copies[1] - copies[0] == pytest.approx(once[1] - once[0], rel=0.1)
    naive = wilson_interval(180, 240)
    assert copies[1] - copies[0] > 1.8 * (naive[1] - naive[0])


def test_an_interval_over_wordings_contains_the_truth_as_often_as_it_says():
    rng, wordings, each = np.random.default_rng(0), 64, 3
    clusters = np.repeat(np.arange(wordings), each)
    for mean, spread in ((0.8, 0.5), (0.95, 0.3), (0.6, 0.02)):
        inside, naive = 0, 0
        for _ in range(120):
            scores = make_answers(rng, wordings, each, mean, spread)
            low, high = share_interval(scores, clusters)
            inside += low <= mean <= high
            low, high = wilson_interval(scores.sum(), len(scores))
            naive += low <= mean <= high
        assert inside / 120 >= 0.92, (mean, spread, inside)
        assert inside >= naive
    assert naive / 120 > 0.9, "with a small spread the questions are nearly independent"


def test_a_perfect_score_has_an_interval_of_its_wordings():
    low, high = share_interval(np.ones(192), np.repeat(np.arange(64), 3))
    assert high == 1.0 and low < wilson_interval(192, 192)[0] and low == pytest.approx(0.943, abs=0.003)
    one_wrong = share_interval(np.array([0.0] + [1.0] * 191), np.repeat(np.arange(64), 3))
    assert one_wrong[0] < low + 0.005, "a mistake hardly raises the lower end"
    assert share_interval(np.ones(9), np.zeros(9, int)) == (0.0, 1.0), "one wording says nothing about others"


def test_the_same_scores_have_one_interval_and_whole_clusters_are_drawn():
    rng = np.random.default_rng(1)
    scores, clusters = rng.random(300).round(), rng.integers(50, size=300)
    clusters = number_clusters(clusters.tolist())
    assert share_interval(scores, clusters) == share_interval(scores, clusters)
    sums, sizes = sum_by_cluster(scores, clusters)
    draws = resample_clusters(sums, sizes, 4000)
    expected = np.sqrt(np.square(sums - scores.mean() * sizes).sum()) / len(scores)
    assert draws.std() == pytest.approx(expected, rel=0.05) and draws.mean() == pytest.approx(scores.mean(), abs=0.01)
    two = resample_clusters(np.stack([sums, 2 * sums], axis=1), sizes, 10)
    assert two[:, 1] == pytest.approx(2 * two[:, 0])


def test_parts_combine_as_independent_and_keep_their_width_at_the_edge():
    mean, low, high = combine_intervals([(0.4, 0.3, 0.5)] * 4)
    assert (mean, low, high) == pytest.approx((0.4, 0.35, 0.45))
    mean, low, high = combine_intervals([(1.0, *wilson_interval(20, 20))] * 2)
    assert mean == high == 1.0 and low < 0.9


def test_a_ratio_s_interval_is_over_its_clusters():
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 20, 400).astype(float)
    values = sizes * 2 + rng.normal(size=400) * sizes
    value, low, high = ratio_interval(values, sizes)
    draws = resample_clusters(values, sizes, 2000)
    assert (high - low) / 2 == pytest.approx(1.96 * draws.std(), rel=0.08) and low < value < high
    assert ratio_interval(values[:1], sizes[:1]) == (values[0] / sizes[0], None, None), "one document has no interval"


@pytest.mark.parametrize(
    ("freedom", "t", "error"),
    [
        *((1, 12.7062, 1e-5), (2, 4.30265, 1e-5), (3, 3.18245, 1.3e-3), (4, 2.77645, 4e-4), (5, 2.57058, 1.1e-4)),
        *((6, 2.44691, 5e-5), (7, 2.36462, 5e-5), (10, 2.22814, 1e-5), (16, 2.11991, 1e-5), (30, 2.04227, 1e-5)),
    ],
)
def test_student_s_interval_is_wider_by_the_ratio_of_the_tables(freedom, t, error):
    assert student_to_normal_ratio(freedom) * 1.959964 == pytest.approx(t, rel=error)


def test_an_interval_over_two_clusters_has_the_exact_quantile():
    value, low, high = ratio_interval(np.array([1.0, 3.0]), np.array([2.0, 2.0]))
    assert value == 1 and low is not None and high is not None
    assert (high - low) / 2 == pytest.approx(12.7062 * 0.5, rel=1e-4)  # deviation sqrt(2 x 1^2 x 2) / 4
