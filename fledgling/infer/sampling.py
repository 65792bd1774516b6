"""From logits to one token a row, with the log-probability that training will recompute.

The one idea: randomness is a pure function of (seed, request, position). Each draw hashes these three
numbers into one uniform number and inverts the cumulative distribution with it, so a request's tokens
depend neither on its neighbours in the batch, nor on the row it sits in, nor on when it was admitted.

It is not a beam search, and it knows nothing of stop tokens or tools: see batch.py.

B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fledgling.config import UserError

UINT64_MASK = (1 << 64) - 1
MIN_TEMPERATURE = (
    1e-30  # below it a logit divided by the temperature may be no fp32 number; long before the likeliest has all
)


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn. `top_k`, `top_p` and `min_p` each name a set of tokens of the distribution
    at this temperature; what is drawn lies in all three."""

    temperature: float = 1.0  # 0: always the most likely token
    top_k: int = 0  # the k most likely tokens; 0: all
    top_p: float = 1.0  # the fewest most likely tokens that together hold this probability
    min_p: float = 0.0  # tokens at least this share as likely as the most likely one
    max_new_tokens: int = 128  # length of the answer, tool output and stop token included
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()  # token ids that end the answer, beside the engine's own
    repetition_penalty: float = (
        1.0  # above 1: tokens of the prompt and the answer so far become less likely (arXiv 1909.05858)
    )
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    num_top_logprobs: int = 0  # so many most likely tokens are reported beside each drawn one

    def __post_init__(self) -> None:
        expected = {
            "temperature": (0 <= self.temperature < math.inf, "a finite number, 0 or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "a share in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "a share in [0, 1]"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "repetition": (0 < self.repetition_penalty < math.inf, "a finite number above 0 (1: no penalty)"),
            "bias": (all(math.isfinite(value) for _, value in self.logit_bias), "finite numbers"),
            "alternatives": (self.num_top_logprobs >= 0, "0 or more"),
        }
        for name, (holds, wanted) in expected.items():
            if not holds:
                raise UserError(f"{name} = {getattr(self, name)}: expected {wanted}")

    @property
    def batch_key(self) -> tuple[float, int, float, float, int]:
        """What rows must have in common to be drawn together."""
        return self.temperature, self.top_k, self.top_p, self.min_p, self.num_top_logprobs


def adjust_logits_(logits: Tensor, sampling: SamplingParams, seen: Sequence[int]) -> None:
    """Apply bias and repetition penalty to one row of logits (V,), in place; `seen` are the row's tokens so far.

    The penalty divides positive logits and multiplies negative ones by `sampling.repetition` (Keskar et al. 2019, CTRL,
    arXiv 1909.05858, section 4.1).
    """
    if sampling.repetition_penalty != 1 and seen:
        ids = torch.tensor(sorted(set(seen)), device=logits.device)
        found = logits[ids]
        logits[ids] = torch.where(found > 0, found / sampling.repetition_penalty, found * sampling.repetition_penalty)
    for token, value in sampling.logit_bias:
        logits[token] += value


def sample_tokens(logits: Tensor, sampling: SamplingParams, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row: logits (B, V) and noise (B,) in [0, 1) to ids and log-probabilities (B,).

    The log-probability is that of the chosen token under softmax(logits / temperature) over the whole
    vocabulary: truncation shapes what is drawn, never what is recorded, so that it equals what the trainer
    computes for the same token. At temperature 0 it is that of temperature 1.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        probabilities = logits.softmax(-1)
        ids = logits.argmax(-1)
    else:
        probabilities = (logits / max(sampling.temperature, MIN_TEMPERATURE)).softmax(-1)  # (B, V)
        ids = _sample_inverse_cdf(_truncate(probabilities, sampling), noise)
    return ids, probabilities.gather(-1, ids[:, None])[:, 0].log()


def _truncate(probabilities: Tensor, sampling: SamplingParams) -> Tensor:
    """Zero what lies outside the allowed sets. Tokens as likely as the last one allowed are allowed too."""
    floor = None
    if 0 < sampling.top_k < probabilities.shape[-1]:
        floor = probabilities.topk(sampling.top_k).values[:, -1:]
    if sampling.top_p < 1:
        falling = probabilities.sort(-1, descending=True).values
        before = falling.cumsum(-1) - falling  # probability of everything more likely
        inside = falling.masked_fill(before >= sampling.top_p, math.inf).amin(-1, keepdim=True)
        floor = inside if floor is None else torch.maximum(floor, inside)
    if sampling.min_p > 0:
        share = sampling.min_p * probabilities.amax(-1, keepdim=True)
        floor = share if floor is None else torch.maximum(floor, share)
    return probabilities if floor is None else probabilities.masked_fill(probabilities < floor, 0)


def _sample_inverse_cdf(weights: Tensor, noise: Tensor) -> Tensor:
    """The first token whose cumulative weight (B, V) exceeds noise (B,) times the total."""
    cumulative = weights.cumsum(-1)
    ids = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)
    ids.clamp_(max=weights.shape[-1] - 1)
    # A parallel cumulative sum may dip by a rounding error and point at a token of weight zero.
    drawn = weights.gather(-1, ids) > 0
    return torch.where(drawn, ids, weights.argmax(-1, keepdim=True))[:, 0]


def hash_to_uniform(seeds: np.ndarray, requests: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each (seed, request, position): uint64 arrays (B,) to float32 (B,).

    The splitmix64 finaliser (Steele, Lea and Flood, 2014) is applied once for each of the three. 23 bits
    are kept: then noise times a float32 total always rounds to less than the total.
    """
    word = _splitmix64(seeds)
    word = _splitmix64(word ^ requests)
    word = _splitmix64(word ^ positions)
    return (word >> np.uint64(41)).astype(np.float32) * np.float32(2.0**-23)


def _splitmix64(word: np.ndarray) -> np.ndarray:
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
