"""Rollouts: answers with their prompts, packed into the batches that the training loop reads.

A rollout is training text that a model wrote: its sampled tokens are targets, its prompt and the output of tools are
not. Rollouts are packed whole into rows, so their batches have the shapes of fine-tuning. RL and DPO use both.

Shapes: L tokens of a rollout, B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.packing import pack_best_fit
from fledgling.infer.request import Completion
from fledgling.model.transformer import Transformer
from fledgling.train.loss import logprobs_from_hidden

_OLD_BATCH_FIELDS = {"documents": "document_ids", "weights": "loss_weights"}  # in the JSON of older checkpoints


@dataclass(frozen=True)
class Rollout:
    """One prompt with one answer."""

    tokens: np.ndarray  # (L,) int64
    sampled: np.ndarray  # (L,) bool: False for the prompt and for tokens that a tool forced
    logprobs: np.ndarray  # (L,) fp32, nats, of the policy that sampled; 0 where nothing was sampled
    reward: float = 0.0  # of the whole answer
    advantage: float = 0.0
    loss_weight: float = 1.0  # of each of its tokens
    early_rewards: tuple[tuple[int, float], ...] = ()  # (position, part of the reward that arises there), of its turns
    starts: tuple[int, ...] = (0,)  # where its documents begin: a pair of answers is two

    @classmethod
    def from_completion(
        cls,
        prompt: Sequence[int],
        completion: Completion,
        reward: float,
        advantage: float,
        loss_weight: float = 1.0,
        turn_rewards: Sequence[tuple[int, float]] = (),
    ) -> Rollout:
        """Joins a prompt and the engine's completion of it.

        Args:
            prompt: token ids.
            completion: of the engine, with the log-probability of each token.
            reward: of the answer.
            advantage: of the answer.
            loss_weight: of the answer's tokens.
            turn_rewards: (position within the completion, reward) of an episode's turns.
        """
        return cls(
            np.array([*prompt, *completion.tokens], dtype=np.int64),
            np.array([False] * len(prompt) + [not forced for forced in completion.forced]),
            np.array([0.0] * len(prompt) + completion.logprobs, dtype=np.float32),
            reward,
            advantage,
            loss_weight,
            tuple((len(prompt) + position, part) for position, part in turn_rewards),
        )

    def place_rewards(self, length: int) -> np.ndarray:
        """Returns the reward by token of the first `length` tokens, (length,).

        The parts of turns are where they arise; the rest is at the last sampled token, parts beyond `length` included.
        """
        placed = np.zeros(length)
        if len(sampled := np.flatnonzero(self.sampled[:length])):
            for position, part in self.early_rewards:
                if position < length:
                    placed[position] += part
            placed[sampled[-1]] += self.reward - placed.sum()
        return placed


def pack_rollouts(rollouts: Sequence[Rollout], context: int, micro_batch_size: int, bos: int) -> list[Batch]:
    """Packs rollouts whole into rows of `context` targets, cut into micro-batches of exactly `micro_batch_size` rows.

    A rollout longer than a row is cut at the row's end. Rows are padded with BOS, micro-batches with rows of BOS.
    """
    width = context + 1
    plan = pack_best_fit(np.array([min(len(rollout.tokens), width) for rollout in rollouts]), width)
    rows = -(-plan.num_rows // micro_batch_size) * micro_batch_size
    tokens = np.full((rows, width), bos, dtype=np.int64)
    sampled = np.zeros((rows, width), dtype=bool)
    logprobs, rewards, advantages, loss_weights = np.zeros((4, rows, width), dtype=np.float32)
    starts = np.zeros((rows, width), dtype=bool)  # of documents, whatever tokens they begin with
    for row in range(plan.num_rows):
        position = 0
        for piece in range(plan.row_starts[row], plan.row_starts[row + 1]):
            rollout, length = rollouts[plan.piece_documents[piece]], int(plan.piece_lengths[piece])
            span = slice(position, position + length)
            tokens[row, span], sampled[row, span] = rollout.tokens[:length], rollout.sampled[:length]
            logprobs[row, span], loss_weights[row, span] = rollout.logprobs[:length], rollout.loss_weight
            rewards[row, span], advantages[row, span] = rollout.place_rewards(length), rollout.advantage
            starts[row, [position + start for start in rollout.starts if start < length]] = True
            position += length
        starts[row, position : position + 1] = True
    starts[plan.num_rows :, 0] = True  # a row of padding is one document; documents are numbered from 1
    batch = Batch(
        tokens=torch.from_numpy(tokens[:, :-1].copy()),
        targets=torch.from_numpy(np.where(sampled, tokens, IGNORE_INDEX)[:, 1:].copy()),
        document_ids=torch.from_numpy(np.cumsum(starts, axis=1, dtype=np.int32)[:, :-1].copy()),
        loss_weights=torch.from_numpy(loss_weights[:, 1:].copy()),
        rewards=torch.from_numpy(rewards[:, 1:].copy()),
        advantages=torch.from_numpy(advantages[:, 1:].copy()),
        old_logprobs=torch.from_numpy(logprobs[:, 1:].copy()),
    )
    return batch.split(micro_batch_size)


def empty_batch(context: int, micro_batch_size: int, bos: int) -> Batch:
    """Returns a micro-batch without targets, for a step that has nothing to learn from."""
    rollout = Rollout(np.full(2, bos), np.zeros(2, bool), np.zeros(2, np.float32))
    return pack_rollouts([rollout], context, micro_batch_size, bos)[0]


@torch.no_grad()
def add_reference_logprobs(batch: Batch, reference: Transformer | None, temperature: float = 1.0) -> Batch:
    """Returns the batch with `reference_logprobs` written into it, unless there is no reference or they are there."""
    if reference is None or batch.reference_logprobs is not None:
        return batch
    on_device = batch.to(reference.head.weight.device)
    hidden = reference(on_device.tokens, on_device.document_ids)
    logprobs = logprobs_from_hidden(reference, hidden, on_device.targets, temperature, on_device.head_positions)
    batch.reference_logprobs = logprobs.to(batch.tokens.device)
    return batch


def batch_to_json(batch: Batch) -> dict[str, list]:
    """Returns a batch as JSON values, which keep fp32 numbers to the bit."""
    return {name: value.tolist() for name, value in vars(batch).items() if value is not None}


def batch_from_json(values: dict[str, list]) -> Batch:
    """Inverse of `batch_to_json`."""
    dtypes = {"tokens": torch.int64, "targets": torch.int64, "document_ids": torch.int32}
    named = {_OLD_BATCH_FIELDS.get(name, name): value for name, value in values.items()}
    return Batch(**{name: torch.tensor(value, dtype=dtypes.get(name, torch.float32)) for name, value in named.items()})
