"""The papers' objectives as elementwise functions of tensors: ratio and clip, divergence, value, preference.

The one idea: a formula knows no model, no mask and no batch. It takes tensors of one shape and gives one of that shape,
so that it is compared with its paper in a few lines, gradients included; `train/loss.py` applies them to a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ppo_clip_loss(ratio: Tensor, advantages: Tensor, clip_ratio: float, clip_ratio_high: float) -> Tensor:
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A), a cost (PPO, arXiv 1707.06347, equation 7; the two bounds: DAPO,
    arXiv 2503.14476, equation 8)."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_ratio, 1 + clip_ratio_high) * advantages)


def is_clipped(ratio: Tensor, advantages: Tensor, clip_ratio: float, clip_ratio_high: float) -> Tensor:
    """Whether the clip holds a token back, so that it has no gradient: bool, of the ratio's shape."""
    return torch.where(advantages > 0, ratio > 1 + clip_ratio_high, (ratio < 1 - clip_ratio) & (advantages < 0))


def estimate_kl(logprobs: Tensor, reference_logprobs: Tensor, estimator: str = "k3") -> Tensor:
    """Estimates of KL(policy | reference) from tokens of the policy (Schulman 2020, "Approximating KL divergence").

    With d = reference - logprobs:  k1 = -d, unbiased;  k2 = d^2 / 2, biased, low variance;  k3 = e^d - d - 1,
    unbiased, never negative, low variance (used by GRPO, arXiv 2402.03300, equation 4).

    Unbiased is the value. The gradient of k3 through the logprobs, (1 - e^d), has the expectation of the gradient of
    the other divergence, KL(reference | policy); that of k2, -d, the one of KL(policy | reference); that of k1 is the
    constant 1, whose expectation is 0: as a loss it does nothing.
    """
    difference = reference_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    assert estimator == "k3", estimator
    return difference.exp() - difference - 1


def value_clip_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """max((v - R)^2, (old + clamp(v - old, -clip, clip) - R)^2) / 2 (arXiv 2005.12729, section 3: PPO as coded)."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (near - returns).square()) / 2


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits) over the last dimension: (..., V) -> (...)."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def preference_loss(margin: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta margin) (DPO, arXiv 2305.18290, equation 7).

    margin: (log pi - log reference) of the chosen answer minus the same of the rejected one.
    """
    return -F.logsigmoid(beta * margin)
