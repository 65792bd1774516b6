"""Scheduler steps: the delay is one chunk at most, rows are free at once, and cached prefixes are found again."""

from __future__ import annotations

import random

import pytest
import torch

from fledgling.infer.engine import Engine
from fledgling.infer.runner import ModelRunner
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import ADMIT_DIVISOR, Scheduler, _missing_blocks
from fledgling.model.cache import CacheRow
from fledgling.plan import inference
from tests.invariants.test_decode import random_model

CONTEXT = 512
LONG = SamplingParams(temperature=0, max_new_tokens=400)


@pytest.fixture(scope="module")
def engine(tokenizer) -> Engine:
    engine = Engine(random_model(tokenizer.vocab_size, "llama", CONTEXT), tokenizer)
    engine.stop_tokens = frozenset()
    return engine


def random_prompt(length: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(256) for _ in range(length)]


def run_all(scheduler: Scheduler) -> None:
    while scheduler.has_unfinished:
        scheduler.step()


@pytest.mark.parametrize("chunk", [16, 50])
def test_a_running_request_waits_for_one_chunk_at_most(engine, chunk, monkeypatch) -> None:
    scheduler = engine.make_scheduler(8, prefill_chunk=chunk, prefix_cache_tokens=None)
    running = scheduler.add_request(engine.make_request(random_prompt(5, 0), LONG, use_tools=False))
    scheduler.step()
    computed, extend_cache = [], ModelRunner.extend_cache
    monkeypatch.setattr(
        ModelRunner,
        "extend_cache",
        lambda s, c, r, t: computed.append(max(map(len, t)) * len(t)) or extend_cache(s, c, r, t),
    )
    one_token = SamplingParams(temperature=0, max_new_tokens=1)
    others = [
        scheduler.add_request(engine.make_request(random_prompt(length, length), one_token))
        for length in (300, 200, 9, 8)
    ]
    while scheduler.prefilling or scheduler.waiting:
        count = len(running.tokens)
        scheduler.step()
        assert len(running.tokens) == count + 1 and sum(computed) <= chunk + 1, "padding counts"
        computed.clear()
    assert all(request.finish_reason for request in others)


def test_a_short_prompt_does_not_wait_for_a_long_one(engine) -> None:
    scheduler = engine.make_scheduler(8, prefill_chunk=16, prefix_cache_tokens=None)
    long, short = (
        scheduler.add_request(engine.make_request(random_prompt(length, length), LONG, use_tools=False))
        for length in (400, 9)
    )
    for _ in range(3):
        scheduler.step()
    assert short.tokens and not long.tokens


def test_a_cancelled_request_leaves_nothing(engine) -> None:
    """Waiting, half prefilled, a duplicate of a prompt that is prefilled, and running."""
    scheduler = engine.make_scheduler(3, prefill_chunk=16, prefix_cache_tokens=None)
    prompts = (random_prompt(5, 0), random_prompt(300, 1), random_prompt(300, 1), random_prompt(4, 2))
    running, half, duplicate, waiting = (scheduler.add_request(engine.make_request(prompt, LONG)) for prompt in prompts)
    for _ in range(4):
        scheduler.step()
    assert running.tokens and half.row.length and duplicate in half.duplicates and waiting in scheduler.waiting
    scheduler.cancel(half)
    assert duplicate in scheduler.waiting
    for request in (running, duplicate, waiting):
        scheduler.cancel(request)
    assert not scheduler.has_unfinished and scheduler.cache.used_blocks == 0


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (3, 5, 3, None), (None, 2)])
@pytest.mark.parametrize("chunk", [16, 1000])
def test_requests_with_one_prompt_have_the_scores_that_each_requests(engine, counts, chunk) -> None:
    """counts: alternatives of each request to the tokens of its prompt; None: the prompt is not scored."""
    scheduler = engine.make_scheduler(8, prefill_chunk=chunk)
    prompt, requests = random_prompt(40, 0), []
    for count in counts:
        sampling = SamplingParams(temperature=0, max_new_tokens=2, num_top_logprobs=count or 0)
        requests.append(
            scheduler.add_request(
                engine.make_request(prompt, sampling, use_tools=False, score_prompt=count is not None)
            )
        )
    run_all(scheduler)
    for count, request in zip(counts, requests, strict=True):
        assert len(request.prompt_logprobs) == (0 if count is None else 39)
        assert [len(top) for top in request.prompt_top_logprobs] == ([count] * 39 if count else [])
    assert scheduler.cache.used_blocks == 0


def test_memory_is_that_of_the_blocks_in_use(engine) -> None:
    """Many answers of different lengths: no more than the planner's formula for their lengths and a block each."""
    scheduler = engine.make_scheduler(20, prefix_cache_tokens=None)
    for number in range(20):
        sampling = SamplingParams(temperature=0, max_new_tokens=30)
        prompt = random_prompt(5 + 23 * number, number)
        scheduler.add_request(engine.make_request(prompt, sampling, use_tools=False))
    while scheduler.has_unfinished:
        scheduler.step()
        rows = [request.row for request in scheduler.running]
        used = scheduler.cache.used_blocks * scheduler.cache.block_bytes
        exact = sum(inference.kv_cache_bytes(engine.model.config, 1, row.length, "float32") for row in rows)
        assert exact <= used <= exact + len(rows) * scheduler.cache.block_bytes
    assert scheduler.cache.used_blocks == scheduler.cache.capacity == 0


def test_a_system_prompt_is_computed_once(engine) -> None:
    system = random_prompt(200, 0)
    scheduler = engine.make_scheduler(8)
    for number in range(8):
        prompt = [*system, *random_prompt(20, number + 1)]
        scheduler.add_request(engine.make_request(prompt, LONG, number, use_tools=False))
    for _ in range(8):
        scheduler.step()
    assert scheduler.stats.prefilled_tokens == 220 + 7 * (220 - 192)  # three whole blocks are shared
    assert scheduler.stats.prefix_hit_rate == pytest.approx(7 * 192 / (8 * 220))
    assert scheduler.cache.used_blocks == 3 + 8
    assert all(len(request.tokens) > 2 for request in scheduler.running) and len(scheduler.running) == 8


def test_a_second_turn_computes_only_new_tokens(engine) -> None:
    scheduler = engine.make_scheduler(2, prefix_cache_tokens=2 * CONTEXT)
    short = SamplingParams(temperature=0, max_new_tokens=30)
    first = scheduler.add_request(engine.make_request(random_prompt(150, 0), short, use_tools=False))
    run_all(scheduler)
    before = scheduler.stats.prefilled_tokens
    prompt = [*first.prompt, *first.tokens, *random_prompt(10, 1)]
    scheduler.add_request(engine.make_request(prompt, short, use_tools=False))
    run_all(scheduler)
    assert scheduler.stats.prefilled_tokens - before == 11  # with the last token of the answer


def test_the_least_recently_used_block_is_evicted_first_and_a_beginning_last(engine) -> None:
    one_token = SamplingParams(temperature=0, max_new_tokens=1)
    scheduler = engine.make_scheduler(1, prefix_cache_tokens=4 * 64)
    old, new = random_prompt(129, 0), random_prompt(129, 1)

    def cached(prompt: list[int]) -> int:
        nodes, _, more = scheduler.prefix_cache.match_prefix(prompt)
        return 64 * len(nodes) + more

    for prompt in (old, new, old):
        scheduler.add_request(engine.make_request(prompt, one_token, use_tools=False))
        run_all(scheduler)
        assert scheduler.cache.used_blocks <= 4
    scheduler.add_request(engine.make_request(random_prompt(100, 2), one_token, use_tools=False))
    run_all(scheduler)
    assert cached(new) < 64 and cached(old) >= 64 and cached(random_prompt(100, 2)) == 100


def test_weights_that_change_clear_the_prefix_cache(tokenizer) -> None:
    model = random_model(tokenizer.vocab_size, "fledgling", CONTEXT)
    engine, prompt = Engine(model, tokenizer), random_prompt(200, 0)
    scheduler = engine.make_scheduler(2, prefix_cache_tokens=4096)
    short = SamplingParams(temperature=0, max_new_tokens=5)
    for change in (None, "in place", "with refresh_weights"):
        if change == "in place":
            with torch.no_grad():
                model.blocks[0].attention.k_proj.weight.mul_(-1)
        if change == "with refresh_weights":
            model.blocks[1].attention.v_proj.weight.data.mul_(-1)
            engine.refresh_weights()
        cached = scheduler.stats.cached_tokens
        request = scheduler.add_request(engine.make_request(prompt, short, use_tools=False))
        run_all(scheduler)
        assert scheduler.stats.cached_tokens == cached, change
        assert request.tokens == Engine(model, tokenizer).generate([prompt], short, use_tools=False)[0].tokens
    scheduler.add_request(engine.make_request(prompt, short, use_tools=False))
    run_all(scheduler)
    assert scheduler.stats.cached_tokens == cached + 199


def test_a_row_whose_weights_have_changed_is_not_cached(tokenizer) -> None:
    model = random_model(tokenizer.vocab_size, "fledgling", CONTEXT)
    engine = Engine(model, tokenizer)
    scheduler = engine.make_scheduler(2, prefix_cache_tokens=4096)
    request = scheduler.add_request(engine.make_request(random_prompt(100, 0), LONG, use_tools=False))
    scheduler.step()
    with torch.no_grad():
        model.head.weight.mul_(2)
    one_token = SamplingParams(max_new_tokens=1)
    scheduler.add_request(engine.make_request(random_prompt(3, 1), one_token, use_tools=False))
    scheduler.step()
    scheduler.cancel(request)
    run_all(scheduler)
    assert scheduler.prefix_cache.match_prefix(request.prompt) == ([], None, 0)


def test_a_text_that_repeats_itself_takes_fewer_steps_for_the_same_answer(chain, tokenizer) -> None:
    circle = {ord(a): ord(b) for a, b in zip("abcdefgh", "bcdefgha", strict=True)}
    engine = chain({tokenizer.assistant_start: ord("a"), **circle}, context=128)
    prompt, steps = [tokenizer.bos, ord("a")], []
    for num_speculative_tokens in (0, 7):
        scheduler = engine.make_scheduler(1, num_speculative_tokens=num_speculative_tokens)
        sampling = SamplingParams(temperature=0, max_new_tokens=80)
        request = scheduler.add_request(engine.make_request(prompt, sampling, use_tools=False))
        run_all(scheduler)
        assert bytes(request.tokens) == (b"bcdefgha" * 10)
        steps.append(scheduler.stats.decode_steps)
    assert steps[0] == 79 and steps[1] < 25
    assert scheduler.stats.acceptance_rate > 0.9


@pytest.mark.parametrize(
    ("length", "count", "blocks", "missing"), [(0, 1, 0, 1), (4, 1, 1, 1), (7, 1, 2, 0), (7, 2, 2, 1), (3, 9, 1, 2)]
)
def test_the_blocks_that_a_row_lacks_are_counted(length, count, blocks, missing) -> None:
    row = CacheRow(length=length, block_table=list(range(blocks)))
    assert _missing_blocks(row, count, block_size=4) == missing


def test_a_busy_batch_admits_requests_in_groups(engine) -> None:
    rows = 2 * ADMIT_DIVISOR  # so a group is two
    scheduler = engine.make_scheduler(rows, prefix_cache_tokens=None)
    lengths = [8, 12] + [16] * (rows - 2) + [4] * 3
    for number, length in enumerate(lengths):
        sampling = SamplingParams(temperature=0, max_new_tokens=length)
        scheduler.add_request(engine.make_request(random_prompt(3, number), sampling, use_tools=False))
    waiting = []
    while scheduler.waiting:
        waiting.append((len(scheduler.running), len(scheduler.waiting)))
        scheduler.step()
    assert (rows - 1, 3) in waiting, "one free row does not interrupt the others"
    assert any(running == rows - 2 and left == 3 for running, left in waiting), "two do"
    run_all(scheduler)
