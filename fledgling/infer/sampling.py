"""Sampling: from logits to one token a row, with the log-probability that training computes for the same token.

Randomness is a pure function of (seed, request, position): these three numbers are hashed into one uniform number,
which inverts the cumulative distribution. A request's tokens therefore do not depend on the other requests of the
batch, on its row, or on when it was admitted.

B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fledgling.config import UserError

UINT64_MASK = (1 << 64) - 1
MIN_TEMPERATURE = 1e-30  # lower ones overflow fp32 in logits / temperature; far above it sampling is already greedy
MAX_TEMPERATURE = 2  # of chats, in the terminal and of the server: beyond it, answers are noise


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is sampled. A token must be in each of the sets that `top_k`, `top_p` and `min_p` allow, all
    three of the distribution at this temperature. Raises UserError for values out of range."""

    temperature: float = 1.0  # 0: always the most likely token
    top_k: int = 0  # the k most likely tokens; 0: all
    top_p: float = 1.0  # the fewest most likely tokens whose probabilities sum to at least this
    min_p: float = 0.0  # tokens with at least this share of the most likely token's probability
    max_new_tokens: int = 128  # tokens of the answer, including tool output and the stop token
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()  # token ids that end the answer, in addition to the engine's
    repetition_penalty: float = 1.0  # above 1: tokens of prompt and answer become less likely (arXiv 1909.05858)
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, value added to its logit)
    presence_penalty: float = 0.0  # subtracted from the logit of each token that the answer has
    frequency_penalty: float = 0.0  # subtracted as many times as the answer has the token
    num_top_logprobs: int = 0  # number of most likely tokens that are reported for each sampled token

    def __post_init__(self) -> None:
        expected = {
            "temperature": (0 <= self.temperature < math.inf, "a finite number, 0 or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "a share in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "a share in [0, 1]"),
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "a finite number above 0 (1: no penalty)"),
            "logit_bias": (
                all(math.isfinite(value) for _, value in self.logit_bias)
                and len({token for token, _ in self.logit_bias}) == len(self.logit_bias),
                "finite numbers, each token once",
            ),
            "presence_penalty": (math.isfinite(self.presence_penalty), "a finite number (0: no penalty)"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "a finite number (0: no penalty)"),
            "num_top_logprobs": (self.num_top_logprobs >= 0, "0 or more"),
        }
        for name, (valid, description) in expected.items():
            if not valid:
                raise UserError(f"{name} = {getattr(self, name)}: expected {description}")

    @property
    def batch_key(self) -> tuple[float, int, float, float, int]:
        """Temperature, top_k, top_p, min_p and num_top_logprobs: rows with equal ones are sampled together."""
        return self.temperature, self.top_k, self.top_p, self.min_p, self.num_top_logprobs

    @property
    def adjusts_logits(self) -> bool:
        """Whether there is a penalty or a bias."""
        return bool(self.logit_bias or self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)


def penalize_logits(logits: Tensor, seen: Tensor, counts: Tensor, sampling: SamplingParams) -> Tensor:
    """Returns one row of logits (V,) after the three penalties of `sampling`.

    The repetition penalty divides positive logits and multiplies negative ones, of every token of prompt and answer.
    The frequency penalty is then subtracted once for each occurrence in the answer, the presence penalty once for a
    token that occurs there at all.

    Args:
        logits: (V,).
        seen: (V,) bool, tokens of prompt and answer.
        counts: (V,) float, occurrences in the answer.
        sampling: the penalties.

    Source: Keskar et al. 2019, CTRL, arXiv 1909.05858, section 4.1; OpenAI's API reference for the other two.
    """
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.frequency_penalty:
        logits = logits - sampling.frequency_penalty * counts
    if sampling.presence_penalty:
        logits = logits - sampling.presence_penalty * (counts > 0)
    return logits


class LogitAdjuster:
    """Penalties and logit bias of one request, as tensors that are built once.

    A step costs a fixed number of tensor operations, whatever the length of the bias and of the prompt.

    Args:
        sampling: penalties and bias.
        prompt: token ids of the prompt.
        vocab_size: V.
        device: where the logits are.
    """

    def __init__(
        self, sampling: SamplingParams, prompt: Sequence[int], vocab_size: int, device: torch.device | str = "cpu"
    ) -> None:
        self.sampling = sampling
        self.bias_ids = torch.tensor([token for token, _ in sampling.logit_bias], dtype=torch.long, device=device)
        self.bias_values = torch.tensor([value for _, value in sampling.logit_bias], device=device)
        self.penalizes = replace(sampling, logit_bias=()).adjusts_logits
        size = vocab_size if self.penalizes else 0
        self.seen = torch.zeros(size, dtype=torch.bool, device=device)  # (V,) of prompt and answer
        self.counts = torch.zeros(size, device=device)  # (V,) in the answer
        self.num_answer_tokens = 0  # of these, `seen` and `counts` hold all
        if self.penalizes and prompt:
            self.seen[torch.tensor(prompt, device=device)] = True

    def adjust_(self, logits: Tensor, answer: Sequence[int]) -> None:
        """Changes one row of logits (V,) in place; `answer` holds the token ids of the answer so far."""
        if self.penalizes:
            if new := answer[self.num_answer_tokens :]:
                ids = torch.tensor(new, device=self.seen.device)
                self.seen[ids] = True
                self.counts.index_add_(0, ids, torch.ones(len(new), device=ids.device))
            self.num_answer_tokens = len(answer)
            logits.copy_(penalize_logits(logits, self.seen, self.counts, self.sampling))
        if len(self.bias_ids):
            logits[self.bias_ids] += self.bias_values.to(logits.dtype)


def sample_tokens(logits: Tensor, sampling: SamplingParams, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Samples one token a row.

    The log-probability is that of the sampled token under softmax(logits / temperature) over the whole vocabulary:
    truncation changes what is sampled, not what is recorded, so the value equals the trainer's for the same token. At
    temperature 0 it is that of temperature 1.

    Args:
        logits: (B, V).
        sampling: temperature and truncation, common to all rows.
        noise: (B,) in [0, 1).

    Returns:
        Token ids and log-probabilities, each (B,).
    """
    logits = logits.float()
    if sampling.temperature == 0:
        probabilities = logits.softmax(-1)
        ids = find_most_likely(logits)
    else:
        probabilities = (logits / max(sampling.temperature, MIN_TEMPERATURE)).softmax(-1)  # (B, V)
        ids = sample_inverse_cdf(_truncate(probabilities, sampling), noise)
    return ids, probabilities.gather(-1, ids[:, None])[:, 0].log()


def find_most_likely(logits: Tensor) -> Tensor:
    """Returns the first largest logit of each row (B, V) as ids (B,).

    On a CPU numpy looks at one row of 32,768 in a few microseconds, PyTorch in 70, a tenth of a small model's step.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    return torch.from_numpy(logits.detach().numpy().argmax(-1))


def _truncate(probabilities: Tensor, sampling: SamplingParams) -> Tensor:
    """Sets probabilities (B, V) outside the allowed sets to 0. Tokens that tie with the last allowed one stay."""
    threshold = None
    if 0 < sampling.top_k < probabilities.shape[-1]:
        threshold = probabilities.topk(sampling.top_k).values[:, -1:]
    if sampling.top_p < 1:
        descending = probabilities.sort(-1, descending=True).values
        before = descending.cumsum(-1) - descending  # probability of everything more likely
        lowest = descending.masked_fill(before >= sampling.top_p, math.inf).amin(-1, keepdim=True)
        threshold = lowest if threshold is None else torch.maximum(threshold, lowest)
    if sampling.min_p > 0:
        lowest = sampling.min_p * probabilities.amax(-1, keepdim=True)
        threshold = lowest if threshold is None else torch.maximum(threshold, lowest)
    return probabilities if threshold is None else probabilities.masked_fill(probabilities < threshold, 0)


def sample_inverse_cdf(weights: Tensor, noise: Tensor) -> Tensor:
    """Returns the first token whose cumulative weight (B, V) exceeds noise (B,) times the total, ids (B,).

    A token of weight 0, which only a rounding error can select, is replaced by the row's heaviest.
    """
    cumulative = weights.cumsum(-1)
    ids = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)
    ids.clamp_(max=weights.shape[-1] - 1)
    # A parallel cumulative sum may decrease by a rounding error and select a token of weight 0.
    nonzero = weights.gather(-1, ids) > 0
    return torch.where(nonzero, ids, weights.argmax(-1, keepdim=True))[:, 0]


def hash_to_uniform(seeds: np.ndarray, requests: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns one number in [0, 1) for each (seed, request, position): uint64 arrays (B,) to float32 (B,).

    A step of splitmix64 is applied once for each of the three. 23 bits are kept: noise times a float32 total
    then always rounds to less than the total.

    Source: Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators.
    """
    word = _splitmix64(hash_request(seeds, requests) ^ positions)
    return (word >> np.uint64(41)).astype(np.float32) * np.float32(2.0**-23)


def hash_request(seeds: np.ndarray, requests: np.ndarray) -> np.ndarray:
    """Returns the part of the hash that all positions of a request share, uint64 (B,)."""
    return _splitmix64(_splitmix64(seeds) ^ requests)


def _splitmix64(word: np.ndarray) -> np.ndarray:
    """Returns one step of splitmix64 from each word: adds its increment, then applies its finalizer."""
    word = word + np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
