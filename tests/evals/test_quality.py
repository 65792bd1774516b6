"""The change of quality between two versions of a model: paired, over wordings and documents."""

import numpy as np
import pytest

from fledgling.evals.intervals import number_clusters, sum_by_cluster
from fledgling.evals.measurement import Measurement
from fledgling.evals.quality import Quality, measure_change


def make_quality(scores: np.ndarray, wordings: np.ndarray) -> Quality:
    sums, sizes = sum_by_cluster(scores, number_clusters(wordings.tolist()))
    return Quality(Measurement("x", float(scores.mean())), sums, sizes)


def test_a_change_is_paired_and_over_wordings():
    rng = np.random.default_rng(0)
    wordings = np.repeat(np.arange(50), 4)
    before = (rng.random(200) < 0.6).astype(float)
    after = np.where(wordings < 5, 0.0, before)  # five wordings are lost altogether
    value, low, high = measure_change(make_quality(before, wordings), make_quality(after, wordings))
    assert value == pytest.approx(after.mean() - before.mean()) and low < value < high <= 0.01
    _, low_alone, high_alone = measure_change(make_quality(before, np.arange(200)), make_quality(after, np.arange(200)))
    assert high - low > 1.4 * (high_alone - low_alone), "questions of one wording are lost together"
    same = make_quality(before, wordings)
    assert measure_change(same, same) == (0, 0, 0)
