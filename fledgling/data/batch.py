"""Defines the batch that one forward and backward pass needs.

Every stage gives the same type to the same loop. Pretraining, midtraining and SFT fill the first three fields,
reinforcement learning fills the others, and so no stage needs a loop of its own. `stream.py` builds batches;
`fledgling.train.loss` reads them.

B rows (batch), T positions (time).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor

IGNORE_INDEX = -1  # a target that adds nothing to the loss and nothing to the count


@dataclass
class Batch:
    """One micro-batch; every field that is present has the shape (B, T), or (B, T, K) with K values a position.

    `document_ids` numbers the documents of a row: attention does not cross from one number to another.
    The fields after it belong to the target of their position, and are not read where that is IGNORE_INDEX.
    """

    tokens: Tensor  #                             (B, T) int64
    targets: Tensor  #                            (B, T) int64, IGNORE_INDEX where nothing is learned
    document_ids: Tensor | None = None  #         (B, T) int32
    loss_weights: Tensor | None = None  #         (B, T) float, factor of a target's loss; None: all 1
    target_weights: Tensor | None = None  #       (B, T, K) float, of the target and those after it (mtp_targets)
    rewards: Tensor | None = None  #              (B, T) float, at the target where it arises (RL)
    advantages: Tensor | None = None  #           (B, T) float
    old_logprobs: Tensor | None = None  #         (B, T) float, nats, of the policy that sampled
    reference_logprobs: Tensor | None = None  #   (B, T) float, nats, of the frozen reference (KL)
    returns: Tensor | None = None  #              (B, T) float (PPO)
    old_values: Tensor | None = None  #           (B, T) float (PPO)
    teacher_ids: Tensor | None = None  #          (B, T, K) int64, the K most probable tokens (distillation)
    teacher_logprobs: Tensor | None = None  #     (B, T, K + 1) float, nats, of these and of all others together;
    #                                             of spans of text (B, T, 1), at a span's last target
    span_ids: Tensor | None = None  #             (B, T) int64, the span of a target, from 1; 0: of none
    text_only: Tensor | None = None  #            (B, T) bool, present in a step without the teacher (distill.every)

    def __post_init__(self) -> None:
        shape = self.tokens.shape
        assert len(shape) == 2, f"tokens are (B, T), not {tuple(shape)}"
        for name, value in self._present():
            assert value.shape[:2] == shape, f"{name} is {tuple(value.shape)}, tokens are {tuple(shape)}"

    def _present(self) -> list[tuple[str, Tensor]]:
        """Returns the fields that are not None, by name."""
        pairs = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in pairs if value is not None]

    @property
    def target_count(self) -> int:
        """Number of targets that are not IGNORE_INDEX; summed over all ranks, the loss is divided by it."""
        return int((self.targets != IGNORE_INDEX).sum())

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch on `device`; a copy to a GPU goes through pinned memory and is asynchronous."""
        to_gpu = torch.device(device).type == "cuda"  # a copy from a GPU must block: the host would read too early
        pinned = {n: v.pin_memory() if to_gpu and v.device.type == "cpu" else v for n, v in self._present()}
        return Batch(**{name: value.to(device, non_blocking=to_gpu) for name, value in pinned.items()})

    def hash_rows(self) -> list[bytes]:
        """Returns 8 bytes of the SHA-256 of each row's tokens and targets: what `fledgling verify` compares."""
        pairs = zip(self.tokens.cpu().numpy(), self.targets.cpu().numpy(), strict=True)
        return [hashlib.sha256(row.tobytes() + targets.tobytes()).digest()[:8] for row, targets in pairs]

    def cut_rows(self, pieces: int) -> Batch:
        """Returns each row as `pieces` rows, which do not see each other: (B, T) -> (B pieces, T / pieces)."""
        rows, time = self.tokens.shape
        return Batch(**{name: value.reshape(rows * pieces, time // pieces) for name, value in self._present()})

    def split(self, max_rows: int) -> list[Batch]:
        """Returns consecutive batches of at most `max_rows` rows; the last may have fewer."""
        assert max_rows >= 1, f"cannot split into batches of {max_rows} rows"
        parts = [
            {name: value[start : start + max_rows] for name, value in self._present()}
            for start in range(0, self.tokens.shape[0], max_rows)
        ]
        return [Batch(**part) for part in parts]
