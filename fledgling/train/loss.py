"""Losses: functions of a model and a batch that give the SUM over the batch's targets.

Sums and not means, because the loop divides by the count over all ranks and micro-batches: how the batch was split
then changes nothing. What a loss sees on its way (clipped tokens, divergence) it adds to a `Tally`, sums again.

B rows, T positions, C width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fledgling.config import RLConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.model.head_chunk import head_chunk_tokens
from fledgling.model.logprob import cross_entropy_sum, target_logprobs
from fledgling.model.transformer import Transformer
from fledgling.train.rl import objective


class StepMetrics:
    """Sums over the micro-batches of one step, by name; what is read is also forgotten."""

    def __init__(self) -> None:
        self.sums: dict[str, list[Tensor]] = {}

    def add(self, **sums: Tensor) -> None:
        """Add scalars; no value is waited for."""
        for name, value in sums.items():
            self.sums.setdefault(name, []).append(value.detach())

    def pop(self) -> dict[str, list[float]]:
        """The scalars by name, one a micro-batch, and begin anew."""
        found = {name: [float(value) for value in values] for name, values in self.sums.items()}
        self.sums = {}
        return found


def next_token_loss(model: Transformer, batch: Batch) -> Tensor:
    """Sum of -log p(target), in nats: the loss of pretraining, midtraining and supervised fine-tuning."""
    hidden = model(batch.tokens, batch.document_ids)  # (B, T, C)
    return cross_entropy_sum(hidden, model.head.weight, batch.targets, model.config.logit_softcap)


def logprobs_from_hidden(model: Transformer, hidden: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(target) (B, T) under softmax(logits / temperature), 0 at IGNORE_INDEX, from hidden states (B, T, C).

    logits / t = (cap / t) tanh((hidden / t) W / (cap / t)): dividing hidden and cap is dividing the logits.
    """
    cap = model.config.logit_softcap / temperature
    return target_logprobs(hidden / temperature, model.head.weight, targets, cap)


def entropy_sum(model: Transformer, hidden: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Sum over kept positions of weight times the entropy of the next token, nats; logits live one chunk at a time."""
    step = head_chunk_tokens(model.config.vocab_size, hidden.device.type)
    parts = zip(hidden[mask].split(step), weights[mask].split(step), strict=True)

    def chunk(rows: Tensor, weight: Tensor) -> Tensor:
        return (objective.token_entropy(model.compute_logits(rows)) * weight).sum()

    return torch.stack([checkpoint(chunk, *part, use_reentrant=False) for part in parts]).sum()


def policy_gradient_loss(
    model: Transformer,
    batch: Batch,
    config: RLConfig,
    kl_weight: float | None = None,
    metrics: StepMetrics | None = None,
) -> Tensor:
    """The objective of GRPO and PPO summed over sampled tokens: clipped ratio times advantage; the divergence from the
    reference, the entropy and, with a critic, the value where the table gives them weight.

    kl: the divergence's weight now, where it adapts; else the table's.
    """
    kl_weight = config.kl_weight if kl_weight is None else kl_weight
    hidden = model(batch.tokens, batch.document_ids)
    kept = batch.targets != IGNORE_INDEX
    weights = torch.ones_like(batch.advantages) if batch.loss_weights is None else batch.loss_weights
    logprobs = logprobs_from_hidden(model, hidden, batch.targets, config.temperature)  # (B, T)
    ratio = torch.where(kept, logprobs - batch.old_logprobs, 0.0).exp()
    bounds = config.clip_ratio, config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    loss = objective.ppo_clip_loss(ratio, batch.advantages, *bounds)
    seen = {
        "targets": kept.sum(),
        "clipped": (objective.is_clipped(ratio, batch.advantages, *bounds) & kept).sum(),
    }
    if batch.reference_logprobs is not None:
        divergence = objective.estimate_kl(logprobs, batch.reference_logprobs)
        loss = loss + kl_weight * divergence
        seen["kl"] = torch.where(kept, divergence, 0.0).sum()
    if config.algorithm == "ppo":
        value = model.critic(hidden)
        error = objective.value_clip_loss(value, batch.old_values, batch.returns, config.value_clip)
        loss = loss + config.value_weight * error
        seen["value_loss"] = torch.where(kept, error, 0.0).sum()
    total = torch.where(kept, loss * weights, 0.0).sum()
    if config.entropy_weight > 0:
        total = total - config.entropy_weight * entropy_sum(model, hidden, kept, weights)
    if metrics is not None:
        metrics.add(**seen)
    return total


def dpo_loss(model: Transformer, batch: Batch, beta: float, metrics: StepMetrics | None = None) -> Tensor:
    """DPO's loss summed over pairs, times the weight that all tokens of a pair share (the loop divides by tokens).

    A row holds whole pairs, chosen before rejected: documents 1 and 2, 3 and 4, ...
    """
    hidden = model(batch.tokens, batch.document_ids)
    kept = batch.targets != IGNORE_INDEX
    logprobs = logprobs_from_hidden(model, hidden, batch.targets)
    gained = torch.where(kept, logprobs - batch.reference_logprobs, 0.0)  # (B, T)
    pair, sign = (batch.document_ids.long() - 1) // 2, 2 * (batch.document_ids % 2) - 1
    nothing = torch.zeros_like(gained)
    margin = nothing.scatter_add(1, pair, gained * sign)  # (B, pairs of a row)
    weight = nothing.scatter_reduce(1, pair, torch.where(kept, batch.loss_weights, 0.0), "amax")  # 0 where no pair is
    if metrics is not None:
        real = weight > 0
        right, gain = (margin > 0) & real, torch.where(real, margin, 0.0)
        metrics.add(pairs=real.sum(), right=right.sum(), margin=gain.sum())
    return (objective.preference_loss(margin, beta) * weight).sum()
