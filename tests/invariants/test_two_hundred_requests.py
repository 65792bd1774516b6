"""Law: 200 mixed requests that come, leave and are taken back at random are each answered as if alone by the plain
full forward, whatever is shared, read in chunks or guessed ahead.

FLEDGLING_REQUESTS sets how many each single setting gets (default 40; 200: the campaign); all at once get 200.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

import pytest
import torch

from fledgling.config.model import FAMILIES
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import Scheduler
from fledgling.text.tokenizer import Tokenizer
from tests.invariants.test_decode import TOLERANCE, random_model

CONTEXT = 320  # five blocks
ALL, EACH = 200, int(os.environ.get("FLEDGLING_REQUESTS", "40"))
MODES = {
    "plain": {"prefix_cache_tokens": None},
    "shared": {"prefix_cache_tokens": 0},
    "kept": {"prefix_cache_tokens": 4096},
    "hardly kept": {"prefix_cache_tokens": 640},
    "chunks": {"prefix_cache_tokens": None, "prefill_chunk": 24},
    "ahead": {"prefix_cache_tokens": None, "lookahead_tokens": 5},
    "all": {"prefix_cache_tokens": 2048, "prefill_chunk": 24, "lookahead_tokens": 5},
}


@dataclass(frozen=True)
class Asked:
    prompt: list[int]
    sampling: SamplingParams
    tools: bool
    score: bool


def requests(count: int, seed: int) -> list[Asked]:
    """Prompts that begin alike, repeat themselves, fill the context or hardly exist; each drawn in its own way."""
    chance = random.Random(seed)
    systems = [[chance.randrange(256) for _ in range(length)] for length in (64, 100, 200)]
    found = []
    for _ in range(count):
        own = [chance.randrange(256) for _ in range(chance.choice((1, 3, 20, 63, 64, 65, 110)))]
        if chance.random() < 0.3:
            own = own[:7] * 6
        begin = chance.choice(([], [], *systems))
        if found and chance.random() < 0.1:
            begin, own = [], list(chance.choice(found).prompt)
        sampling = SamplingParams(
            temperature=chance.choice((0.0, 0.0, 0.0, 1.0, 0.7)),
            top_k=chance.choice((0, 0, 5)),
            top_p=chance.choice((1.0, 0.9)),
            min_p=chance.choice((0.0, 0.02)),
            repetition_penalty=chance.choice((1.0, 1.0, 1.3)),
            logit_bias=chance.choice(((), ((65, 3.0), (66, -2.0)))),
            num_top_logprobs=chance.choice((0, 0, 3)),
            max_new_tokens=chance.choice((1, 4, 15, 40)),
            seed=chance.randrange(1 << 40),
        )
        found.append(Asked([*begin, *own], sampling, chance.random() < 0.5, chance.random() < 0.1))
    return found


def told(engine: Engine, asked: list[Asked], seed: int, rows: int, **mode) -> tuple[list, Scheduler]:
    """Every request's ticket; some come while others speak, and some that nobody waits for are taken back."""
    chance, decoder = random.Random(seed), Scheduler(engine, rows, **mode)
    order = list(range(len(asked)))
    chance.shuffle(order)
    tickets, passing = [None] * len(asked), []
    while order or decoder.has_unfinished:
        for _ in range(min(len(order), chance.choice((0, 0, 1, 2, 12)))):
            one = asked[number := order.pop()]
            tickets[number] = decoder.add_request(one.prompt, one.sampling, number, one.tools, one.score)
            if chance.random() < 0.2:
                passing.append(
                    decoder.add_request(
                        one.prompt[: chance.randrange(1, 200)], SamplingParams(max_new_tokens=30), number
                    )
                )
        decoder.step()
        if passing and chance.random() < 0.3:
            decoder.cancel(passing.pop(chance.randrange(len(passing))))
        if not order:
            for ticket in passing:
                decoder.cancel(ticket)
            passing = []
    return tickets, decoder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request, tokenizer: Tokenizer) -> Engine:
    return Engine(random_model(tokenizer.vocab_size, request.param, CONTEXT), tokenizer)


@pytest.mark.parametrize("mode", MODES)
def test_every_answer_is_that_of_the_full_forward(engine, mode) -> None:
    asked = requests(ALL if mode == "all" else EACH, seed=5)
    tickets, decoder = told(engine, asked, seed=6, rows=12, **MODES[mode])
    for one, ticket in zip(asked, tickets, strict=True):
        assert ticket.finish_reason and len(ticket.tokens) <= one.sampling.max_new_tokens
        assert_told(engine, one, ticket)
    figures = decoder.stats
    assert figures.prefilled_tokens + figures.cached_tokens <= figures.prompt_tokens
    assert (figures.accepted > 0) == ("lookahead_tokens" in MODES[mode])
    assert decoder.cache.used_blocks <= (MODES[mode]["prefix_cache_tokens"] or 0) // decoder.cache.block_size
    if mode in ("kept", "all"):
        assert figures.prefix_hit_rate > 0.2


def assert_told(engine: Engine, one: Asked, ticket) -> None:
    """A ticket's tokens and log-probabilities are those of the whole sequence read at once."""
    whole, sampling = [*one.prompt, *ticket.tokens], one.sampling
    with torch.no_grad():
        every = engine.source.compute_logits(engine.source(torch.tensor([whole])))[0]
    if one.score:
        said = every[: len(one.prompt) - 1].log_softmax(-1)
        expected = said.gather(-1, torch.tensor(one.prompt[1:])[:, None])[:, 0]
        assert len(ticket.prompt_logprobs) == len(one.prompt) - 1
        assert torch.allclose(torch.tensor(ticket.prompt_logprobs), expected, atol=TOLERANCE)
    logits = every[len(one.prompt) - 1 : -1].clone()
    for place, row in enumerate(logits):
        adjusted(row, sampling, whole[: len(one.prompt) + place])
    expected = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
    for place, (token, logprob, forced) in enumerate(zip(ticket.tokens, ticket.logprobs, ticket.forced, strict=True)):
        assert logprob == 0 if forced else abs(expected[place, token].item() - logprob) < TOLERANCE
        assert forced or sampling.temperature or token == logits[place].argmax()
    if sampling.num_top_logprobs and not any(ticket.forced):
        top = logits.log_softmax(-1).topk(sampling.num_top_logprobs)
        assert [[token for token, _ in found] for found in ticket.top_logprobs] == top.indices.tolist()


def adjusted(row: torch.Tensor, sampling: SamplingParams, seen: list[int]) -> None:
    """The penalty and the bias, written down once more."""
    for token in set(seen):
        row[token] *= 1 / sampling.repetition_penalty if row[token] > 0 else sampling.repetition_penalty
    for token, value in sampling.logit_bias:
        row[token] += value


def test_an_answer_does_not_depend_on_its_neighbours(engine) -> None:
    asked = requests(40, seed=9)
    crowd, _ = told(engine, asked, seed=1, rows=16, **MODES["all"])
    for number in range(0, 40, 3):
        one, decoder = asked[number], Scheduler(engine, 1, prefix_cache_tokens=None)
        alone = decoder.add_request(one.prompt, one.sampling, number, one.tools)
        while decoder.has_unfinished:
            decoder.step()
        assert (alone.tokens, alone.finish_reason) == (crowd[number].tokens, crowd[number].finish_reason)
