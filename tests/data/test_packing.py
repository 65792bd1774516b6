"""Packing of small examples; the invariants are in tests/invariants/test_packing.py."""

import time
from pathlib import Path

import numpy as np
import pytest

from fledgling.data.packing import fill_row, pack_best_fit, pack_between, pack_cropped, truncate_lengths
from fledgling.data.shards import TokenShard

BOS, END = 90, 91


def make_shard(*documents, mask=None) -> TokenShard:
    offsets = np.cumsum([0] + [len(document) for document in documents])
    tokens = np.array([token for document in documents for token in document], dtype=np.uint16)
    return TokenShard(Path("memory"), tokens, offsets, None if mask is None else np.array(mask), {})


def read_rows(plan, shard, **options):
    return [fill_row(plan, shard, i, BOS, BOS, **options)[0].tolist() for i in range(plan.num_rows)]


def test_crop_continues_a_document_in_the_next_row_with_its_own_bos():
    shard = make_shard([1, 2, 3], [], [4, 5, 6, 7, 8, 9, 10, 11])
    plan = pack_cropped(shard.lengths, 6)
    assert read_rows(plan, shard) == [
        [BOS, 1, 2, 3, BOS, 4],
        [BOS, 5, 6, 7, 8, 9],
        [BOS, 10, 11, BOS, BOS, BOS],
    ]
    assert fill_row(plan, shard, 2, BOS, BOS)[1].tolist() == [True, True, True, False, False, False]
    assert plan.efficiency == 15 / 18


def test_a_bos_alone_ends_the_row_and_the_document_begins_in_the_next():
    shard = make_shard([1, 2, 3, 4], [5, 6])
    plan = pack_cropped(shard.lengths, 6)
    assert read_rows(plan, shard) == [[BOS, 1, 2, 3, 4, BOS], [BOS, 5, 6, BOS, BOS, BOS]]
    assert fill_row(plan, shard, 0, BOS, BOS)[1].all()  # the last BOS is the target that ends the first document


def test_whole_takes_the_oldest_then_the_largest_that_fits():
    plan = pack_best_fit(np.array([5, 9, 2, 3, 4]), 10)
    rows = [plan.piece_documents[a:b].tolist() for a, b in zip(plan.row_starts[:-1], plan.row_starts[1:], strict=True)]
    assert rows == [[0, 4], [1], [2, 3]]


def test_a_window_of_one_keeps_the_order():
    plan = pack_best_fit(np.array([5, 9, 5]), 10, window=1)
    assert plan.num_rows == 3


def test_no_row_has_conversations_of_before_and_after_a_break():
    lengths = np.array([6, 3, 7, 2, 4, 5, 1])
    for breaks in ([], [3], [0, 3, 5, 7]):
        plan = pack_between(pack_best_fit, lengths, breaks, 10)
        rows = np.split(plan.piece_documents, plan.row_starts[1:-1])
        assert (
            sorted(plan.piece_documents) == list(range(7))
            and (plan.piece_lengths == lengths[plan.piece_documents]).all()
        )
        parts = [np.searchsorted(breaks, row, side="right") for row in rows if len(row)]
        assert all(len(set(part)) == 1 for part in parts) and [part[0] for part in parts] == sorted(p[0] for p in parts)
    assert len(rows) > pack_best_fit(lengths, 10).num_rows, "an early short one no longer fills a row"


def test_conversations_are_truncated_after_the_last_turn_that_fits():
    shard = make_shard([BOS, 1, END, 2, END, 3, 4, END], [BOS, 1, 2, 3, 4, 5, END], [BOS, 1, END])
    lengths, num_truncated = truncate_lengths(shard.tokens, shard.offsets, 6, END)
    assert lengths.tolist() == [5, 6, 3] and num_truncated == 2
    assert truncate_lengths(shard.tokens, shard.offsets, 6, None)[0].tolist() == [6, 6, 3]


def test_the_mask_of_the_shard_is_used_only_with_use_mask():
    shard = make_shard([BOS, 1, 2], [BOS, 3, 4], mask=[1, 0, 1, 1, 0, 1])
    plan = pack_best_fit(shard.lengths, 8)
    assert fill_row(plan, shard, 0, BOS, BOS)[1].tolist() == [True] * 6 + [False] * 2
    masked = fill_row(plan, shard, 0, BOS, BOS, use_mask=True)[1]
    assert masked.tolist() == [False, False, True, False, False, True, False, False]  # never the BOS


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
@pytest.mark.parametrize("pack", [pack_cropped, pack_best_fit])
def test_no_tokens_give_no_rows(pack, lengths):
    plan = pack(np.array(lengths, dtype=np.int64), 8)
    assert plan.num_rows == 0 and len(plan.piece_documents) == 0 and plan.efficiency == 1.0


def test_a_conversation_longer_than_the_row_is_rejected():
    with pytest.raises(AssertionError, match="truncate it first"):
        pack_best_fit(np.array([3, 9]), 8)


@pytest.mark.parametrize("pack", [pack_cropped, pack_best_fit])
def test_planning_is_not_quadratic(pack):
    lengths = np.random.default_rng(0).integers(1, 2000, 100_000)
    start = time.process_time()
    plan = pack(lengths, 2049)
    assert time.process_time() - start < 20  # 0.02 s and 0.1 s where measured; quadratic would be minutes
    assert plan.efficiency > 0.97
