"""From rewards to advantages: how much better an answer, or a token, is than expected. Numpy arrays, no torch.

The expectation is the mean of the group (GRPO: the other answers to the same prompt) or a critic's value (PPO:
generalized advantage estimation). Both end as one number per sampled token, which the loss reads.

Shapes: P prompts, G answers per prompt; N answers; B rows, T positions of packed rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-6  # added to a standard deviation before dividing by it


def group_advantages(rewards: np.ndarray, normalization: str) -> np.ndarray:
    """Returns the advantage of each answer over its own group, (P, G), from rewards (P, G).

    centered       r - mean (Dr. GRPO, arXiv 2503.20783, equation 3)
    zscore         (r - mean) / (standard deviation + 1e-6), of the population (GRPO, arXiv 2402.03300, section 4.1.2)
    leave_one_out  r - mean of the others = (r - mean) G / (G - 1): unbiased (RLOO, arXiv 2402.14740, section 2.3)
    """
    centered = rewards - rewards.mean(1, keepdims=True)
    if normalization == "zscore":
        return centered / (rewards.std(1, keepdims=True) + EPSILON)
    if normalization == "leave_one_out":
        group_size = rewards.shape[1]
        return centered * (group_size / (group_size - 1))
    assert normalization == "centered", normalization
    return centered


def gae(
    rewards: np.ndarray,
    values: np.ndarray,
    sampled: np.ndarray,
    documents: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """Returns generalized advantage estimates of packed answers, (B, T); 0 where nothing is sampled.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma gae_lambda A_{t+1}. The steps of an answer are its
    sampled tokens alone: the output of a tool is no step. An episode ends at an answer's last sampled token.

    Args:
        rewards: (B, T), each at the sampled token where it arises: the end of a call, or of the answer.
        values: (B, T), the critic's.
        sampled: (B, T) bool.
        documents: (B, T) int, the number of the answer within its row.

    Source: arXiv 1506.02438, equation 16.
    """
    rows, length = values.shape
    estimates = np.zeros((rows, length))
    next_document = np.full(rows, -1, dtype=np.int64)  # of the next sampled token
    next_value, next_advantage = np.zeros(rows), np.zeros(rows)
    for t in range(length - 1, -1, -1):
        continues = documents[:, t] == next_document
        delta = rewards[:, t] + gamma * np.where(continues, next_value, 0.0) - values[:, t]
        advantage = delta + gamma * gae_lambda * np.where(continues, next_advantage, 0.0)
        estimates[:, t] = np.where(sampled[:, t], advantage, 0.0)
        next_document = np.where(sampled[:, t], documents[:, t], next_document)
        next_value = np.where(sampled[:, t], values[:, t], next_value)
        next_advantage = np.where(sampled[:, t], advantage, next_advantage)
    return estimates


def token_weights(lengths: Sequence[int], normalization: str, max_tokens: int = 1) -> np.ndarray:
    """Returns the loss weight of each token of an answer, (N,).

    token     every token has equal weight: sum over tokens / tokens (DAPO, arXiv 2503.14476, equation 8)
    sequence  every answer has equal weight: mean over answers of the mean over its tokens (GRPO, arXiv 2402.03300,
              equation 3)
    constant  every token has equal weight, one over the longest answer, whatever the lengths: mean over answers of the
              sum over its tokens / max_tokens (Dr. GRPO, arXiv 2503.20783, listing 1)

    lengths: sampled tokens of each answer, (N,). The loop divides the weighted sum by the number of tokens; the weights
    of all tokens add up to it, but those of "constant".
    """
    if normalization == "constant":
        return np.full(len(lengths), sum(lengths) / max(1, len(lengths)) / max_tokens)
    if normalization == "token":
        return np.ones(len(lengths))
    assert normalization == "sequence", normalization
    counts = np.asarray(lengths, dtype=np.float64)
    nonempty = counts > 0
    return np.where(nonempty, counts.sum() / np.maximum(counts, 1) / max(1, nonempty.sum()), 0.0)


def overlong_penalty(length: int, free_tokens: int, max_tokens: int) -> float:
    """Returns 0 up to `free_tokens` tokens, falling linearly to -1 at `max_tokens`.

    Source: soft overlong punishment, arXiv 2503.14476, equation 13.
    """
    if length <= free_tokens:
        return 0.0
    return -min(1.0, (length - free_tokens) / max(1, max_tokens - free_tokens))


def adapt_kl_weight(weight: float, kl: float, target: float) -> float:
    """Returns the next KL weight: halved below target / 1.5, doubled above 1.5 target (arXiv 1707.06347, section 4)."""
    if kl < target / 1.5:
        return weight / 2
    return weight * 2 if kl > target * 1.5 else weight
