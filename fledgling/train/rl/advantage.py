"""From rewards to advantages: how much better an answer, or a token, was than expected. Arrays only, no torch.

The one idea: the expectation is either the group's (GRPO: other answers to the same prompt) or a critic's (PPO:
generalized advantage estimation). Both end as one number a sampled token, which is all the loss reads.

P prompts, G answers a prompt; B rows, T positions of packed rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-6  # added to a deviation before dividing by it


def group_advantages(rewards: np.ndarray, normalization: str) -> np.ndarray:
    """Rewards (P, G) -> advantages (P, G), each against its own group.

    centred        r - mean (Dr. GRPO, arXiv 2503.20783, equation 3)
    zscore         (r - mean) / (deviation + 1e-6), the population's deviation (GRPO, arXiv 2402.03300, section 4.1.2)
    leave_one_out  r - mean of the others = (r - mean) G / (G - 1): unbiased (RLOO, arXiv 2402.14740, section 2.3)
    """
    centred = rewards - rewards.mean(1, keepdims=True)
    if normalization == "zscore":
        return centred / (rewards.std(1, keepdims=True) + EPSILON)
    if normalization == "leave_one_out":
        size = rewards.shape[1]
        return centred * (size / (size - 1))
    assert normalization == "centered", normalization
    return centred


def gae(
    rewards: np.ndarray,
    values: np.ndarray,
    sampled: np.ndarray,
    documents: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """Generalized advantage estimates of packed answers (arXiv 1506.02438, equation 16); all arrays (B, T).

    The steps of an answer are its sampled tokens alone: what a tool wrote passes no time. `rewards` count at an
    answer's last sampled token, where the episode ends (value 0 after it); `documents` tell answers of a row apart.
    delta_t = r_t + discount V_{t+1} - V_t;  A_t = delta_t + discount trace A_{t+1}. Positions not sampled get 0.
    """
    rows, length = values.shape
    found = np.zeros((rows, length))
    document = np.full(rows, -1, dtype=np.int64)  # of the sampled token that comes next
    value, advantage = np.zeros(rows), np.zeros(rows)  # of that token
    for t in range(length - 1, -1, -1):
        goes_on = documents[:, t] == document
        reward = np.where(goes_on, 0.0, rewards[:, t])
        delta = reward + gamma * np.where(goes_on, value, 0.0) - values[:, t]
        here = delta + gamma * gae_lambda * np.where(goes_on, advantage, 0.0)
        found[:, t] = np.where(sampled[:, t], here, 0.0)
        document = np.where(sampled[:, t], documents[:, t], document)
        value = np.where(sampled[:, t], values[:, t], value)
        advantage = np.where(sampled[:, t], here, advantage)
    return found


def token_weights(lengths: Sequence[int], normalization: str) -> np.ndarray:
    """How much a token of each answer counts, (N,): over all tokens of the step the weights add up to their number.

    token     every token alike: sum over tokens / tokens (DAPO, arXiv 2503.14476, equation 8)
    sequence  every answer alike: mean over answers of the mean over its tokens (GRPO, arXiv 2402.03300, equation 3)

    lengths: sampled tokens of each answer. The loop divides the weighted sum by the number of tokens.
    """
    if normalization == "token":
        return np.ones(len(lengths))
    assert normalization == "sequence", normalization
    counts = np.asarray(lengths, dtype=np.float64)
    told = counts > 0
    return np.where(told, counts.sum() / np.maximum(counts, 1) / max(1, told.sum()), 0.0)


def overlong_penalty(length: int, free_tokens: int, max_tokens: int) -> float:
    """0 up to `free` tokens, falling to -1 at `longest` (soft overlong punishment, arXiv 2503.14476, equation 13)."""
    if length <= free_tokens:
        return 0.0
    return -min(1.0, (length - free_tokens) / max(1, max_tokens - free_tokens))


def adapt_kl_weight(weight: float, kl: float, target: float) -> float:
    """The next weight: halved below target / 1.5, doubled above 1.5 target (arXiv 1707.06347, section 4)."""
    if kl < target / 1.5:
        return weight / 2
    return weight * 2 if kl > target * 1.5 else weight
