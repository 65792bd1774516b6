"""Invariants of the data: packing loses nothing, no dependence on the number of ranks, exact resume."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.data.batch import IGNORE_INDEX
from fledgling.data.packing import fill_row, pack_best_fit, pack_cropped, truncate_lengths
from fledgling.data.shards import TokenShard
from fledgling.data.stream import MixtureStream, RowSource

BOS, TURN_END = 0, 1
LENGTHS = st.lists(st.integers(0, 40), max_size=60)
QUICK = settings(max_examples=60, deadline=None)


def make_shard(lengths, first_id=2, mask=False, conversations=False) -> TokenShard:
    """Returns a shard in memory whose tokens all differ, so that a lost or repeated one is detected."""
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    tokens = np.arange(first_id, first_id + offsets[-1], dtype=np.uint32)
    if conversations:
        tokens[offsets[:-1][np.diff(offsets) > 0]] = BOS
    flags = (np.arange(offsets[-1]) % 3 > 0).astype(np.uint8) if mask else None
    return TokenShard(Path("memory"), tokens, offsets, flags, {})


def split_at_bos(rows) -> list[list[int]]:
    """Returns the pieces of rows between BOS tokens, without padding (which is BOS too)."""
    pieces = []
    for tokens, _ in rows:
        for token in tokens.tolist():
            if token == BOS:
                pieces.append([])
            else:
                pieces[-1].append(token)
    return [piece for piece in pieces if piece]


@QUICK
@given(LENGTHS, st.integers(2, 30))
def test_cropped_rows_have_every_document_in_order(lengths, row):
    shard = make_shard(lengths)
    plan = pack_cropped(shard.lengths, row)
    rows = [fill_row(plan, shard, i, BOS, BOS) for i in range(plan.num_rows)]
    assert [token for piece in split_at_bos(rows) for token in piece] == shard.tokens.tolist()
    for i, (tokens, mask) in enumerate(rows):
        assert tokens[0] == BOS  # every row begins with a BOS
        assert mask.all() or i == plan.num_rows - 1  # only the last row may be padded
        assert (tokens != BOS).any()  # no row is empty
    owner = np.repeat(np.arange(len(lengths)), lengths) if lengths else []
    for piece in split_at_bos(rows):  # no piece has tokens of two documents
        assert len({owner[token - 2] for token in piece}) == 1


@QUICK
@given(LENGTHS, st.integers(2, 60), st.integers(1, 8))
def test_whole_rows_have_every_conversation_once_and_complete(lengths, row, window):
    shard = make_shard(lengths, conversations=True)
    lengths, num_truncated = truncate_lengths(shard.tokens, shard.offsets, row, TURN_END)
    assert num_truncated == sum(shard.lengths > row)
    plan = pack_best_fit(lengths, row, window)
    assert plan.num_rows <= np.count_nonzero(lengths)  # each row takes at least one conversation
    assert sorted(plan.piece_documents) == np.flatnonzero(lengths).tolist()
    for i in range(plan.num_rows):
        tokens, mask = fill_row(plan, shard, i, BOS, BOS)
        position = 0
        for piece in range(plan.row_starts[i], plan.row_starts[i + 1]):
            document, length = plan.piece_documents[piece], plan.piece_lengths[piece]
            expected = shard.tokens[shard.offsets[document] : shard.offsets[document] + length]
            assert tokens[position : position + length].tolist() == expected.tolist()
            position += length
        assert mask[:position].all() and not mask[position:].any()


@dataclass
class MixedSources:
    """Two small sources: cropped documents, and conversations with a mask."""

    seed: int
    context: int = 12

    def stream(self, rows_per_step=6, micro_batch_size=4, steps=9, **options) -> MixtureStream:
        rng = np.random.default_rng(self.seed)
        documents = make_shard(rng.integers(0, 30, 20), first_id=10)
        chats = make_shard(rng.integers(2, 20, 9), first_id=5000, mask=True, conversations=True)
        sources = [
            (RowSource(documents, "crop", self.context, self.seed, BOS), 0.7),
            (RowSource(chats, "whole", self.context, self.seed, BOS, TURN_END), 0.3),
        ]
        options = {"prefetch": False, "train_on": "assistant", **options}
        return MixtureStream(sources, rows_per_step, micro_batch_size, steps, self.seed, **options)


def count_rows(batches) -> Counter:
    """Returns the rows of a step with targets and document ids, in any order."""
    parts = [torch.cat([b.tokens, b.targets, b.document_ids.long()], dim=1) for b in batches]
    return Counter(tuple(row) for part in parts for row in part.tolist())


def batches_equal(left, right) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a.tokens, b.tokens)
        and torch.equal(a.targets, b.targets)
        and torch.equal(a.document_ids, b.document_ids)
        for a, b in zip(left, right, strict=True)
    )


@QUICK
@given(st.integers(0, 9), st.integers(1, 7), st.integers(1, 6), st.integers(7, 12))
def test_the_data_does_not_depend_on_ranks_and_micro_batches(seed, world_size, micro_batch_size, rows_per_step):
    mixed = MixedSources(seed)
    alone = mixed.stream(rows_per_step, rows_per_step)
    ranks = [
        mixed.stream(rows_per_step, micro_batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for step in alone:
        batches = [batch for rank in ranks for batch in rank.next()]
        assert count_rows(batches) == count_rows(step)
        assert sum(batch.target_count for batch in batches) == step[0].target_count
        assert all(1 <= batch.tokens.shape[0] <= micro_batch_size for batch in batches)


@QUICK
@given(st.integers(0, 9), st.integers(0, 8), st.booleans())
def test_resume_equals_never_stopping(seed, stop, prefetch):
    mixed = MixedSources(seed)
    expected = list(mixed.stream())
    stopped = mixed.stream(prefetch=prefetch)
    for _ in range(stop):
        stopped.next()
    state = stopped.state_dict()  # counts consumed steps, not prefetched ones
    stopped.close()
    resumed = mixed.stream(prefetch=prefetch)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == len(expected) - stop
    assert all(batches_equal(a, b) for a, b in zip(rest, expected[stop:], strict=True))


@QUICK
@given(LENGTHS.filter(any), st.integers(1, 20), st.integers(0, 99), st.integers(0, 3))
def test_each_epoch_gives_every_row_once(lengths, context, seed, epoch):
    source = RowSource(make_shard(lengths), "crop", context, seed, BOS)
    rows = [source.read_row(epoch * len(source) + i) for i in range(len(source))]
    tokens = sorted(token for piece in split_at_bos(rows) for token in piece)
    assert tokens == list(range(2, 2 + sum(lengths)))


@QUICK
@given(LENGTHS.filter(any), st.integers(1, 20), st.integers(0, 99))
def test_each_document_token_is_a_target_once_an_epoch(lengths, context, seed):
    source = RowSource(make_shard(lengths), "crop", context, seed, BOS)
    stream = MixtureStream([(source, 1.0)], len(source), 3, 1, seed, prefetch=False)
    targets = torch.cat([batch.targets.flatten() for batch in stream.next()])
    document_targets = targets[(targets != IGNORE_INDEX) & (targets != BOS)]
    assert sorted(document_targets.tolist()) == list(range(2, 2 + sum(lengths)))
