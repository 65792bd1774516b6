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


def make_answers(share: float) -> Batch:
    """Returns a batch of 64 positions, whose targets are the last of each row."""
    targets = torch.arange(64).view(2, 32).clone()
    targets[:, : round(32 * (1 - share))] = IGNORE_INDEX
    return Batch(torch.zeros(2, 32, dtype=torch.int64), targets)


def test_positions_of_targets_are_listed_on_the_host_and_travel_with_the_batch():
    batch = make_answers(0.34)  # 11 in a row
    moved = batch.to("meta")
    assert moved.head_positions.is_meta and batch.head_positions is None
    positions = batch.to("cpu").head_positions
    assert len(positions) == 24, "22 targets, and two others to a multiple of 8"
    assert torch.equal(positions, positions.unique()), "ascending, each once"
    flat = batch.targets.flatten()
    assert set((flat != IGNORE_INDEX).nonzero().flatten().tolist()) <= set(positions.tolist())
    again = Batch(batch.tokens, batch.targets, head_positions=positions).to("cpu")
    assert again.head_positions is positions, "what came with a batch is kept"
    with pytest.raises(AssertionError, match="head_positions lack targets"):
        Batch(batch.tokens, torch.zeros_like(batch.targets), head_positions=positions)
    assert all(part.head_positions is None for part in batch.to("cpu").split(1)), "they are of the whole batch"


@pytest.mark.parametrize("share", [0.0, 0.95, 1.0])
def test_positions_are_not_listed_where_most_have_a_target_or_none_has(share):
    assert make_answers(share).to("cpu").head_positions is None
