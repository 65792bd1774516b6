"""Tests how the rows of a step are split where ranks do not divide them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.plan.memory import fits_memory
from fledgling.plan.split import choose_split, count_passes, empty_share
from fledgling.plan.training_step import TrainingStep

from .models import config


@given(st.integers(1, 80), st.integers(1, 24), st.sampled_from([2**29, 3 * 2**29, 2**31, 2**34]))
def test_no_other_split_that_fits_makes_fewer_row_passes(rows, ranks, available):
    model = config(2)
    step = TrainingStep(1, 512, ranks=ranks)
    if not fits_memory(model, replace(step, micro_batches=count_passes(rows, 1, ranks)), available):
        with pytest.raises(UserError, match=r"1 rows of 512 tokens need .* GiB and there are"):
            choose_split(model, rows, available, step)
        return
    split = choose_split(model, rows, available, step)
    assert fits_memory(model, split, available)
    assert split.micro_batches == count_passes(rows, split.rows, ranks)
    cost = split.rows * split.micro_batches
    assert cost * ranks >= rows and 0 <= empty_share(rows, split) < 1
    for size in range(1, -(-rows // ranks) + 1):
        other = TrainingStep(size, 512, micro_batches=count_passes(rows, size, ranks), ranks=ranks)
        assert other.rows * other.micro_batches >= cost or not fits_memory(model, other, available)


def test_a_pinned_micro_batch_is_at_most_a_ranks_share():
    step = TrainingStep(1, 512, ranks=24)
    assert (choose_split(config(2), 256, 0, step, 32).rows, choose_split(config(2), 256, 0, step, 4).rows) == (11, 4)
    assert choose_split(config(2), 256, 0, step, 4).micro_batches == 3
    assert empty_share(256, choose_split(config(2), 256, 0, step, 32)) == pytest.approx(1 - 256 / 264)
