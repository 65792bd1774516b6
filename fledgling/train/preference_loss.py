"""The losses of objectives.py on a batch of packed answers, summed over pairs or answers.

Answers are documents of rows. Those of a pair are in one row, chosen before rejected: documents 1 and 2, 3 and 4, ...
The loop divides by tokens, so the weight that all tokens of a step share (tokens / pairs, or tokens / answers) makes
the sum a mean over pairs or answers.

B rows, T positions, N documents of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fledgling.config import DPOConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.model.transformer import Transformer
from fledgling.train.critic import get_critic
from fledgling.train.loss import StepMetrics, logprobs_from_hidden
from fledgling.train.objectives import OBJECTIVES, Answers, kto_loss, preference_loss


def preference_batch_loss(
    model: Transformer, batch: Batch, config: DPOConfig, baseline: float = 0.0, metrics: StepMetrics | None = None
) -> Tensor:
    """Returns the recipe's objective summed over the pairs or answers of a batch, times their weight.

    The objective reward scores answers with the model's value head, the others with log-probabilities.

    Args:
        batch: with document_ids and loss_weights; with reference_logprobs where the objective has a reference, and with
            rewards, 1 of a desirable answer and 0 of another, for kto.
        baseline: of kto, in nats.
        metrics: receives `pairs`, the number of pairs or answers; `correct`, of those with a margin above 0; and
            `margin`, the sum of margins: differences of scores for reward, of gains over the reference where the
            objective has one, of mean log-probabilities else.
    """
    objective = OBJECTIVES[config.objective]
    beta = objective.beta if config.beta is None else config.beta
    hidden = model(batch.tokens, batch.document_ids)
    if config.trains_head:
        scores = get_critic(model)(hidden, with_bias=False)  # a bias has no gradient but that of rounding
        values = last_target_values(scores, batch)  # (B, N)
        margin, weight = values[:, 0::2] - values[:, 1::2], answer_weights(batch)[:, 0::2]
        loss = preference_loss(margin)
    elif objective.pair_loss is None:
        answers = collect_answers(model, hidden, batch)
        assert batch.rewards is not None
        desirable, weight = per_answer_maximum(batch.rewards, batch) > 0, answers.weight
        margin = torch.where(desirable, answers.gain - baseline, baseline - answers.gain)
        weights = config.desirable_weight, config.undesirable_weight
        loss = kto_loss(answers.gain, desirable, baseline, beta, *weights)
    else:
        answers = collect_answers(model, hidden, batch)
        chosen, rejected = (Answers(*(value[:, part::2] for value in vars(answers).values())) for part in (0, 1))
        loss, weight = objective.pair_loss(chosen, rejected, config, beta), chosen.weight
        margin = chosen.gain - rejected.gain if config.uses_reference else chosen.mean - rejected.mean
    if metrics is not None:
        present = weight > 0
        correct, gained = (margin > 0) & present, torch.where(present, margin, 0.0)
        metrics.add(pairs=present.sum(), correct=correct.sum(), margin=gained.sum())
    return (loss * weight).sum()


def collect_answers(model: Transformer, hidden: Tensor, batch: Batch) -> Answers:
    """Returns the answers of a batch, (B, N), from its hidden states (B, T, C); a missing reference counts as 0."""
    mask = batch.targets != IGNORE_INDEX
    logprobs = logprobs_from_hidden(model, hidden, batch.targets, positions=batch.head_positions)
    reference = torch.zeros_like(logprobs) if batch.reference_logprobs is None else batch.reference_logprobs
    return Answers(
        logprob=sum_per_answer(torch.where(mask, logprobs, 0.0), batch),
        reference=sum_per_answer(torch.where(mask, reference, 0.0), batch),
        tokens=sum_per_answer(mask.to(logprobs.dtype), batch),
        weight=answer_weights(batch),
    )


def sum_per_answer(values: Tensor, batch: Batch) -> Tensor:
    """Returns the sums of (B, T) over each document, (B, N), N an even number that is large enough for any row."""
    return _allocate_sums(values).scatter_add(1, _answer_index(batch), values)


def per_answer_maximum(values: Tensor, batch: Batch) -> Tensor:
    """Returns the largest of (B, T) at the targets of each document, at least 0: (B, N)."""
    at_targets = torch.where(batch.targets != IGNORE_INDEX, values, 0.0)
    return _allocate_sums(at_targets).scatter_reduce(1, _answer_index(batch), at_targets, "amax")


def answer_weights(batch: Batch) -> Tensor:
    """Returns the loss weight of each answer, 0 for a document without a target: (B, N)."""
    assert batch.loss_weights is not None
    return per_answer_maximum(batch.loss_weights, batch)


def last_target_values(values: Tensor, batch: Batch) -> Tensor:
    """Returns the value at each document's last target, at position 0 without one, of values (B, T): (B, N)."""
    positions = torch.arange(values.shape[1], device=values.device).to(values.dtype).expand_as(values)
    return values.gather(1, per_answer_maximum(positions, batch).long())


def _answer_index(batch: Batch) -> Tensor:
    assert batch.document_ids is not None
    return batch.document_ids.long() - 1


def _allocate_sums(values: Tensor) -> Tensor:
    """Returns zeros (B, T), T rounded up to an even number: a row has at most T documents, and pairs are even."""
    rows, positions = values.shape
    return values.new_zeros(rows, positions + positions % 2)
