"""Row sources, mixtures and the prefetching thread; the invariants are in tests/invariants/test_packing.py."""

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fledgling.config import UserError
from fledgling.data.batch import IGNORE_INDEX
from fledgling.data.prefetch import PREFETCH_STEPS, Prefetcher
from fledgling.data.shards import ShardWriter, TokenShard
from fledgling.data.stream import MixtureStream, RowSource, permutation
from tests.waits import wait_for

BOS, USER, END = 90, 91, 92


def make_shard(*documents, masks=None) -> TokenShard:
    offsets = np.cumsum([0] + [len(document) for document in documents])
    tokens = np.array([token for document in documents for token in document], dtype=np.uint16)
    mask = None if masks is None else np.concatenate(masks).astype(np.uint8)
    return TokenShard(Path("memory"), tokens, offsets, mask, {})


def make_source(documents=50, length=5, context=8, seed=1) -> RowSource:
    texts = [list(range(i * length % 80, i * length % 80 + length)) for i in range(documents)]
    return RowSource(make_shard(*texts), "crop", context, seed, BOS)


def make_stream(source=None, steps=6, **options) -> MixtureStream:
    return MixtureStream([(source or make_source(), 1.0)], 4, 2, steps, seed=0, **options)


def count_threads() -> int:
    return sum(thread.name == "fledgling-data" for thread in threading.enumerate())


# ---- sources -------------------------------------------------------------------------------------


def test_permutations_are_pinned():
    """Another order would silently change every run and break resuming: these values never change."""
    assert permutation(7, 3, 8).tolist() == [7, 1, 6, 0, 4, 2, 3, 5]
    assert sorted(permutation(0, 0, 1000)) == list(range(1000))


def test_epochs_hold_the_same_rows_in_another_order():
    source = make_source()
    epochs = [[tuple(source.read_row(e * len(source) + i)[0]) for i in range(len(source))] for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert tuple(source.read_row(0)[0]) == epochs[0][0]  # back in the first epoch


def test_the_seed_decides_which_documents_share_a_row():
    rows = [
        {tuple(source.read_row(i)[0]) for i in range(len(source))}
        for source in (make_source(seed=1), make_source(seed=2))
    ]
    assert rows[0] != rows[1]


def test_several_shards_are_one_source(tmp_path):
    parts = [[[1, 2, 3], [4]], [[]], [[5, 6], [7, 8, 9]]]
    opened = []
    for index, part in enumerate(parts):
        with ShardWriter(tmp_path / str(index), 100) as writer:
            for document in part:
                writer.add_document(document)
        opened.append(TokenShard.open(tmp_path / str(index)))
    source = RowSource(opened, "crop", 4, 0, BOS)
    seen = [token for i in range(len(source)) for token in source.read_row(i)[0] if token != BOS]
    assert sorted(seen) == list(range(1, 10))


def test_long_conversations_are_truncated_and_counted():
    talk = [BOS, USER, 1, END, USER, 2, END, USER, 3, END]
    source = RowSource(make_shard(talk, talk[:4], masks=[np.ones(10), np.ones(4)]), "whole", 8, 0, BOS, END)
    assert source.num_truncated == 1 and len(source) == 2
    assert source.efficiency == (7 + 4) / 18


def test_a_source_without_tokens_is_rejected():
    with pytest.raises(UserError, match="has no tokens"):
        RowSource(make_shard([], []), "crop", 8, 0, BOS)


# ---- targets ----------------------------------------------------------------------------------


def test_the_bos_after_a_document_is_a_target():
    source = RowSource(make_shard([1, 2], [3, 4]), "crop", 5, 0, BOS)
    for train_on in ("all", "assistant"):  # documents have no mask: all tokens are targets
        stream = MixtureStream([(source, 1.0)], 1, 1, 1, 0, prefetch=False, train_on=train_on)
        (batch,) = stream.next()
        a, b, c, d = batch.tokens[0, [1, 2, 4]].tolist() + batch.targets[0, -1:].tolist()
        assert batch.tokens.tolist() == [[BOS, a, b, BOS, c]]
        assert batch.targets.tolist() == [[a, b, BOS, c, d]]
        assert batch.document_ids.tolist() == [[1, 1, 1, 2, 2]]
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert batch.document_ids.dtype == torch.int32


def test_only_the_assistants_tokens_of_a_conversation_are_targets():
    talk = [BOS, USER, 1, 2, END]
    mask = [False, False, False, True, True]
    source = RowSource(make_shard(talk, talk, masks=[mask, mask]), "whole", 11, 0, BOS, END)
    (batch,) = MixtureStream([(source, 1.0)], 1, 1, 1, 0, prefetch=False, train_on="assistant").next()
    assert batch.tokens.tolist() == [[*talk, *talk, BOS]]
    _ = IGNORE_INDEX
    assert batch.targets.tolist() == [[_, _, 2, END, _, _, _, 2, END, _, _]]
    (batch,) = MixtureStream([(source, 1.0)], 1, 1, 1, 0, prefetch=False, train_on="all").next()
    assert batch.targets.tolist() == [[USER, 1, 2, END, BOS, USER, 1, 2, END, _, _]]  # padding is never learned


@pytest.mark.parametrize("first", [BOS, USER])
def test_documents_are_separate_whatever_they_begin_with_and_padding_is_one(first):
    """The chat templates of Qwen, Phi 3 and SmolLM write no BOS, and that of Llama 2 one before every question."""
    source = RowSource(make_shard([first, 1, 2], [first, 3, BOS, 4]), "whole", 10, 0, BOS, END)
    (batch,) = MixtureStream([(source, 1.0)], 1, 1, 1, 0, prefetch=False).next()
    expected = [1, 1, 1, 2, 2, 2, 2, 3, 3, 3] if batch.tokens[0, 2] == 2 else [1, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert batch.document_ids.tolist() == [expected]
    assert source.read_row_documents(0).tolist() == [{1: 0, 2: 1, 3: -1}[n] for n in [*expected, 3]]


# ---- mixtures ------------------------------------------------------------------------------------


def test_ranks_beyond_the_micro_batches_of_a_step_have_none():
    steps = [make_stream(rank=rank, world_size=8).next() for rank in range(8)]
    (alone,) = [make_stream(rank=0, world_size=1).next()]
    assert [len(batches) for batches in steps[len(alone) :]] == [0] * (8 - len(alone))
    assert [batch.hash_rows() for batches in steps for batch in batches] == [batch.hash_rows() for batch in alone]


def test_the_summary_counts_the_rows_of_the_stage():
    sources = [(make_source(documents=50), 3), (make_source(documents=20), 1)]
    (first, second) = MixtureStream(sources, 4, 2, 30, 0).summary()
    assert (first["rows_taken"], second["rows_taken"]) == (90, 30)
    assert first["epochs"] == 90 / len(sources[0][0])
    assert second["directory"] == "memory" and second["kind"] == "crop" and second["num_truncated"] == 0


# ---- the thread ----------------------------------------------------------------------------------


def test_prefetching_gives_the_same_batches():
    with_thread, without = list(make_stream()), list(make_stream(prefetch=False))
    assert len(with_thread) == 6
    for left, right in zip(with_thread, without, strict=True):
        assert [b.tokens.tolist() for b in left] == [b.tokens.tolist() for b in right]


def test_the_state_counts_consumed_steps_and_not_prefetched_ones():
    stream = make_stream(steps=None)
    stream.next()
    time.sleep(0.05)
    assert stream.state_dict() == {"step": 1}
    stream.load_state_dict({"step": 40})
    expected = make_stream(steps=None, prefetch=False)
    expected.load_state_dict({"step": 40})
    assert stream.next()[0].tokens.tolist() == expected.next()[0].tokens.tolist()
    stream.close()


def test_prefetching_is_bounded():
    made = []
    ahead = Prefetcher(lambda step: made.append(step) or [], 5, None)
    wait_for(lambda: len(made) > PREFETCH_STEPS)
    time.sleep(0.1)  # a step too many would be made by now
    assert made == list(range(5, 5 + PREFETCH_STEPS + 1))  # PREFETCH_STEPS ready, and one that waits
    ahead.get()
    ahead.close()
    assert not ahead._thread.is_alive()


def test_an_error_in_the_thread_is_raised_at_its_step():
    source = make_source()
    row, broken = source.read_row, True

    def failing(index, train_on):
        if broken and index >= 8:
            raise OSError("the disk went away")
        return row(index, train_on)

    source.read_row = failing
    stream = make_stream(source)
    stream.next()
    stream.next()
    for _ in range(2):
        with pytest.raises(OSError, match="the disk went away"):
            stream.next()
    assert stream.state_dict() == {"step": 2} and count_threads() == 0
    broken = False
    assert len(list(stream)) == 4  # it continues where it stopped


def test_get_after_the_end_does_not_hang():
    ahead = Prefetcher(lambda step: [], 0, 1)
    ahead.get()
    with pytest.raises(AssertionError, match="after"):
        ahead.get()


def test_threads_end_with_the_stream():
    list(make_stream())
    assert count_threads() == 0
    stream = make_stream(steps=None)
    stream.next()
    assert count_threads() == 1
    stream.close()
    stream.close()
    assert count_threads() == 0
    stream.next()  # it can be used after a close
    del stream  # and be deleted
    gc.collect()
    assert count_threads() == 0


def test_the_stream_ends_after_the_last_step():
    stream = make_stream(steps=1)
    stream.next()
    for _ in range(2):
        with pytest.raises(StopIteration):
            stream.next()
    assert stream.state_dict() == {"step": 1}


# ---- sources of several sections ------------------------------------------------------


def make_sectioned_source(seed=1, max_documents=30) -> RowSource:
    rng = np.random.default_rng(0)
    shards = [make_shard(*[rng.integers(0, 80, rng.integers(1, 9)).tolist() for _ in range(n)]) for n in (70, 9, 51)]
    return RowSource(shards, "crop", 8, seed, BOS, max_section_documents=max_documents)


def test_sections_give_every_token_once_an_epoch():
    source = make_sectioned_source()
    expected = sorted(token for shard in source.shards for token in shard.tokens.tolist())
    epochs = []
    for epoch in range(2):
        rows = [source.read_row(epoch * len(source) + i) for i in range(len(source))]
        seen = sorted(int(t) for tokens, mask in rows for t, m in zip(tokens, mask, strict=True) if m and t != BOS)
        assert seen == expected
        epochs.append([tuple(tokens) for tokens, _ in rows])
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])
    assert (
        source.efficiency == pytest.approx(make_sectioned_source(max_documents=1000).efficiency, abs=0.04)
        and source.efficiency > 0.9
    )


def test_a_section_has_a_part_of_every_shard_and_only_one_is_planned():
    source = make_sectioned_source()
    assert source._num_sections == 5
    for section in range(5):
        documents = set(source._pack_section(section)[0].piece_documents.tolist())
        assert all(any(low <= d < high for d in documents) for low, high in ((0, 70), (70, 79), (79, 130)))
    source.read_row(0)
    assert source._current_section[2].num_rows == source._section_rows[source._current_section[1]] < len(source)


def test_a_row_of_sections_is_a_function_of_seed_and_index():
    forward, jumping = make_sectioned_source(), make_sectioned_source()
    rows = [tuple(forward.read_row(i)[0]) for i in range(2 * len(forward))]
    for i in np.random.default_rng(1).permutation(len(rows)).tolist():
        assert tuple(jumping.read_row(i)[0]) == rows[i]
    assert rows != [tuple(make_sectioned_source(seed=2).read_row(i)[0]) for i in range(len(rows))]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_the_rows_of_sections_without_overlap(size):
    def tokens(rank, size):
        stream = MixtureStream([(make_sectioned_source(), 1.0)], 8, 2, 12, 0, rank, size, prefetch=False)
        return [[batch.tokens.tolist() for batch in step] for step in stream]

    alone, ranks = tokens(0, 1), [tokens(rank, size) for rank in range(size)]
    assert len(alone) == 12 and len(make_sectioned_source()) < 12 * 8
    for step, batches in enumerate(alone):
        assert batches == [ranks[i % size][step][i // size] for i in range(len(batches))]
