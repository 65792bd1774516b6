"""Invariant: mixed requests that arrive, finish and are cancelled at random each give the answer of the plain full
forward pass, whatever is cached, prefilled in chunks or drafted.

FLEDGLING_REQUESTS sets how many requests each single setting gets (25, and 80 for all settings at once; 200 of each for
the full campaign, as `make test-all` has it).
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

import pytest
import torch

from fledgling.config.model import FAMILIES
from fledgling.infer.engine import Engine
from fledgling.infer.request import Request
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import Scheduler
from fledgling.text.tokenizer import Tokenizer
from tests.invariants.test_decode import TOLERANCE, random_model

CONTEXT = 320  # five blocks
EACH = int(os.environ.get("FLEDGLING_REQUESTS", "25"))
ALL = max(EACH, 80)
MODES = {
    "plain": {"prefix_cache_tokens": None},
    "shared": {"prefix_cache_tokens": 0},
    "cached": {"prefix_cache_tokens": 4096},
    "hardly cached": {"prefix_cache_tokens": 640},
    "chunks": {"prefix_cache_tokens": None, "prefill_chunk": 24},
    "drafts": {"prefix_cache_tokens": None, "num_speculative_tokens": 5},
    "all": {"prefix_cache_tokens": 2048, "prefill_chunk": 24, "num_speculative_tokens": 5},
}


@dataclass(frozen=True)
class Case:
    """The arguments of one request."""

    prompt: list[int]
    sampling: SamplingParams
    use_tools: bool
    score_prompt: bool


def random_cases(count: int, seed: int) -> list[Case]:
    """Prompts that begin alike, repeat themselves, fill the context or are very short, with various parameters."""
    generator = random.Random(seed)
    systems = [[generator.randrange(256) for _ in range(length)] for length in (64, 100, 200)]
    cases: list[Case] = []
    for _ in range(count):
        own = [generator.randrange(256) for _ in range(generator.choice((1, 3, 20, 63, 64, 65, 110)))]
        if generator.random() < 0.3:
            own = own[:7] * 6
        prefix = generator.choice(([], [], *systems))
        if cases and generator.random() < 0.1:
            prefix, own = [], list(generator.choice(cases).prompt)
        sampling = SamplingParams(
            temperature=generator.choice((0.0, 0.0, 0.0, 1.0, 0.7)),
            top_k=generator.choice((0, 0, 5)),
            top_p=generator.choice((1.0, 0.9)),
            min_p=generator.choice((0.0, 0.02)),
            repetition_penalty=generator.choice((1.0, 1.0, 1.3)),
            logit_bias=generator.choice(((), ((65, 3.0), (66, -2.0)))),
            num_top_logprobs=generator.choice((0, 0, 3)),
            max_new_tokens=generator.choice((1, 4, 15, 40)),
            seed=generator.randrange(1 << 40),
        )
        cases.append(Case([*prefix, *own], sampling, generator.random() < 0.5, generator.random() < 0.1))
    return cases


def run_cases(
    engine: Engine, cases: list[Case], seed: int, max_batch_size: int, **mode
) -> tuple[list[Request], Scheduler]:
    """Runs every case; some requests arrive while others run, and some additional ones are cancelled."""
    generator, scheduler = random.Random(seed), engine.make_scheduler(max_batch_size, **mode)
    order = list(range(len(cases)))
    generator.shuffle(order)
    requests: dict[int, Request] = {}
    to_cancel: list[Request] = []
    while order or scheduler.has_unfinished:
        for _ in range(min(len(order), generator.choice((0, 0, 1, 2, 12)))):
            case = cases[number := order.pop()]
            requests[number] = scheduler.add_request(
                engine.make_request(case.prompt, case.sampling, number, case.use_tools, case.score_prompt)
            )
            if generator.random() < 0.2:
                prompt, sampling = case.prompt[: generator.randrange(1, 200)], SamplingParams(max_new_tokens=30)
                to_cancel.append(scheduler.add_request(engine.make_request(prompt, sampling, number)))
        scheduler.step()
        if to_cancel and generator.random() < 0.3:
            scheduler.cancel(to_cancel.pop(generator.randrange(len(to_cancel))))
        if not order:
            for request in to_cancel:
                scheduler.cancel(request)
            to_cancel = []
    return [requests[number] for number in range(len(cases))], scheduler


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request, tokenizer: Tokenizer) -> Engine:
    return Engine(random_model(tokenizer.vocab_size, request.param, CONTEXT), tokenizer)


@pytest.mark.parametrize("mode", MODES)
def test_every_answer_is_that_of_the_full_forward(engine, mode) -> None:
    cases = random_cases(ALL if mode == "all" else EACH, seed=5)
    requests, scheduler = run_cases(engine, cases, seed=6, max_batch_size=12, **MODES[mode])
    for case, request in zip(cases, requests, strict=True):
        assert request.finish_reason and len(request.tokens) <= case.sampling.max_new_tokens
        assert_full_forward(engine, case, request)
    stats = scheduler.stats
    assert stats.prefilled_tokens + stats.cached_tokens <= stats.prompt_tokens
    assert (stats.accepted > 0) == ("num_speculative_tokens" in MODES[mode])
    assert scheduler.cache.used_blocks <= (MODES[mode]["prefix_cache_tokens"] or 0) // scheduler.cache.block_size
    if mode in ("cached", "all"):
        assert stats.prefix_hit_rate > 0.2


def assert_full_forward(engine: Engine, case: Case, request: Request) -> None:
    """A request's tokens and log-probabilities are those of the whole sequence in one forward pass."""
    sequence, sampling = [*case.prompt, *request.tokens], case.sampling
    with torch.no_grad():
        all_logits = engine.source.compute_logits(engine.source(torch.tensor([sequence])))[0]
    if case.score_prompt:
        logprobs = all_logits[: len(case.prompt) - 1].log_softmax(-1)
        expected = logprobs.gather(-1, torch.tensor(case.prompt[1:])[:, None])[:, 0]
        assert len(request.prompt_logprobs) == len(case.prompt) - 1
        assert torch.allclose(torch.tensor(request.prompt_logprobs), expected, atol=TOLERANCE)
        top = logprobs.topk(sampling.num_top_logprobs).indices.tolist() if sampling.num_top_logprobs else []
        assert [[token for token, _ in entries] for entries in request.prompt_top_logprobs] == top
    else:
        assert not request.prompt_logprobs and not request.prompt_top_logprobs
    logits = all_logits[len(case.prompt) - 1 : -1].clone()
    for position, row in enumerate(logits):
        adjust_row(row, sampling, sequence[: len(case.prompt) + position])
    expected = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
    generated = zip(request.tokens, request.logprobs, request.forced, strict=True)
    for position, (token, logprob, forced) in enumerate(generated):
        assert logprob == 0 if forced else abs(expected[position, token].item() - logprob) < TOLERANCE
        assert forced or sampling.temperature or token == logits[position].argmax()
    if sampling.num_top_logprobs and not any(request.forced):
        top = logits.log_softmax(-1).topk(sampling.num_top_logprobs)
        assert [[token for token, _ in entries] for entries in request.top_logprobs] == top.indices.tolist()


def adjust_row(row: torch.Tensor, sampling: SamplingParams, seen: list[int]) -> None:
    """Penalty and bias, implemented a second time."""
    tokens = torch.tensor(sorted(set(seen)))
    penalty = sampling.repetition_penalty
    row[tokens] *= torch.where(row[tokens] > 0, 1 / penalty, penalty)
    for token, value in sampling.logit_bias:
        row[token] += value


def test_an_answer_does_not_depend_on_the_other_requests(engine) -> None:
    cases = random_cases(40, seed=9)
    together, _ = run_cases(engine, cases, seed=1, max_batch_size=16, **MODES["all"])
    for number in range(0, 40, 3):
        case, scheduler = cases[number], engine.make_scheduler(1, prefix_cache_tokens=None)
        alone = scheduler.add_request(engine.make_request(case.prompt, case.sampling, number, case.use_tools))
        while scheduler.has_unfinished:
            scheduler.step()
        assert (alone.tokens, alone.finish_reason) == (together[number].tokens, together[number].finish_reason)
