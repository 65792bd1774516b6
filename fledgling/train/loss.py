"""Losses: functions of a model and a batch that give the SUM over the batch's targets.

Sums and not means, because the loop divides by the count over all ranks and micro-batches: how the batch was split
then changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fledgling.config import RLTable
from fledgling.data.batch import IGNORE, Batch
from fledgling.model.logprob import cross_entropy_sum, target_logprobs
from fledgling.model.transformer import Transformer


def next_token(model: Transformer, batch: Batch) -> Tensor:
    """Sum of -log p(target), in nats: the loss of pretraining, midtraining and supervised fine-tuning."""
    hidden = model(batch.tokens, batch.documents)  # (B, T, C)
    return cross_entropy_sum(hidden, model.head.weight, batch.targets, model.config.softcap)


def clipped_policy(ratio: Tensor, advantages: Tensor, clip: float, clip_high: float) -> Tensor:
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A), elementwise (PPO, arXiv 1707.06347, equation 7)."""
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip_high) * advantages)


def kl_estimate(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Elementwise unbiased, non-negative estimate of KL(policy | reference): e^d - d - 1, d = reference - logprobs.

    Schulman 2020, "Approximating KL divergence", k3; used by GRPO (arXiv 2402.03300, equation 4).
    """
    difference = reference - logprobs
    return difference.exp() - difference - 1


def policy_gradient(model: Transformer, batch: Batch, table: RLTable) -> Tensor:
    """GRPO's objective summed over sampled tokens: clipped ratio times advantage, and KL to the reference if wanted."""
    hidden = model(batch.tokens, batch.documents)
    logprobs = target_logprobs(hidden, model.head.weight, batch.targets, model.config.softcap)  # (B, T)
    kept = batch.targets != IGNORE
    ratio = torch.where(kept, logprobs - batch.old_logprobs, 0.0).exp()
    high = table.clip if table.clip_high is None else table.clip_high
    loss = clipped_policy(ratio, batch.advantages, table.clip, high)
    if table.kl > 0:
        loss = loss + table.kl * kl_estimate(logprobs, batch.reference_logprobs)
    return torch.where(kept, loss, 0.0).sum()
