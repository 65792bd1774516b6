"""Steps of a batch: nobody waits longer than a chunk, rows are free at once, and what was read is found again."""

from __future__ import annotations

import random

import pytest
import torch

from fledgling.infer.engine import Engine
from fledgling.infer.prompt_lookup import PromptLookup
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import Scheduler
from fledgling.plan import inference
from tests.invariants.test_decode import random_model

CONTEXT = 512
LONG = SamplingParams(temperature=0, max_new_tokens=400)


@pytest.fixture(scope="module")
def engine(tokenizer) -> Engine:
    engine = Engine(random_model(tokenizer.vocab_size, "llama", CONTEXT), tokenizer)
    engine.stop_tokens = frozenset()
    return engine


def drawn(length: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(256) for _ in range(length)]


def finish(decoder: Scheduler) -> None:
    while decoder.has_unfinished:
        decoder.step()


@pytest.mark.parametrize("chunk", [16, 50])
def test_who_speaks_waits_for_one_chunk_at_most(engine, chunk, monkeypatch) -> None:
    decoder = Scheduler(engine, 8, prefill_chunk=chunk, prefix_cache_tokens=None)
    speaker = decoder.add_request(drawn(5, 0), LONG, use_tools=False)
    decoder.step()
    fed, plain = [], Engine.extend_cache
    monkeypatch.setattr(
        Engine, "extend_cache", lambda s, c, r, t: fed.append(max(map(len, t)) * len(t)) or plain(s, c, r, t)
    )
    others = [
        decoder.add_request(drawn(length, length), SamplingParams(temperature=0, max_new_tokens=1))
        for length in (300, 200, 9, 8)
    ]
    while decoder.prefilling or decoder.waiting:
        said = len(speaker.tokens)
        decoder.step()
        assert len(speaker.tokens) == said + 1 and sum(fed) <= chunk + 1, "padding counts"
        fed.clear()
    assert all(ticket.finish_reason for ticket in others)


def test_a_short_prompt_does_not_wait_for_a_long_one(engine) -> None:
    decoder = Scheduler(engine, 8, prefill_chunk=16, prefix_cache_tokens=None)
    long, short = (decoder.add_request(drawn(length, length), LONG, use_tools=False) for length in (400, 9))
    for _ in range(3):
        decoder.step()
    assert short.tokens and not long.tokens


def test_whoever_is_taken_back_leaves_nothing(engine) -> None:
    """Waiting, half read, following another's reading, and speaking."""
    decoder = Scheduler(engine, 3, prefill_chunk=16, prefix_cache_tokens=None)
    speaking, half = decoder.add_request(drawn(5, 0), LONG), decoder.add_request(drawn(300, 1), LONG)
    follower, waiting = decoder.add_request(drawn(300, 1), LONG), decoder.add_request(drawn(4, 2), LONG)
    for _ in range(4):
        decoder.step()
    assert speaking.tokens and half.row.length and follower in half.duplicates and waiting in decoder.waiting
    decoder.cancel(half)
    assert follower in decoder.waiting
    for ticket in (speaking, follower, waiting):
        decoder.cancel(ticket)
    assert not decoder.has_unfinished and decoder.cache.used_blocks == 0


def test_memory_is_that_of_the_blocks_in_use(engine) -> None:
    """Many answers of uneven length: no more than the planner's formula for their own lengths and a block each."""
    decoder = Scheduler(engine, 20, prefix_cache_tokens=None)
    for number in range(20):
        decoder.add_request(
            drawn(5 + 23 * number, number), SamplingParams(temperature=0, max_new_tokens=30), use_tools=False
        )
    while decoder.has_unfinished:
        decoder.step()
        rows = [ticket.row for ticket in decoder.running]
        used = decoder.cache.used_blocks * decoder.cache.block_bytes
        exact = sum(inference.kv_cache_bytes(engine.model.config, 1, row.length, "float32") for row in rows)
        assert exact <= used <= exact + len(rows) * decoder.cache.block_bytes
    assert decoder.cache.used_blocks == decoder.cache.capacity == 0


def test_a_system_prompt_is_read_once(engine) -> None:
    system = drawn(200, 0)
    decoder = Scheduler(engine, 8)
    for number in range(8):
        decoder.add_request([*system, *drawn(20, number + 1)], LONG, number, use_tools=False)
    for _ in range(8):
        decoder.step()
    assert decoder.stats.prefilled_tokens == 220 + 7 * (220 - 192)  # three whole blocks are shared
    assert decoder.stats.prefix_hit_rate == pytest.approx(7 * 192 / (8 * 220))
    assert decoder.cache.used_blocks == 3 + 8
    assert all(len(ticket.tokens) > 2 for ticket in decoder.running) and len(decoder.running) == 8


def test_a_second_turn_reads_only_what_is_new(engine) -> None:
    decoder, short = (
        Scheduler(engine, 2, prefix_cache_tokens=2 * CONTEXT),
        SamplingParams(temperature=0, max_new_tokens=30),
    )
    first = decoder.add_request(drawn(150, 0), short, use_tools=False)
    finish(decoder)
    before = decoder.stats.prefilled_tokens
    decoder.add_request([*first.prompt, *first.tokens, *drawn(10, 1)], short, use_tools=False)
    finish(decoder)
    assert decoder.stats.prefilled_tokens - before == 11  # with the last token of the answer


def test_the_least_recently_used_goes_first_and_a_beginning_last(engine) -> None:
    one = SamplingParams(temperature=0, max_new_tokens=1)
    decoder = Scheduler(engine, 1, prefix_cache_tokens=4 * 64)
    old, new = drawn(129, 0), drawn(129, 1)

    def known(prompt: list[int]) -> int:
        nodes, _, more = decoder.prefix_cache.match_prefix(prompt)
        return 64 * len(nodes) + more

    for prompt in (old, new, old):
        decoder.add_request(prompt, one, use_tools=False)
        finish(decoder)
        assert decoder.cache.used_blocks <= 4
    decoder.add_request(drawn(100, 2), one, use_tools=False)
    finish(decoder)
    assert known(new) < 64 and known(old) >= 64 and known(drawn(100, 2)) == 100


def test_weights_that_change_empty_what_is_kept(tokenizer) -> None:
    model = random_model(tokenizer.vocab_size, "fledgling", CONTEXT)
    engine, prompt = Engine(model, tokenizer), drawn(200, 0)
    decoder, short = Scheduler(engine, 2, prefix_cache_tokens=4096), SamplingParams(temperature=0, max_new_tokens=5)
    for change in (None, "in place", "by word"):
        if change == "in place":
            with torch.no_grad():
                model.blocks[0].attention.k_proj.weight.mul_(-1)
        if change == "by word":
            model.blocks[1].attention.v_proj.weight.data.mul_(-1)
            engine.refresh_weights()
        shared = decoder.stats.cached_tokens
        ticket = decoder.add_request(prompt, short, use_tools=False)
        finish(decoder)
        assert decoder.stats.cached_tokens == shared, change
        assert ticket.tokens == Engine(model, tokenizer).generate([prompt], short, use_tools=False)[0].tokens
    decoder.add_request(prompt, short, use_tools=False)
    finish(decoder)
    assert decoder.stats.cached_tokens == shared + 199


def test_weights_that_change_under_a_row_are_not_learned_from(tokenizer) -> None:
    model = random_model(tokenizer.vocab_size, "fledgling", CONTEXT)
    engine = Engine(model, tokenizer)
    decoder = Scheduler(engine, 2, prefix_cache_tokens=4096)
    ticket = decoder.add_request(drawn(100, 0), LONG, use_tools=False)
    decoder.step()
    with torch.no_grad():
        model.head.weight.mul_(2)
    decoder.add_request(drawn(3, 1), SamplingParams(max_new_tokens=1), use_tools=False)
    decoder.step()
    decoder.cancel(ticket)
    finish(decoder)
    assert decoder.prefix_cache.match_prefix(ticket.prompt) == ([], None, 0)


def test_a_text_that_repeats_itself_takes_fewer_steps_for_the_same_answer(chain, tokenizer) -> None:
    circle = {ord(a): ord(b) for a, b in zip("abcdefgh", "bcdefgha", strict=True)}
    engine = chain({tokenizer.assistant_start: ord("a"), **circle}, context=128)
    prompt, steps = [tokenizer.bos, ord("a")], []
    for lookahead in (0, 7):
        decoder = Scheduler(engine, 1, lookahead_tokens=lookahead)
        ticket = decoder.add_request(prompt, SamplingParams(temperature=0, max_new_tokens=80), use_tools=False)
        finish(decoder)
        assert bytes(ticket.tokens) == (b"bcdefgha" * 10)
        steps.append(decoder.stats.decode_steps)
    assert steps[0] == 79 and steps[1] < 25
    assert decoder.stats.acceptance_rate > 0.9


def test_guesses_follow_the_longest_beginning_and_rest_after_failing() -> None:
    ahead = PromptLookup([1, 2, 3, 9, 2, 3, 5, 1, 2, 3], 4)
    assert ahead.propose(10) == [9, 2, 3, 5] and ahead.propose(2) == [9, 2]
    ahead.update(4, 0)
    assert ahead.propose(4) == []
    assert PromptLookup([4, 4, 4], 3).propose(9) == [4, 4, 4]
    assert PromptLookup([1, 2, 3, 4], 3).propose(9) == []
