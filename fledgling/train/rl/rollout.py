"""Answers by the live weights, packed into the batches the one loop reads.

One idea: a rollout is a row of training text that the model wrote itself. Only sampled tokens are targets: never the
prompt, never what a tool wrote. Rollouts are packed with others into rows, so their batches have the shapes of
fine-tuning; `rounds.py` asks for them and decides what they are worth.

N rollouts, L tokens of one, B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.packing import pack_whole
from fledgling.infer.request import Completion
from fledgling.model.transformer import Transformer
from fledgling.train.loss import logprobs_from_hidden


@dataclass(frozen=True)
class Rollout:
    """One answer with its prompt: tokens (L,), whether each was sampled, its log-probability; worth: the advantage, or
    the reward where a critic is to make advantages of it; weight: how much a token counts in the loss."""

    tokens: np.ndarray
    sampled: np.ndarray
    logprobs: np.ndarray
    worth: float
    weight: float = 1.0

    @classmethod
    def from_completion(cls, prompt: Sequence[int], answer: Completion, worth: float, weight: float = 1.0) -> Rollout:
        """Put prompt and answer together; what a tool forced is not sampled."""
        silent = len(prompt)
        return cls(
            np.array([*prompt, *answer.tokens], dtype=np.int64),
            np.array([False] * silent + [not forced for forced in answer.forced]),
            np.array([0.0] * silent + answer.logprobs, dtype=np.float32),
            worth,
            weight,
        )


def pack_rollouts(rollouts: Sequence[Rollout], context: int, micro_batch_size: int, bos: int) -> list[Batch]:
    """Pack rollouts whole into rows of `context` targets and cut them into micro-batches of exactly `micro_rows` rows.

    Rollouts longer than a row are cut at its end; rows are padded with BOS, micro-batches with rows of BOS.
    """
    width = context + 1
    plan = pack_whole(np.array([min(len(r.tokens), width) for r in rollouts]), width)
    rows = -(-plan.num_rows // micro_batch_size) * micro_batch_size
    tokens = np.full((rows, width), bos, dtype=np.int64)
    sampled = np.zeros((rows, width), dtype=bool)
    logprobs, worth, weights = np.zeros((3, rows, width), dtype=np.float32)
    starts = np.zeros((rows, width), dtype=bool)  # of documents: at a BOS, but for a drawn one, which ends an answer
    for row in range(plan.num_rows):
        at = 0
        for piece in range(plan.row_starts[row], plan.row_starts[row + 1]):
            one, length = rollouts[plan.piece_documents[piece]], int(plan.piece_lengths[piece])
            place = slice(at, at + length)
            tokens[row, place], sampled[row, place] = one.tokens[:length], one.sampled[:length]
            logprobs[row, place], worth[row, place] = one.logprobs[:length], one.worth
            weights[row, place] = one.weight
            starts[row, place] = (tokens[row, place] == bos) & ~sampled[row, place]
            at += length
        starts[row, at : at + 1] = True
    whole = Batch(
        tokens=torch.from_numpy(tokens[:, :-1].copy()),
        targets=torch.from_numpy(np.where(sampled, tokens, IGNORE_INDEX)[:, 1:].copy()),
        document_ids=torch.from_numpy(np.cumsum(starts, axis=1, dtype=np.int32)[:, :-1].copy()),
        loss_weights=torch.from_numpy(weights[:, 1:].copy()),
        advantages=torch.from_numpy(worth[:, 1:].copy()),
        old_logprobs=torch.from_numpy(logprobs[:, 1:].copy()),
    )
    return whole.split(micro_batch_size)


def empty_batch(context: int, micro_batch_size: int, bos: int) -> Batch:
    """A micro-batch without targets: there is nothing to learn from."""
    nothing = Rollout(np.full(2, bos), np.zeros(2, bool), np.zeros(2, np.float32), 0.0)
    return pack_rollouts([nothing], context, micro_batch_size, bos)[0]


@torch.no_grad()
def add_reference_logprobs(batch: Batch, reference: Transformer | None, temperature: float = 1.0) -> Batch:
    """The batch with the reference's log-probabilities, where there is a reference and they are not there yet."""
    if reference is None or batch.reference_logprobs is not None:
        return batch
    here = batch.to(reference.head.weight.device)
    hidden = reference(here.tokens, here.document_ids)
    batch.reference_logprobs = logprobs_from_hidden(reference, hidden, here.targets, temperature).to(
        batch.tokens.device
    )
    return batch


def batch_to_json(batch: Batch) -> dict[str, list]:
    """A batch as JSON values; fp32 numbers survive it to the bit."""
    return {name: value.tolist() for name, value in vars(batch).items() if value is not None}


def batch_from_json(fields: dict[str, list]) -> Batch:
    """The inverse of `to_json`."""
    kinds = {"tokens": torch.int64, "targets": torch.int64, "documents": torch.int32}
    return Batch(**{name: torch.tensor(value, dtype=kinds.get(name, torch.float32)) for name, value in fields.items()})
