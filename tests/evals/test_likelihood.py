"""The scorer against one forward pass for each row: shared prefixes, cropping, batches and ranks change no score."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.config import ModelConfig
from fledgling.evals.likelihood import (
    ContinuationRow,
    Scorer,
    common_prefix_length,
    common_suffix_length,
    pack_item,
    split_windows,
)
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer
from tests.ranks import choose_port

CONTEXT = 48


def make_engine(heads: int = 4, kv_heads: int = 2, context: int = CONTEXT, dtype: torch.dtype | None = None) -> Engine:
    """A model with every weight random."""
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 2, 64, heads, kv_heads, context))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return Engine(model, tokenizer, dtype=dtype)


def score_row_alone(model: Transformer, row: ContinuationRow) -> tuple[float, list[int]]:
    """Returns (log p of the continuation, most likely tokens) of a row in a forward pass of its own."""
    cropped = max(0, len(row.tokens) - model.config.context)
    tokens = torch.from_numpy(row.tokens[cropped:].astype(np.int64))
    start = max(1, row.start - cropped)
    with torch.no_grad():
        logits = model.compute_logits(model(tokens[None]))[0, start - 1 : -1]
    chosen = logits.double().log_softmax(-1).gather(1, tokens[start:, None])
    return float(chosen.sum()), logits.argmax(-1).tolist()


def make_items(rng: np.random.Generator, count: int) -> list[list[ContinuationRow]]:
    """Returns items of every kind: short and long choices, schemas, single rows, rows longer than the context."""
    items = []
    for number in range(count):
        shared = rng.integers(1, 300, rng.integers(1, 60)).astype(np.int32)
        ends = [rng.integers(1, 300, rng.integers(1, 12)).astype(np.int32) for _ in range(1 + number % 4)]
        rows = [np.concatenate([shared, end]) for end in ends]
        if number % 5 == 4:  # a schema: the scored tokens follow the difference
            tail = rng.integers(1, 300, 5).astype(np.int32)
            items.append([ContinuationRow(np.concatenate([row, tail]), len(row)) for row in rows])
        else:
            items.append([ContinuationRow(row, len(shared)) for row in rows])
    return items


@pytest.fixture(scope="module")
def small_engine():
    return make_engine()


@pytest.mark.parametrize("batch_tokens", [40, 500, 100_000])
@pytest.mark.parametrize("share", [True, False])
def test_scores_equal_those_of_rows_scored_alone(small_engine, batch_tokens, share):
    items = make_items(np.random.default_rng(0), 40)
    scored = Scorer(small_engine, batch_tokens=batch_tokens, share_prefixes=share).score(items)
    for item, scores in zip(items, scored, strict=True):
        for row, score in zip(item, scores, strict=True):
            logprob, predicted = score_row_alone(small_engine.model, row)
            assert score.logprob == pytest.approx(logprob, abs=1e-4)
            assert list(score.predicted) == predicted and score.num_tokens == len(predicted)
            continuation = row.tokens[-score.num_tokens :].tolist()
            assert score.is_greedy == (predicted == continuation)
            assert score.num_cropped == max(0, len(row.tokens) - CONTEXT)


def test_long_rows_use_sdpa_and_agree():
    """Beyond 2,048 tokens attention uses another implementation, also with a tree mask."""
    long = make_engine(context=2200)
    rng = np.random.default_rng(2)
    shared = rng.integers(1, 300, 2100).astype(np.int32)
    item = [
        ContinuationRow(np.concatenate([shared, rng.integers(1, 300, n).astype(np.int32)]), 2100) for n in (3, 9, 1)
    ]
    for row, score in zip(item, Scorer(long).score([item])[0], strict=True):
        assert score.logprob == pytest.approx(score_row_alone(long.model, row)[0], abs=1e-4)


def test_the_shared_prefix_of_choices_is_computed_once(small_engine):
    shared = np.arange(1, 41, dtype=np.int32)
    item = [ContinuationRow(np.append(shared, letter).astype(np.int32), 40) for letter in (50, 51, 52, 53)]
    (packed,) = pack_item(item, 0, CONTEXT)
    assert len(packed.tokens) == 40 and packed.branches is None, "a letter is only predicted, never fed"
    scorer = Scorer(small_engine)
    scorer.score([item] * 10)
    assert scorer.stats.computed_tokens == 400 and scorer.stats.choice_tokens == 10 * 4 * 41
    words = [ContinuationRow(np.concatenate([shared, [letter, 7, 8]]).astype(np.int32), 40) for letter in (50, 51)]
    (packed,) = pack_item(words, 0, CONTEXT)
    assert packed.branches[40:].tolist() == [1, 1, 2, 2] and packed.positions[40:].tolist() == [40, 41, 40, 41]
    assert len(pack_item(words, 0, CONTEXT, share_prefixes=False)) == 2


def test_rows_cropped_differently_do_not_share():
    """Their contexts begin at different tokens, so that nothing computed for one is valid for the other."""
    shared = np.arange(1, 47, dtype=np.int32)
    item = [ContinuationRow(np.concatenate([shared, np.arange(n, dtype=np.int32) + 60]), 46) for n in (4, 4, 7)]
    packed = pack_item(item, 0, CONTEXT)
    assert [one.segments for one in packed] == [((0, 4, 2), (1, 4, 2)), ((2, 7, 5),)]


def test_branches_do_not_attend_to_each_other(small_engine):
    shared = np.arange(1, 20, dtype=np.int32)
    first = ContinuationRow(np.concatenate([shared, [30, 31, 32]]).astype(np.int32), 19)
    others = [ContinuationRow(np.concatenate([shared, [n, 90, 91]]).astype(np.int32), 19) for n in (40, 200)]
    scorer = Scorer(small_engine)
    with_first, with_second = scorer.score([[first, others[0]], [first, others[1]]])
    assert with_first[0].logprob == pytest.approx(with_second[0].logprob, abs=1e-6)


def test_bfloat16_is_near(small_engine):
    items = make_items(np.random.default_rng(3), 20)
    exact = Scorer(small_engine).score(items)
    rough = Scorer(make_engine(dtype=torch.bfloat16)).score(items)
    for one, other in zip((s for i in exact for s in i), (s for i in rough for s in i), strict=True):
        assert other.mean_logprob == pytest.approx(one.mean_logprob, abs=0.1)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_common_prefix_and_suffix_are_the_longest(rows):
    arrays = [np.array(row) for row in rows]
    length = common_prefix_length(arrays)
    assert all(row[:length] == rows[0][:length] for row in rows)
    assert any(len(row) == length for row in rows) or len({row[length] for row in rows}) > 1
    assert common_suffix_length(arrays) == common_prefix_length([np.array(row[::-1]) for row in rows])


@given(st.integers(2, 40), st.integers(2, 120), st.data())
@settings(max_examples=200, deadline=None)
def test_windows_score_every_token_of_the_continuation_once(context, length, data):
    row = ContinuationRow(np.arange(length, dtype=np.int32), data.draw(st.integers(1, length - 1)))
    windows = list(split_windows(row, context))
    assert [t for _, w in windows for t in w.tokens[w.start :].tolist()] == list(range(row.start, length))
    assert all(len(w.tokens) <= context and w.tokens[0] == first for first, w in windows)
    if length - row.start < context:
        assert [(first, len(w.tokens)) for first, w in windows] == [(max(0, length - context), min(length, context))]


def test_a_continuation_longer_than_the_context_is_scored_in_windows(small_engine):
    tokens = np.random.default_rng(5).integers(1, 300, 3 * CONTEXT).astype(np.int32)
    for start in (1, 30, CONTEXT + 9):
        row = ContinuationRow(tokens, start)
        ((score,),) = Scorer(small_engine).score([[row]])
        alone = [score_row_alone(small_engine.model, window) for _, window in split_windows(row, CONTEXT)]
        assert score.logprob == pytest.approx(sum(logprob for logprob, _ in alone), abs=1e-3)
        assert score.num_tokens == len(tokens) - start
        assert list(score.predicted) == [token for _, predicted in alone for token in predicted]


def test_a_row_without_a_scored_token_is_rejected():
    """Its log-probability would be 0 and its prediction greedy: the best of all choices."""
    for start in (0, 3):
        with pytest.raises(AssertionError, match=f"start is {start} of a row of 3 tokens"):
            ContinuationRow(np.array([1, 2, 3], np.int32), start)


def _score_on_rank(rank, size, port, results):
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world = World.start("cpu")
    scorer = Scorer(make_engine(), world, batch_tokens=300)
    scored = scorer.score(make_items(np.random.default_rng(0), 40))
    results[rank] = ([[score.logprob for score in scores] for scores in scored], scorer.stats.computed_tokens)
    world.close()


def test_two_ranks_share_the_work_and_both_get_all_scores(small_engine):
    port = choose_port()
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(_score_on_rank, args=(2, port, results), nprocs=2)
    alone = Scorer(small_engine, batch_tokens=300)
    expected = [[score.logprob for score in scores] for scores in alone.score(make_items(np.random.default_rng(0), 40))]
    for rank in range(2):
        for rank_scores, alone_scores in zip(results[rank][0], expected, strict=True):
            assert rank_scores == pytest.approx(alone_scores, abs=1e-4)
    computed = [results[rank][1] for rank in range(2)]
    assert sum(computed) == alone.stats.computed_tokens and min(computed) > 0.3 * sum(computed)
