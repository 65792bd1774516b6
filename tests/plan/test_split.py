"""Tests how the rows of a step are split where ranks do not divide them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.plan.memory import estimate_peak_memory, fits_memory, memory_slack
from fledgling.plan.split import (
    MAX_MICRO_BATCH_ROWS,
    PASS_ROWS,
    choose_split,
    count_passes,
    empty_share,
    explain_empty_slots,
)
from fledgling.plan.training_step import TrainingStep

from .models import config


@given(st.integers(1, 80), st.integers(1, 24), st.sampled_from([2**29, 3 * 2**29, 2**31, 2**34]))
def test_no_other_split_that_fits_costs_less(rows, ranks, available):
    model = config(2)
    step = TrainingStep(1, 512, ranks=ranks)
    if not fits_memory(model, replace(step, micro_batches=count_passes(rows, 1, ranks)), available):
        with pytest.raises(UserError, match=r"1 rows of 512 tokens need .* GiB and there are"):
            choose_split(model, rows, available, step)
        return
    split = choose_split(model, rows, available, step)
    assert fits_memory(model, split, available)
    assert split.micro_batches == count_passes(rows, split.rows, ranks)
    assert split.rows * split.micro_batches * ranks >= rows and 0 <= empty_share(rows, split) < 1
    cost = (split.rows + PASS_ROWS) * split.micro_batches
    for size in range(1, -(-rows // ranks) + 1):
        other = TrainingStep(size, 512, micro_batches=count_passes(rows, size, ranks), ranks=ranks)
        other_cost = (other.rows + PASS_ROWS) * other.micro_batches
        is_possible = rows % ranks or rows // ranks % size == 0  # where ranks divide the rows, so do micro-batches
        assert (
            not is_possible
            or other_cost >= cost
            or size > MAX_MICRO_BATCH_ROWS
            or not fits_memory(model, other, available)
        )


def test_a_pinned_micro_batch_is_at_most_a_ranks_share():
    step = TrainingStep(1, 512, ranks=24)
    assert (choose_split(config(2), 256, 0, step, 32).rows, choose_split(config(2), 256, 0, step, 4).rows) == (11, 4)
    assert choose_split(config(2), 256, 0, step, 4).micro_batches == 3
    assert empty_share(256, choose_split(config(2), 256, 0, step, 32)) == pytest.approx(1 - 256 / 264)


def test_the_reason_for_empty_slots_is_what_does_not_divide():
    """A rank alone makes a smaller last micro-batch; several wait for a full one."""
    assert empty_share(16, choose_split(config(2), 16, 0, TrainingStep(1, 512), 6)) == 0.0
    two = choose_split(config(2), 16, 0, TrainingStep(1, 512, ranks=2), 6)
    assert empty_share(16, two) == pytest.approx(1 / 3)
    assert explain_empty_slots(16, two.rows, 2).startswith("micro-batches of 6 rows do not divide the 8 rows")
    assert explain_empty_slots(256, 11, 24) == "24 ranks do not divide 256 rows"


def test_blocks_recompute_where_a_step_fits_only_so_whatever_decides_its_rows():
    model, step = config(4), TrainingStep(1, 512)
    again = replace(step, recompute=True)

    def needed(step, rows):
        total = estimate_peak_memory(model, replace(step, rows=rows, micro_batches=64 // rows))["total"]
        return total + memory_slack(total, step.device)

    assert needed(again, 1) < needed(step, 1), "of 64 passes, which also hold the sum of their gradients"
    for rows, pinned in ((1, None), (16, 16)):
        between = (needed(again, rows) + needed(step, rows)) // 2
        kept, fitting = (choose_split(model, 64, n, step, pinned, "auto") for n in (2 * needed(step, rows), between))
        assert not kept.recompute and fitting.recompute
        assert not choose_split(model, 64, 2 * between, again, pinned, "off").recompute
        assert choose_split(model, 64, 2 * between, step, pinned, "on").recompute
        with pytest.raises(UserError, match="1 rows of 512"):
            choose_split(model, 64, needed(again, 1) - 2**20, step, None, "auto")
    assert not choose_split(model, 64, 0, step, 16, "auto").recompute, "of a size that fits in neither way"


def test_few_empty_slots_are_cheaper_than_many_passes_of_one_row():
    for ranks, rows in ((6, 22), (7, 19)):  # one pass does not fit; 43 and 37 of one row leave fewer slots empty
        step = TrainingStep(1, 512, ranks=ranks)
        total = estimate_peak_memory(config(2), replace(step, rows=rows, micro_batches=2))["total"]
        found = choose_split(config(2), 256, total + memory_slack(total, step.device), step)
        assert (found.rows, found.micro_batches) == (rows, 2)
