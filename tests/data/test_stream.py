"""Sources, mixtures and the look-ahead thread; the laws are in tests/invariants/test_packing.py."""

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fledgling.config import UserError
from fledgling.data.batch import IGNORE_INDEX
from fledgling.data.mixture import SourceOrder
from fledgling.data.shards import ShardWriter, TokenShard
from fledgling.data.stream import PREFETCH_STEPS, MixtureStream, Prefetcher, RowSource, assign_document_ids, permutation

BOS, USER, END = 90, 91, 92


def shard_of(*documents, masks=None) -> TokenShard:
    offsets = np.cumsum([0] + [len(document) for document in documents])
    tokens = np.array([token for document in documents for token in document], dtype=np.uint16)
    mask = None if masks is None else np.concatenate(masks).astype(np.uint8)
    return TokenShard(Path("memory"), tokens, offsets, mask, {})


def numbered(documents=50, length=5, context=8, seed=1) -> RowSource:
    texts = [list(range(i * length % 80, i * length % 80 + length)) for i in range(documents)]
    return RowSource(shard_of(*texts), "crop", context, seed, BOS)


def stream_of(source=None, steps=6, **more) -> MixtureStream:
    return MixtureStream([(source or numbered(), 1.0)], 4, 2, steps, seed=0, **more)


def threads() -> int:
    return sum(thread.name == "fledgling-data" for thread in threading.enumerate())


# ---- sources -------------------------------------------------------------------------------------


def test_permutations_are_pinned():
    """Another order would silently change every run and break resuming: these values never change."""
    assert permutation(7, 3, 8).tolist() == [7, 1, 6, 0, 4, 2, 3, 5]
    assert sorted(permutation(0, 0, 1000)) == list(range(1000))


def test_epochs_hold_the_same_rows_in_another_order():
    source = numbered()
    epochs = [[tuple(source.read_row(e * len(source) + i)[0]) for i in range(len(source))] for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert tuple(source.read_row(0)[0]) == epochs[0][0]  # back in the first epoch


def test_the_seed_decides_which_documents_share_a_row():
    rows = [
        {tuple(source.read_row(i)[0]) for i in range(len(source))} for source in (numbered(seed=1), numbered(seed=2))
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


def test_long_conversations_are_cut_and_counted():
    talk = [BOS, USER, 1, END, USER, 2, END, USER, 3, END]
    source = RowSource(shard_of(talk, talk[:4], masks=[np.ones(10), np.ones(4)]), "whole", 8, 0, BOS, END)
    assert source.num_truncated == 1 and len(source) == 2
    assert source.efficiency == (7 + 4) / 18


def test_a_source_without_a_token_is_the_users_mistake():
    with pytest.raises(UserError, match="holds no tokens"):
        RowSource(shard_of([], []), "crop", 8, 0, BOS)


# ---- what is learned -----------------------------------------------------------------------------


def test_documents_learn_that_they_end():
    source = RowSource(shard_of([1, 2], [3, 4]), "crop", 5, 0, BOS)
    for supervise in ("all", "assistant"):  # documents have no turns: all of them is learned
        stream = MixtureStream([(source, 1.0)], 1, 1, 1, 0, prefetch=False, train_on=supervise)
        (batch,) = stream.next()
        a, b, c, d = batch.tokens[0, [1, 2, 4]].tolist() + batch.targets[0, -1:].tolist()
        assert batch.tokens.tolist() == [[BOS, a, b, BOS, c]]
        assert batch.targets.tolist() == [[a, b, BOS, c, d]]
        assert batch.document_ids.tolist() == [[1, 1, 1, 2, 2]]
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        assert batch.document_ids.dtype == torch.int32


def test_conversations_learn_the_assistants_tokens_and_never_the_next_beginning():
    talk = [BOS, USER, 1, 2, END]
    mask = [False, False, False, True, True]
    source = RowSource(shard_of(talk, talk, masks=[mask, mask]), "whole", 11, 0, BOS, END)
    (batch,) = MixtureStream([(source, 1.0)], 1, 1, 1, 0, prefetch=False, train_on="assistant").next()
    assert batch.tokens.tolist() == [[*talk, *talk, BOS]]
    _ = IGNORE_INDEX
    assert batch.targets.tolist() == [[_, _, 2, END, _, _, _, 2, END, _, _]]
    (batch,) = MixtureStream([(source, 1.0)], 1, 1, 1, 0, prefetch=False, train_on="all").next()
    assert batch.targets.tolist() == [[USER, 1, 2, END, BOS, USER, 1, 2, END, _, _]]  # padding is never learned


def test_padding_is_one_document():
    tokens = np.array([[BOS, 1, BOS, 2, BOS, BOS, BOS], [BOS, 1, 2, 3, 4, 5, BOS]])
    assert assign_document_ids(tokens, BOS).tolist() == [[1, 1, 2, 2, 3, 3, 3], [1, 1, 1, 1, 1, 1, 2]]


# ---- mixtures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[1], [1, 1], [0.7, 0.3], [0.25, 0.25, 0.3, 0.2, 0.07, 0.14], [1000, 1], [1, 2, 4]])
def test_every_source_has_its_share_at_every_row(weights):
    cycle = SourceOrder.from_weights(weights)
    share = np.array(weights) / sum(weights)
    rows = np.arange(1, 3001)
    counts = np.array([cycle.count_rows(n) for n in rows])
    assert (counts.sum(1) == rows).all()
    assert np.abs(counts - rows[:, None] * share).max() < 1 + 3000 / 10_000 / 2 * len(weights)


@pytest.mark.parametrize("turn", [0, 3, 12_345])
def test_the_place_of_a_row_is_what_counting_from_the_start_gives(turn):
    cycle = SourceOrder.from_weights([0.5, 0.2, 0.3], turn)
    given = [0, 0, 0]
    for row in range(500):
        source, index = cycle.locate(row)
        assert index == given[source]
        given[source] += 1
        assert cycle.count_rows(row + 1).tolist() == given
    assert cycle.locate(10**12) == (
        cycle.locate(10**12 % 10)[0],
        cycle.count_rows(10**12)[cycle.locate(10**12)[0]],
    )


def test_a_rare_source_is_not_rounded_away_and_a_weight_of_zero_is():
    assert SourceOrder.from_weights([1, 1e-9]).count_rows(10_001).tolist() == [10_000, 1]
    assert SourceOrder.from_weights([1, 0, 1]).count_rows(10).tolist() == [5, 0, 5]


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [float("nan"), 1], [float("inf")]])
def test_weights_that_make_no_mixture_are_refused(weights):
    with pytest.raises(UserError, match="mixture weights"):
        SourceOrder.from_weights(weights)


def test_fewer_rows_than_ranks_are_refused():
    with pytest.raises(UserError, match="8 ranks"):
        stream_of(rank=7, world_size=8)


def test_the_summary_counts_what_the_stage_takes():
    sources = [(numbered(documents=50), 3), (numbered(documents=20), 1)]
    (first, second) = MixtureStream(sources, 4, 2, 30, 0).summary()
    assert (first["rows_taken"], second["rows_taken"]) == (90, 30)
    assert first["epochs"] == 90 / len(sources[0][0])
    assert second["directory"] == "memory" and second["kind"] == "crop" and second["cut"] == 0


# ---- the thread ----------------------------------------------------------------------------------


def test_the_thread_gives_the_same_batches():
    with_thread, without = list(stream_of()), list(stream_of(prefetch=False))
    assert len(with_thread) == 6
    for left, right in zip(with_thread, without, strict=True):
        assert [b.tokens.tolist() for b in left] == [b.tokens.tolist() for b in right]


def test_the_state_is_what_was_consumed_and_not_what_was_prepared():
    stream = stream_of(steps=None)
    stream.next()
    time.sleep(0.05)
    assert stream.state_dict() == {"step": 1}
    stream.load_state_dict({"step": 40})
    expected = stream_of(steps=None, prefetch=False)
    expected.load_state_dict({"step": 40})
    assert stream.next()[0].tokens.tolist() == expected.next()[0].tokens.tolist()
    stream.close()


def test_the_thread_is_never_more_than_a_few_steps_ahead():
    made = []
    ahead = Prefetcher(lambda step: made.append(step) or [], 5, None)
    time.sleep(0.1)
    assert made == list(range(5, 5 + PREFETCH_STEPS + 1))  # AHEAD waiting, one in hand
    ahead.get()
    ahead.close()
    assert not ahead._thread.is_alive()


def test_an_error_in_the_thread_is_raised_where_its_step_is_asked_for():
    source = numbered()
    row, broken = source.read_row, True

    def failing(index, supervise):
        if broken and index >= 8:
            raise OSError("the disk went away")
        return row(index, supervise)

    source.read_row = failing
    stream = stream_of(source)
    stream.next()
    stream.next()
    for _ in range(2):  # and again, if asked again
        with pytest.raises(OSError, match="the disk went away"):
            stream.next()
    assert stream.state_dict() == {"step": 2} and threads() == 0
    broken = False
    assert len(list(stream)) == 4  # it goes on where it stood


def test_taking_after_the_end_does_not_hang():
    ahead = Prefetcher(lambda step: [], 0, 1)
    ahead.get()
    with pytest.raises(AssertionError, match="after"):
        ahead.get()


def test_threads_end_with_the_stream_however_it_ends():
    list(stream_of())
    assert threads() == 0
    stream = stream_of(steps=None)
    stream.next()
    assert threads() == 1
    stream.close()
    stream.close()
    assert threads() == 0
    stream.next()  # it may go on after a close
    del stream  # and be forgotten
    gc.collect()
    assert threads() == 0


def test_after_the_last_step_there_is_nothing():
    stream = stream_of(steps=1)
    stream.next()
    for _ in range(2):
        with pytest.raises(StopIteration):
            stream.next()
    assert stream.state_dict() == {"step": 1}


# ---- more documents than are shuffled as one -----------------------------------------------------


def windowed(seed=1, most=30) -> RowSource:
    rng = np.random.default_rng(0)
    shards = [shard_of(*[rng.integers(0, 80, rng.integers(1, 9)).tolist() for _ in range(n)]) for n in (70, 9, 51)]
    return RowSource(shards, "crop", 8, seed, BOS, max_section_documents=most)


def test_windows_give_every_token_once_an_epoch_in_an_order_of_its_own():
    source = windowed()
    whole = sorted(token for shard in source.shards for token in shard.tokens.tolist())
    epochs = []
    for epoch in range(2):
        rows = [source.read_row(epoch * len(source) + i) for i in range(len(source))]
        seen = sorted(int(t) for tokens, mask in rows for t, m in zip(tokens, mask, strict=True) if m and t != BOS)
        assert seen == whole
        epochs.append([tuple(tokens) for tokens, _ in rows])
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])
    assert source.efficiency == pytest.approx(windowed(most=1000).efficiency, abs=0.04) and source.efficiency > 0.9


def test_a_window_holds_a_part_of_every_shard_and_only_one_is_planned():
    source = windowed()
    assert source._num_sections == 5
    for window in range(5):
        documents = set(source._pack_section(window)[0].piece_documents.tolist())
        assert all(any(low <= d < high for d in documents) for low, high in ((0, 70), (70, 79), (79, 130)))
    source.read_row(0)
    assert source._current_section[2].num_rows == source._section_rows[source._current_section[1]] < len(source)


def test_a_row_of_windows_is_a_function_of_seed_and_place_alone():
    forward, jumping = windowed(), windowed()
    rows = [tuple(forward.read_row(i)[0]) for i in range(2 * len(forward))]
    for i in np.random.default_rng(1).permutation(len(rows)).tolist():
        assert tuple(jumping.read_row(i)[0]) == rows[i]
    assert rows != [tuple(windowed(seed=2).read_row(i)[0]) for i in range(len(rows))]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_read_the_windows_of_one_without_overlap(size):
    def tokens(rank, size):
        stream = MixtureStream([(windowed(), 1.0)], 8, 2, 12, 0, rank, size, prefetch=False)
        return [[batch.tokens.tolist() for batch in step] for step in stream]

    alone, ranks = tokens(0, 1), [tokens(rank, size) for rank in range(size)]
    assert len(alone) == 12 and len(windowed()) < 12 * 8
    for step, batches in enumerate(alone):
        assert batches == [ranks[i % size][step][i // size] for i in range(len(batches))]
