"""Sampled tokens, recorded log-probabilities, and noise as a function of its three numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fledgling.config import UserError
from fledgling.infer.sampling import (
    LogitAdjuster,
    SamplingParams,
    hash_to_uniform,
    penalize_logits,
    sample_tokens,
)


def even_noise(count: int) -> torch.Tensor:
    """Returns noise spread evenly over [0, 1): samples then hit every token in proportion."""
    return (torch.arange(count) + 0.5) / count


def frequencies(logits: torch.Tensor, sampling: SamplingParams, samples: int = 4000) -> torch.Tensor:
    ids, _ = sample_tokens(logits.expand(samples, -1), sampling, even_noise(samples))
    return torch.bincount(ids, minlength=len(logits)) / samples


@pytest.mark.parametrize("temperature", [1e-3, 1e-29, 1e-40, 9e-77, 5e-324])
def test_temperatures_near_zero_give_the_most_likely_token(temperature) -> None:
    logits = torch.tensor([[1.0, 14.9, 15.0, -15.0]])
    ids, logprobs = sample_tokens(logits, SamplingParams(temperature), torch.tensor([0.999]))
    assert ids.tolist() == [2] and logprobs.tolist() == [0.0]


def test_samples_follow_the_distribution_at_the_temperature() -> None:
    logits = torch.tensor([1.0, -0.5, 2.0, 0.0, -8.0])
    for temperature in (0.5, 1.0, 2.0):
        expected = (logits / temperature).softmax(-1)
        assert (frequencies(logits, SamplingParams(temperature)) - expected).abs().max() < 1e-3


def test_the_log_probability_is_of_the_untruncated_distribution() -> None:
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0)) * 3
    for sampling in (
        SamplingParams(0.7, top_k=3),
        SamplingParams(0.7, top_p=0.5),
        SamplingParams(0.7, min_p=0.3),
        SamplingParams(0.7),
    ):
        ids, logprobs = sample_tokens(logits, sampling, even_noise(64))
        expected = (logits / 0.7).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        assert torch.allclose(logprobs, expected, atol=1e-5)
    ids, logprobs = sample_tokens(logits, SamplingParams(0.0), even_noise(64))
    assert torch.equal(ids, logits.argmax(-1))
    assert torch.allclose(logprobs, logits.log_softmax(-1).amax(-1), atol=1e-5)


def test_top_k_top_p_and_min_p_keep_the_likely_tokens() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05]).log()

    def tokens_of(**params) -> set[int]:
        return set(frequencies(logits, SamplingParams(**params)).nonzero()[:, 0].tolist())

    assert tokens_of() == {0, 1, 2, 3, 4}
    assert tokens_of(top_k=2) == {1, 3} and tokens_of(top_k=9) == {0, 1, 2, 3, 4} and tokens_of(top_k=1) == {1}
    assert tokens_of(top_p=0.6) == {1, 3} and tokens_of(top_p=0.7) == {1, 2, 3} and tokens_of(top_p=1e-9) == {1}
    assert tokens_of(min_p=0.45) == {1, 2, 3} and tokens_of(min_p=1.0) == {1}
    assert tokens_of(top_k=3, min_p=0.6) == {1, 3}


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_noise_is_below_one_and_a_function(seed: int, request: int, position: int) -> None:
    words = [np.array([word, 5], np.uint64) for word in (seed, request, position)]
    noise = hash_to_uniform(*words)
    assert noise.dtype == np.float32 and (noise >= 0).all() and (noise < 1).all()
    alone = hash_to_uniform(*(word[:1] for word in words))
    assert alone[0] == noise[0]


def test_noise_is_spread_and_uncorrelated_in_each_of_its_numbers() -> None:
    count, zero = np.arange(20_000, dtype=np.uint64), np.zeros(20_000, np.uint64)
    for words in ((count, zero, zero), (zero, count, zero), (zero, zero, count)):
        noise = hash_to_uniform(*words)
        counts = np.histogram(noise, bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = .001
        assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.03


def test_the_largest_noise_samples_a_possible_token() -> None:
    largest = torch.full((200,), 1 - 2.0**-23)
    logits = torch.randn(200, 300, generator=torch.Generator().manual_seed(1))
    logits[:, 100:] = -torch.inf
    ids, logprobs = sample_tokens(logits, SamplingParams(), largest)
    assert (ids < 100).all() and logprobs.isfinite().all()
    ids, _ = sample_tokens(logits, SamplingParams(), torch.zeros(200))
    assert (ids == 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.01},
        {"min_p": 2},
        {"min_p": -0.1},
        {"max_new_tokens": 0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"logit_bias": ((1, float("nan")),)},
        {"logit_bias": ((1, 0.5), (1, 0.5))},
        {"num_top_logprobs": -1},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
    ],
)
def test_invalid_parameters_are_named(wrong) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        SamplingParams(**wrong)


def test_parameters_at_their_bounds_are_valid() -> None:
    SamplingParams(0, top_k=0, top_p=1, min_p=0, max_new_tokens=1, num_top_logprobs=0)
    SamplingParams(min_p=1, logit_bias=((1, 0.5), (2, 0.5)))


def test_a_penalty_lowers_seen_tokens_and_a_bias_adds() -> None:
    adjuster = LogitAdjuster(SamplingParams(repetition_penalty=2.0, logit_bias=((3, 10.0),)), [1, 0, 0], 4)
    logits = torch.tensor([2.0, -2.0, 3.0, -3.0])
    adjuster.adjust_(logits, [])
    assert logits.tolist() == [1.0, -4.0, 3.0, 7.0]
    logits = torch.tensor([2.0, -2.0, 3.0, -3.0])
    adjuster.adjust_(logits, [2])  # the answer has grown by token 2
    assert logits.tolist() == [1.0, -4.0, 1.5, 7.0]


def test_the_three_penalties_are_those_of_their_formulas() -> None:
    logits = torch.tensor([2.0, -2.0, 4.0, -4.0])
    seen, counts = torch.tensor([True, True, False, True]), torch.tensor([0.0, 3.0, 0.0, 1.0])

    def penalized(**params) -> list[float]:
        return penalize_logits(logits, seen, counts, SamplingParams(**params)).tolist()

    assert penalized() == [2.0, -2.0, 4.0, -4.0]
    assert penalized(repetition_penalty=2.0) == [1.0, -4.0, 4.0, -8.0]
    assert penalized(presence_penalty=0.5) == [2.0, -2.5, 4.0, -4.5]
    assert penalized(frequency_penalty=0.5) == [2.0, -3.5, 4.0, -4.5]
    assert penalized(frequency_penalty=-1, presence_penalty=1, repetition_penalty=2.0) == [1.0, -2.0, 4.0, -8.0]


def test_presence_and_frequency_count_the_answer_and_not_the_prompt() -> None:
    adjuster = LogitAdjuster(SamplingParams(presence_penalty=1.0, frequency_penalty=0.25), [0, 0], 3)
    for answer, expected in (([], [0, 0, 0]), ([1], [0, -1.25, 0]), ([1, 2, 2, 2], [0, -1.25, -1.75])):
        logits = torch.zeros(3)
        adjuster.adjust_(logits, answer)
        assert logits.tolist() == expected


class _CountedOperations(TorchDispatchMode):
    """Counts the tensor operations within its block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_a_step_costs_the_same_operations_whatever_the_length_of_bias_and_prompt(penalty) -> None:
    counts = []
    for length in (2, 1024):
        penalties = {name: penalty for name in ("presence_penalty", "frequency_penalty")}
        sampling = SamplingParams(
            repetition_penalty=1 + penalty, **penalties, logit_bias=tuple((token, 1.0) for token in range(length))
        )
        adjuster = LogitAdjuster(sampling, list(range(length)), 1024)
        with _CountedOperations() as operations:
            adjuster.adjust_(torch.zeros(1024), [5])
        counts.append(operations.count)
    assert counts[0] == counts[1] <= 24


def test_a_bias_names_each_token_once() -> None:
    with pytest.raises(UserError, match="each token once"):
        SamplingParams(logit_bias=((1, 5.0), (1, 5.0)))
