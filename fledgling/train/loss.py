"""Losses: each takes a model and a batch and returns the SUM over the batch's targets.

The loop divides by the number of targets over all ranks and micro-batches, so the split of a batch changes nothing.
The first half of the file has the papers' formulas as elementwise functions of tensors, without model, mask or batch;
the second half applies them: `next_token_loss`, `policy_gradient_loss`. What a loss sees on its way (clipped tokens, KL
divergence) goes into a `StepMetrics` as sums. Preferences have files of their own: objectives.py, preference_loss.py.

Shapes: B rows, T positions, C width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fledgling.config import RLConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.multi_token_prediction import stack_targets
from fledgling.model.head_chunk import head_chunk_tokens
from fledgling.model.logprob import cross_entropy_sum, target_logprobs
from fledgling.model.transformer import Transformer
from fledgling.runtime.world import World


class StepMetrics:
    """Sums over the micro-batches of one step, by name."""

    def __init__(self) -> None:
        self.sums: dict[str, list[Tensor]] = {}

    def add(self, **sums: Tensor) -> None:
        """Adds scalars of one micro-batch, without waiting for the device."""
        for name, value in sums.items():
            self.sums.setdefault(name, []).append(value.detach())

    def pop_sums(self, world: World) -> dict[str, float]:
        """Returns the sums over the micro-batches of all ranks, by name, and clears them. Every rank calls it."""
        local = {name: torch.stack(values).tolist() for name, values in self.sums.items()}  # one read for each name
        self.sums = {}
        totals: dict[str, float] = {}
        for rank_sums in world.all_gather_object(local):
            for name, values in rank_sums.items():
                totals[name] = math.fsum([totals.get(name, 0.0), *values])
        return totals


# ---- formulas: elementwise functions of tensors of one shape ---------------------------------------


def ppo_clip_loss(ratio: Tensor, advantages: Tensor, clip_ratio: float, clip_ratio_high: float) -> Tensor:
    """Returns -min(r A, clip(r, 1 - clip_ratio, 1 + clip_ratio_high) A).

    Args:
        ratio: r, p / p_old of each sampled token, of any shape.
        advantages: A, of the same shape.
        clip_ratio: the lower limit of the ratio is 1 - clip_ratio.
        clip_ratio_high: the upper one is 1 + clip_ratio_high.

    Source: PPO, arXiv 1707.06347, equation 7; the two bounds: DAPO, arXiv 2503.14476, equation 8.
    """
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_ratio, 1 + clip_ratio_high) * advantages)


def cispo_loss(
    ratio: Tensor, logprobs: Tensor, advantages: Tensor, clip_ratio: float, clip_ratio_high: float
) -> Tensor:
    """Returns -sg(clip(r, 1 - clip_ratio, 1 + clip_ratio_high)) A log p, sg: without a gradient.

    The clip bounds a token's weight, and no token loses its gradient.

    Args:
        ratio: p / p_old of each sampled token, of any shape.
        logprobs: log p, of the same shape.
        advantages: of the same shape.
        clip_ratio: the weight is at least 1 - clip_ratio.
        clip_ratio_high: and at most 1 + clip_ratio_high.

    Source: CISPO, arXiv 2506.13585, equations 4 and 5.
    """
    return -ratio.clamp(1 - clip_ratio, 1 + clip_ratio_high).detach() * advantages * logprobs


def mean_log_ratio(log_ratio: Tensor, mask: Tensor, documents: Tensor) -> Tensor:
    """Returns, at each sampled token, the mean log ratio of its answer's tokens; 0 elsewhere. All are (B, T).

    Its exponential is the ratio of an answer, (pi / pi_old)^(1 / tokens).

    Args:
        mask: bool, the sampled tokens.
        documents: the number of the answer within its row, from 1.

    Source: GSPO, arXiv 2507.18071, equation 7.
    """
    index, zeros = documents.long() - 1, torch.zeros_like(log_ratio)
    sums = zeros.scatter_add(1, index, torch.where(mask, log_ratio, 0.0))
    counts = zeros.scatter_add(1, index, mask.to(log_ratio.dtype))
    return torch.where(mask, (sums / counts.clamp(min=1)).gather(1, index), 0.0)


def is_clipped(ratio: Tensor, advantages: Tensor, clip_ratio: float, clip_ratio_high: float) -> Tensor:
    """Returns whether the clip applies to each token, which then has no gradient.

    Args:
        ratio: p / p_old of each sampled token, of any shape.
        advantages: of the same shape.
        clip_ratio: the lower limit of the ratio is 1 - clip_ratio.
        clip_ratio_high: the upper one is 1 + clip_ratio_high.
    """
    return torch.where(advantages > 0, ratio > 1 + clip_ratio_high, (ratio < 1 - clip_ratio) & (advantages < 0))


def estimate_kl(logprobs: Tensor, reference_logprobs: Tensor, estimator: str = "k3") -> Tensor:
    """Returns estimates of KL(policy | reference), in nats, from tokens that the policy sampled.

    With d = reference - policy:  k1 = -d, unbiased;  k2 = d^2 / 2, biased, low variance;  k3 = e^d - d - 1, unbiased,
    never negative, low variance.

    The value is unbiased, the gradient is not the same: through the logprobs, k3 has the expected gradient of
    KL(reference | policy), (1 - e^d); k2 that of KL(policy | reference), -d; k1 is constant and has gradient 0.

    Args:
        logprobs: log p of the policy for the sampled tokens, in nats, of any shape.
        reference_logprobs: of the reference, of the same shape.
        estimator: k1, k2 or k3.

    Source: Schulman 2020, "Approximating KL divergence"; k3: GRPO, arXiv 2402.03300, equation 4.
    """
    difference = reference_logprobs - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    assert estimator == "k3", estimator
    return difference.exp() - difference - 1


def value_clip_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Returns max((v - R)^2, (old + clamp(v - old, -clip, clip) - R)^2) / 2.

    Args:
        values: v, of any shape.
        old_values: of the same shape, when the answers were sampled.
        returns: R, of the same shape.
        clip: largest difference from the old value.

    Source: PPO as implemented, arXiv 2005.12729, section 3.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2


def token_entropy(logits: Tensor) -> Tensor:
    """Returns the entropy of softmax(logits) over the last dimension, in nats: (..., V) -> (...)."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


@dataclass(frozen=True)
class Surrogate:
    """The objective of a sampled token, as a function of (ratio, logprobs, advantages, clip_ratio, clip_ratio_high).

    per_answer: whether the ratio is that of the token's answer.
    """

    loss: Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
    per_answer: bool = False


CLIPPED = Surrogate(lambda ratio, logprobs, *others: ppo_clip_loss(ratio, *others))
CLIPPED_ANSWERS = Surrogate(CLIPPED.loss, per_answer=True)
CLIPPED_WEIGHTS = Surrogate(cispo_loss)


# ---- losses of a batch -----------------------------------------------------------------------------


def next_token_loss(model: Transformer, batch: Batch) -> Tensor:
    """Returns the sum of -log p(target), in nats: the loss of pretraining, midtraining and supervised fine-tuning.

    Where the batch has target weights, it is the weighted sum over the targets that a position has then.
    """
    hidden = model(batch.tokens, batch.document_ids)  # (B, T, C)
    weights = batch.target_weights
    targets = batch.targets if weights is None else stack_targets(batch.targets, weights)
    cap = model.config.logit_softcap, model.config.logit_shift
    given = hidden, model.head.trained_weight(), targets, *cap, weights, model.logprob_kernels
    return cross_entropy_sum(*given, batch.head_positions)


def logprobs_from_hidden(
    model: Transformer,
    hidden: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    positions: Tensor | None = None,
) -> Tensor:
    """Returns log p(target) (B, T) under softmax(logits / temperature), 0 at IGNORE_INDEX.

    logits / t = (cap / t) tanh(((hidden / t) W + shift / t) / (cap / t)): hidden, cap and shift are divided instead.

    Args:
        model: whose head computes the logits.
        hidden: (B, T, C).
        targets: (B, T).
        temperature: t.
        positions: those of a batch with `head_positions`.
    """
    cap, shift = model.config.logit_softcap / temperature, model.config.logit_shift / temperature
    head = model.head.trained_weight()
    if positions is None:
        return target_logprobs(hidden / temperature, head, targets, cap, shift, model.logprob_kernels)
    rows, listed = (value.flatten(0, 1).index_select(0, positions) for value in (hidden, targets))
    logprobs = target_logprobs(rows / temperature, head, listed, cap, shift, model.logprob_kernels)
    return logprobs.new_zeros(targets.numel()).index_copy(0, positions, logprobs).view(targets.shape)


def mask_rows(mask: Tensor, *values: Tensor, positions: Tensor | None = None) -> list[Tensor]:
    """Returns the masked positions of each value as rows (n,) or (n, N).

    Where to select them would wait for the device, which alone knows how many there are, all positions are returned, or
    those that are listed: weights among the values must be 0 outside the mask.

    Args:
        mask: (B, T) bool.
        values: (B, T) or (B, T, N) each.
        positions: those of a batch with `head_positions`.
    """
    if mask.device.type == "cpu":
        return [value[mask] for value in values]
    rows = [value.flatten(0, 1) for value in values]
    return rows if positions is None else [value.index_select(0, positions) for value in rows]


def sum_by_chunk(chunk_sum: Callable[..., Tensor], chunk_rows: int, mask: Tensor, *values: Tensor) -> Tensor:
    """Returns the sum of chunk_sum(rows of each of `values`) over the masked positions, `chunk_rows` at a time.

    What a chunk computes is not kept for backward, but recomputed. Weights among the values must be 0 outside the mask.

    Args:
        mask: (B, T) bool.
        values: (B, T) or (B, T, N) each.
    """
    chunks = zip(*(each.split(chunk_rows) for each in mask_rows(mask, *values)), strict=True)
    return torch.stack([checkpoint(chunk_sum, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def entropy_sum(model: Transformer, hidden: Tensor, mask: Tensor, weights: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns the sum over masked positions of weight x entropy of the next token, in nats.

    The entropy is that of softmax(logits / temperature), from which tokens are sampled. Logits exist for one chunk at a
    time, in backward too.

    Args:
        hidden: (B, T, C).
        mask: (B, T) bool.
        weights: (B, T).
        temperature: by which logits are divided.
    """

    def chunk_sum(rows: Tensor, weight: Tensor) -> Tensor:
        return (token_entropy(model.compute_logits(rows) / temperature) * weight).sum()

    chunk_rows = head_chunk_tokens(model.config.vocab_size, hidden.device.type)
    return sum_by_chunk(chunk_sum, chunk_rows, mask, hidden, weights * mask)


def policy_gradient_loss(
    model: Transformer,
    batch: Batch,
    config: RLConfig,
    kl_weight: float | None = None,
    metrics: StepMetrics | None = None,
    critic: Callable[[Tensor], Tensor] | None = None,
    surrogate: Surrogate = CLIPPED,
) -> Tensor:
    """Returns the loss of a policy-gradient algorithm, summed over sampled tokens.

    The surrogate (the clipped ratio times the advantage), plus the KL divergence from the reference, minus the entropy
    bonus, plus the critic's loss, each where the recipe or the arguments ask for it.

    Args:
        batch: with advantages and old_logprobs; reference_logprobs, old_values and returns where they are needed.
        kl_weight: replaces the recipe's, where it adapts.
        critic: maps hidden states (B, T, C) to values (B, T).
    """
    kl_weight = config.kl_weight if kl_weight is None else kl_weight
    assert batch.advantages is not None and batch.old_logprobs is not None
    hidden = model(batch.tokens, batch.document_ids)
    mask = batch.targets != IGNORE_INDEX
    weights = torch.ones_like(batch.advantages) if batch.loss_weights is None else batch.loss_weights
    logprobs = logprobs_from_hidden(model, hidden, batch.targets, config.temperature, batch.head_positions)  # (B, T)
    log_ratio = torch.where(mask, logprobs - batch.old_logprobs, 0.0)
    if surrogate.per_answer:
        assert batch.document_ids is not None
        log_ratio = mean_log_ratio(log_ratio, mask, batch.document_ids)
    ratio = log_ratio.exp()
    bounds = config.clip_ratio, config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    loss = surrogate.loss(ratio, logprobs, batch.advantages, *bounds)
    sums = {"targets": mask.sum(), "clipped": (is_clipped(ratio, batch.advantages, *bounds) & mask).sum()}
    if batch.reference_logprobs is not None:
        kl = estimate_kl(logprobs, batch.reference_logprobs)
        loss = loss + kl_weight * kl
        sums["kl"] = torch.where(mask, kl, 0.0).sum()
    if critic is not None:
        assert batch.old_values is not None and batch.returns is not None
        value_loss = value_clip_loss(critic(hidden), batch.old_values, batch.returns, config.value_clip)
        loss = loss + config.value_weight * value_loss
        sums["value_loss"] = torch.where(mask, value_loss, 0.0).sum()
    total = torch.where(mask, loss * weights, 0.0).sum()
    if config.entropy_weight > 0:
        total = total - config.entropy_weight * entropy_sum(model, hidden, mask, weights, config.temperature)
    if metrics is not None:
        metrics.add(**sums)
    return total
