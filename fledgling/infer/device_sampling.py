"""Sampling on the device: every row has parameters of its own, and nothing is read by the host.

The same mathematics as `sampling.sample_tokens`, whose rows share their parameters, and the same noise: the hash of
(seed, request, position) is computed on the device from a key that the host makes once for each request.

B rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fledgling.infer.sampling import (
    MIN_TEMPERATURE,
    UINT64_MASK,
    SamplingParams,
    hash_request,
    sample_inverse_cdf,
)

SamplingMode = Literal["greedy", "plain", "truncated"]  # what the rows of a step need at most
GOLDEN_GAMMA, MIX_1, MIX_2 = (
    value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)  # of splitmix64, as signed numbers


@dataclass(frozen=True)
class RowParameters:
    """Sampling parameters of each row, (B,) each; see `SamplingParams`.

    keys: int64, of `hash_request`.
    top_k: int64; temperature, top_p, min_p: fp32.
    """

    keys: Tensor
    top_k: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor


@lru_cache(maxsize=1024)
def can_sample_on_device(sampling: SamplingParams) -> bool:
    """Whether `sample_rows` covers these parameters: no bias, no penalty, no reported alternatives."""
    plain = SamplingParams(
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.max_new_tokens,
        sampling.seed,
        sampling.stop_token_ids,
    )
    return sampling == plain


def sampling_mode(sampling: SamplingParams) -> SamplingMode:
    """Returns the least that a row with these parameters needs."""
    if sampling.temperature == 0:
        return "greedy"
    return "truncated" if sampling.top_k or sampling.top_p < 1 or sampling.min_p else "plain"


def request_key(seed: int, index: int) -> int:
    """Returns the key of a request's noise, as a signed 64-bit number."""
    word = hash_request(np.array([seed & UINT64_MASK], np.uint64), np.array([index], np.uint64))
    return int(word.view(np.int64)[0])


def sample_rows(logits: Tensor, rows: RowParameters, positions: Tensor, mode: SamplingMode) -> tuple[Tensor, Tensor]:
    """Samples one token a row.

    Args:
        logits: (B, V) fp32.
        positions: (B,) int64, the number of tokens that the answer has.
        mode: `sampling_mode` of the row that needs most. A row that needs less gets the same token in any mode.

    Returns:
        Token ids and log-probabilities, each (B,), as of `sampling.sample_tokens`.
    """
    is_greedy = rows.temperature == 0
    if mode == "greedy":
        probabilities, ids = logits.softmax(-1), logits.argmax(-1)
    else:
        temperature = rows.temperature.clamp(min=MIN_TEMPERATURE).masked_fill(is_greedy, 1.0)
        probabilities = (logits / temperature[:, None]).softmax(-1)
        weights = _truncate_rows(probabilities, rows) if mode == "truncated" else probabilities
        ids = sample_inverse_cdf(weights, hash_to_uniform_on_device(rows.keys, positions))
        ids = torch.where(is_greedy, logits.argmax(-1), ids)
    return ids, probabilities.gather(-1, ids[:, None])[:, 0].log()


def _truncate_rows(probabilities: Tensor, rows: RowParameters) -> Tensor:
    """Sets probabilities (B, V) outside a row's allowed sets to 0; tokens that tie with the last allowed one stay."""
    vocab_size = probabilities.shape[-1]
    descending = probabilities.sort(-1, descending=True).values
    last = descending.gather(1, (rows.top_k.clamp(max=vocab_size) - 1).clamp(min=0)[:, None])
    kth = last.masked_fill((rows.top_k == 0)[:, None], 0.0)
    before = descending.cumsum(-1) - descending  # probability of everything more likely
    excluded = before >= rows.top_p[:, None]
    nucleus = descending.masked_fill(excluded, math.inf).amin(-1, keepdim=True)
    nucleus = nucleus.masked_fill((rows.top_p >= 1)[:, None], 0.0)
    relative = rows.min_p[:, None] * probabilities.amax(-1, keepdim=True)
    threshold = torch.maximum(torch.maximum(kth, nucleus), relative)
    return probabilities.masked_fill(probabilities < threshold, 0)


def hash_to_uniform_on_device(keys: Tensor, positions: Tensor) -> Tensor:
    """Returns one number in [0, 1) for each key and position, int64 (B,) to fp32 (B,): `sampling.hash_to_uniform`."""
    word = (keys ^ positions) + GOLDEN_GAMMA
    word = (word ^ _shift_right(word, 30)) * MIX_1
    word = (word ^ _shift_right(word, 27)) * MIX_2
    word = word ^ _shift_right(word, 31)
    return _shift_right(word, 41).float() * 2.0**-23


def _shift_right(word: Tensor, bits: int) -> Tensor:
    """Returns the unsigned shift of a signed word."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)
