"""The losses of distillation, summed over a batch's targets: the divergence of the model from its teacher.

    tokens   T^2 KL(teacher || model), both softmax(logits / T)         Hinton et al. 2015, arXiv 1503.02531
    top k    the same of k tokens and of all others as one class, a lower bound of it that is exact where k = V - 1
    spans    T (p log(p / q) + (1 - p) log((1 - p) / (1 - q))) of a span of text whose likelihood is p^T for the teacher
             and q^T for the model                                      Minixhofer et al. 2025, arXiv 2503.20083

T is `distill.temperature`; the factors keep the size of the gradient. With `distill.weight` w below 1 the loss is
w times that plus (1 - w) times the cross-entropy of the targets.

B rows, T positions, C width, V vocabulary, n targets of a chunk, K stored tokens.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fledgling.config import DistillConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.model.linear import apply_linear
from fledgling.model.logprob import cross_entropy_sum
from fledgling.model.transformer import Transformer
from fledgling.train.distill.divergence import (
    EAGER_DIVERGENCES,
    Comparison,
    Divergences,
    DivergenceSum,
    add_targets,
)
from fledgling.train.loss import StepMetrics, logprobs_from_hidden, mask_rows, next_token_loss

MAX_LOGPROB = -1e-6  # of a span, so that log(1 - p) stays finite


# ---- formulas --------------------------------------------------------------------------------------


def span_divergence(logprobs: Tensor, teacher_logprobs: Tensor, temperature: float) -> Tensor:
    """Returns KL(teacher || model) of two Bernoulli distributions with p = exp(log-likelihood / temperature), in nats.

    The factor T of the formula above is the caller's. A p above exp(MAX_LOGPROB) counts as that.

    Args:
        logprobs: of any shape, log-likelihoods of spans for the model, in nats.
        teacher_logprobs: of the same shape and spans, for the teacher.
        temperature: T.
    """
    q, p = ((value / temperature).clamp(max=MAX_LOGPROB) for value in (logprobs, teacher_logprobs))
    not_q, not_p = (torch.log(-torch.expm1(value)) for value in (q, p))
    return p.exp() * (p - q) + not_p.exp() * (not_p - not_q)


# ---- losses of a batch -----------------------------------------------------------------------------


def distillation_loss(
    model: Transformer,
    batch: Batch,
    config: DistillConfig,
    teacher: Transformer | None = None,
    metrics: StepMetrics | None = None,
    divergences: Divergences = EAGER_DIVERGENCES,
) -> Tensor:
    """Returns the loss (0-d), summed over the batch's targets: of a batch that is `text_only` that of pretraining.

    Args:
        model: is trained.
        batch: with what the teacher predicts: span_ids and teacher_logprobs, or teacher_ids and teacher_logprobs; or
            with neither, where the teacher reads it now.
        teacher: a live teacher of the same vocabulary.
        config: weight and temperature.
        metrics: receives the number of targets and the summed divergence, without the factors; of spans also `aligned`,
            the number of tokens that belong to one.
        divergences: of tokens, as they are or compiled.
    """
    if batch.text_only is not None:
        return next_token_loss(model, batch)
    mask, weight, temperature = batch.targets != IGNORE_INDEX, config.weight, config.temperature
    is_live = batch.teacher_logprobs is None
    teacher_hidden = compute_teacher_hidden(teacher, batch) if is_live else None  # before the model's activations exist
    hidden = model(batch.tokens, batch.document_ids)
    if batch.span_ids is not None:
        divergence = _span_sum(model, hidden, batch, mask, temperature)
        loss, has_text = weight * temperature * divergence, weight == 1
    else:
        how = Comparison(model.config, teacher.config if teacher else None, temperature, weight)
        total, divergence = _token_sums(model, hidden, batch, how, divergences, teacher, teacher_hidden)
        loss, has_text = temperature**2 * total, how.text_weight == 1 - weight
    if metrics is not None:
        aligned = {} if batch.span_ids is None else {"aligned": (batch.span_ids > 0).sum()}
        metrics.add(targets=mask.sum(), divergence=divergence, **aligned)
    if has_text:
        return loss
    return loss + (1 - weight) * cross_entropy_sum(
        hidden,
        model.head.trained_weight(),
        batch.targets,
        model.config.logit_softcap,
        model.config.logit_shift,
        kernels=model.logprob_kernels,
        positions=batch.head_positions,
    )


@torch.enable_grad()  # a model's compiled blocks run in training alone, and frozen weights have no gradients
def compute_teacher_hidden(teacher: Transformer | None, batch: Batch) -> Tensor:
    """Runs the forward pass of a teacher, whose weights are frozen; returns its hidden states (B, T, C).

    teacher: None is an error, of a batch without stored predictions.
    """
    assert teacher is not None, "the batch has no stored predictions, and there is no teacher to compute them"
    return teacher(batch.tokens, batch.document_ids).detach()


def _token_sums(
    model: Transformer,
    hidden: Tensor,
    batch: Batch,
    how: Comparison,
    divergences: Divergences,
    teacher: Transformer | None,
    teacher_hidden: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the summed losses and divergences of tokens (0-d); logits exist for one chunk at a time.

    Args:
        hidden: (B, T, C), of the model.
        how: weight and temperature.
        divergences: as they are or compiled.
        teacher: its head is used where `teacher_hidden` (B, T, C) is given; None: the batch has stored predictions.
    """
    mask = batch.targets != IGNORE_INDEX
    own, select = (
        (hidden, mask.to(torch.float32), batch.targets),
        partial(mask_rows, mask, positions=batch.head_positions),
    )
    if teacher is not None and teacher_hidden is not None:
        rows, weights, targets, teacher_rows = select(*own, teacher_hidden)

        def diverge(z: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
            return divergences.tokens(z, apply_linear(teacher_rows[part], teacher.head), how)
    else:
        assert batch.teacher_ids is not None and batch.teacher_logprobs is not None
        rows, weights, targets, ids, logprobs = select(*own, batch.teacher_ids, batch.teacher_logprobs)

        def diverge(z: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
            return divergences.top_k(z, ids[part], logprobs[part], how)

    def compare(z: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        divergence, log_sums, g = diverge(z, part)
        losses = how.weight * divergence
        if how.text_weight:
            losses = losses + add_targets(z, targets[part], log_sums, g, how)
        return losses, g, divergence

    return DivergenceSum.apply(rows, model.head.trained_weight(), weights, compare)


def _span_sum(model: Transformer, hidden: Tensor, batch: Batch, mask: Tensor, temperature: float) -> Tensor:
    """Returns the summed divergence of spans (0-d); a span's likelihood is the product of its tokens'.

    The last target of a span carries the teacher's log-likelihood of the span, all other targets 0. Span 0 holds the
    tokens that belong to no span.

    Args:
        hidden: (B, T, C), of the model.
        mask: (B, T), true at targets.
    """
    assert batch.span_ids is not None and batch.teacher_logprobs is not None
    logprobs = logprobs_from_hidden(model, hidden, batch.targets, positions=batch.head_positions)
    logprobs = torch.where(mask, logprobs, 0.0)
    sums = logprobs.new_zeros(mask.shape[0], mask.shape[1] + 1).scatter_add(1, batch.span_ids, logprobs)
    teacher_logprobs = batch.teacher_logprobs[..., 0]
    ends = mask & (teacher_logprobs < 0)
    divergence = span_divergence(sums.gather(1, batch.span_ids), teacher_logprobs, temperature)
    return torch.where(ends, divergence, 0.0).sum()
