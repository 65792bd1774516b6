"""Random tokens in the batches of every stage: for benchmarks, and for steps that only check shapes and memory."""

from __future__ import annotations

from dataclasses import replace

import torch

from fledgling.config import DistillConfig, DPOConfig, LoopConfig, RLConfig
from fledgling.data.batch import Batch

DOCUMENTS_PER_ROW = 3


class RandomBatches:
    """An endless stream of the same micro-batches, `count` a step: tokens (rows, T), uniform over the vocabulary.

    Args:
        vocab_size: tokens are below it.
        rows: of a micro-batch.
        context: tokens of a row.
        seed: of the tokens.
        count: micro-batches of a step.
    """

    def __init__(self, vocab_size: int, rows: int, context: int, seed: int = 0, count: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(vocab_size, (rows, context + 1), generator=generator)
        documents = (torch.arange(context) * DOCUMENTS_PER_ROW // context).int().expand(rows, -1)
        self.batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), documents.contiguous())
        self.count = count

    def next(self) -> list[Batch]:
        """Returns the micro-batches of a step."""
        return [self.batch] * self.count

    def state_dict(self) -> dict:
        """Returns nothing: every step is the same."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Does nothing."""

    def skip(self, steps: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def add_stage_fields(batch: Batch, table: LoopConfig) -> Batch:
    """Returns a batch with what the loss of a stage reads besides tokens and targets, as zeros or ones."""
    zeros = torch.zeros(batch.tokens.shape)
    numbered = None if batch.document_ids is None else batch.document_ids + 1  # of answers, from 1
    if isinstance(table, DPOConfig):  # chosen, rejected, chosen, ...
        reference = zeros if table.uses_reference else None
        return replace(
            batch, document_ids=numbered, loss_weights=zeros + 1, rewards=zeros, reference_logprobs=reference
        )
    if not isinstance(table, RLConfig):
        return batch
    fields = {"loss_weights": zeros + 1, "rewards": zeros, "advantages": zeros + 1, "old_logprobs": zeros}
    if table.kl_weight > 0:
        fields["reference_logprobs"] = zeros
    if table.uses_critic:
        fields |= {"returns": zeros, "old_values": zeros}
    return replace(batch, document_ids=numbered, **fields)


def add_predictions(batch: Batch, config: DistillConfig) -> Batch:
    """Returns a batch with what a teacher predicts, as the loss of distillation reads it; a live one adds nothing."""
    shape = batch.tokens.shape
    if config.match == "text":
        spans = torch.arange(1, shape[1] + 1).expand(shape).contiguous()  # of one token each
        return replace(batch, span_ids=spans, teacher_logprobs=torch.full((*shape, 1), -1.0))
    if config.top_k is None:
        return batch
    ids = torch.arange(config.top_k).expand(*shape, -1).contiguous()
    return replace(batch, teacher_ids=ids, teacher_logprobs=torch.zeros(*shape, config.top_k + 1).log_softmax(-1))
