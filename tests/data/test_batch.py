"""Batch: shapes are checked, and splitting and moving lose nothing."""

import pytest
import torch

from fledgling.data.batch import IGNORE_INDEX, Batch


def make_batch(rows: int = 5, time: int = 4) -> Batch:
    tokens = torch.arange(rows * time).view(rows, time)
    targets = tokens + 1
    targets[0] = IGNORE_INDEX
    return Batch(tokens, targets, advantages=tokens.float())


def test_only_targets_are_counted():
    assert make_batch().target_count == 16
    assert Batch(torch.zeros(1, 2, dtype=torch.int64), torch.full((1, 2), IGNORE_INDEX)).target_count == 0


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_split_is_a_partition(rows):
    batch = make_batch()
    parts = batch.split(rows)
    assert all(part.tokens.shape[0] <= rows for part in parts)
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert torch.equal(torch.cat([part.advantages for part in parts]), batch.advantages)
    assert sum(part.target_count for part in parts) == batch.target_count
    assert all(part.document_ids is None for part in parts)


def test_every_field_is_moved():
    moved = make_batch().to("meta")
    assert moved.tokens.is_meta and moved.targets.is_meta and moved.advantages.is_meta
    assert moved.returns is None


def test_fields_of_another_shape_are_rejected():
    with pytest.raises(AssertionError, match="targets"):
        Batch(torch.zeros(2, 3), torch.zeros(2, 4))
