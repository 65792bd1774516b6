"""Mixtures: every source has its share, and the source of a row is a pure function of its index."""

import numpy as np
import pytest

from fledgling.config import UserError
from fledgling.data.mixture import SourceOrder


@pytest.mark.parametrize("weights", [[1], [1, 1], [0.7, 0.3], [0.25, 0.25, 0.3, 0.2, 0.07, 0.14], [1000, 1], [1, 2, 4]])
def test_every_source_has_its_share_at_every_row(weights):
    order = SourceOrder.from_weights(weights)
    share = np.array(weights) / sum(weights)
    rows = np.arange(1, 3001)
    counts = np.array([order.count_rows(n) for n in rows])
    assert (counts.sum(1) == rows).all()
    assert np.abs(counts - rows[:, None] * share).max() < 1 + 3000 / 10_000 / 2 * len(weights)


@pytest.mark.parametrize("offset", [0, 3, 12_345])
def test_locating_a_row_agrees_with_counting_from_the_start(offset):
    order = SourceOrder.from_weights([0.5, 0.2, 0.3], offset)
    counts = [0, 0, 0]
    for row in range(500):
        source, index = order.locate(row)
        assert index == counts[source]
        counts[source] += 1
        assert order.count_rows(row + 1).tolist() == counts
    assert order.locate(10**12) == (
        order.locate(10**12 % 10)[0],
        order.count_rows(10**12)[order.locate(10**12)[0]],
    )


def test_a_rare_source_occurs_and_a_weight_of_zero_does_not():
    assert SourceOrder.from_weights([1, 1e-9]).count_rows(10_001).tolist() == [10_000, 1]
    assert SourceOrder.from_weights([1, 0, 1]).count_rows(10).tolist() == [5, 0, 5]


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [float("nan"), 1], [float("inf")]])
def test_invalid_weights_are_rejected(weights):
    with pytest.raises(UserError, match="mixture weights"):
        SourceOrder.from_weights(weights)
