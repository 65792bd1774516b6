"""Sampling on the device gives the tokens and log-probabilities of sampling by the host."""

import numpy as np
import pytest
import torch

from fledgling.infer.device_sampling import (
    RowParameters,
    can_sample_on_device,
    hash_to_uniform_on_device,
    request_key,
    sample_rows,
    sampling_mode,
)
from fledgling.infer.sampling import SamplingParams, hash_to_uniform, sample_tokens

VOCAB = 300
PARAMETERS = [
    SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for temperature in (0.0, 1e-40, 0.7, 1.0, 3.0)
    for top_k in (0, 1, 20, VOCAB, 10 * VOCAB)
    for top_p in (1.0, 0.9, 1e-6)
    for min_p in (0.0, 0.05, 1.0)
]


def make_rows(parameters, keys):
    def fractions(name):
        return torch.tensor([getattr(sampling, name) for sampling in parameters], dtype=torch.float32)

    top_k = torch.tensor([sampling.top_k for sampling in parameters])
    return RowParameters(torch.tensor(keys), top_k, *map(fractions, ("temperature", "top_p", "min_p")))


def test_the_noise_is_that_of_the_host():
    generator = np.random.default_rng(0)
    seeds, requests, positions = (generator.integers(1 << 62, size=1000, dtype=np.uint64) * 3 for _ in range(3))
    keys = [request_key(int(seed), int(request)) for seed, request in zip(seeds, requests, strict=True)]
    expected = hash_to_uniform(seeds, requests, positions)
    found = hash_to_uniform_on_device(torch.tensor(keys), torch.from_numpy(positions.view(np.int64)))
    assert torch.equal(found, torch.from_numpy(expected))
    assert request_key(-1, 3) == request_key((1 << 64) - 1, 3)


def test_every_row_gets_the_token_of_its_own_parameters():
    torch.manual_seed(0)
    logits = 4 * torch.randn(len(PARAMETERS), VOCAB)
    logits[::3] = logits[::3].round()  # ties
    keys = [request_key(5, number) for number in range(len(PARAMETERS))]
    positions = torch.arange(len(PARAMETERS)) % 7
    ids, logprobs = sample_rows(logits, make_rows(PARAMETERS, keys), positions, "truncated")
    noise = hash_to_uniform(
        *(np.array(part, np.uint64) for part in ([5] * len(keys), range(len(keys)), positions.tolist()))
    )
    for row, sampling in enumerate(PARAMETERS):
        expected = sample_tokens(logits[row : row + 1], sampling, torch.from_numpy(noise[row : row + 1]))
        assert (ids[row], logprobs[row]) == tuple(part[0] for part in expected), sampling


@pytest.mark.parametrize("mode", ["plain", "truncated"])
def test_a_row_that_needs_less_gets_the_same_token_in_any_mode(mode):
    torch.manual_seed(1)
    logits, positions = torch.randn(2, VOCAB), torch.tensor([3, 4])
    for temperature in (0.0, 0.8):
        sampling = SamplingParams(temperature=temperature)
        rows = make_rows([sampling] * 2, [request_key(1, 2)] * 2)
        least = sample_rows(logits, rows, positions, sampling_mode(sampling))
        found = sample_rows(logits, rows, positions, mode)
        assert torch.equal(least[0], found[0]) and torch.equal(least[1], found[1])


@pytest.mark.parametrize(
    ("changes", "covered"),
    [
        ({"temperature": 0.3, "top_k": 4, "top_p": 0.5, "min_p": 0.1, "seed": 9, "stop_token_ids": (3,)}, True),
        ({"max_new_tokens": 3}, True),
        ({"repetition_penalty": 1.1}, False),
        ({"logit_bias": ((1, 2.0),)}, False),
        ({"num_top_logprobs": 1}, False),
    ],
)
def test_parameters_that_change_logits_or_report_alternatives_are_not_covered(changes, covered):
    assert can_sample_on_device(SamplingParams(**changes)) == covered
