"""Defines the batch that one forward and backward pass needs.

Every stage gives the same type to the same loop. Pretraining, midtraining and SFT fill the first three fields,
reinforcement learning fills the others, and so no stage needs a loop of its own. `stream.py` builds batches;
`fledgling.train.loss` reads them.

Where few positions have a target, as in conversations, of which the answers are learned, `to` lists these positions
while the targets are still in the host's memory. The head, a tenth to two thirds of a small model's FLOPs, computes no
others.

B rows (batch), T positions (time).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor

IGNORE_INDEX = -1  # a target that adds nothing to the loss and nothing to the count
MAX_LISTED_SHARE = 0.9  # of positions with a target: above it little is saved
LISTED_MULTIPLE = 8  # of positions: matrix products of other lengths are slow on a GPU


@dataclass
class Batch:
    """One micro-batch; every field but the last has the shape (B, T), or (B, T, K) with K values a position.

    `document_ids` numbers the documents of a row: attention does not cross from one number to another.
    The fields after it belong to the target of their position, and are not read where that is IGNORE_INDEX.
    `head_positions` is of the whole batch: one that is split, or whose targets are replaced, lists its own.
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
    head_positions: Tensor | None = None  #       (n,) int64 in B T, ascending: all that have a target; None: not listed

    def __post_init__(self) -> None:
        shape = self.tokens.shape
        assert len(shape) == 2, f"tokens are (B, T), not {tuple(shape)}"
        for name, value in self._present():
            assert value.shape[:2] == shape, f"{name} is {tuple(value.shape)}, tokens are {tuple(shape)}"
        if self.head_positions is not None and self.targets.device.type == "cpu":
            listed = self.targets.flatten()[self.head_positions] != IGNORE_INDEX
            assert int(listed.sum()) == self.target_count, "head_positions lack targets"

    def _present(self) -> list[tuple[str, Tensor]]:
        """Returns the fields of the positions that are not None, by name."""
        names = [field.name for field in fields(self) if field.name != "head_positions"]
        pairs = [(name, getattr(self, name)) for name in names]
        return [(name, value) for name, value in pairs if value is not None]

    @property
    def target_count(self) -> int:
        """Number of targets that are not IGNORE_INDEX; summed over all ranks, the loss is divided by it."""
        return int((self.targets != IGNORE_INDEX).sum())

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch on `device`; a copy to a GPU goes through pinned memory and is asynchronous."""
        to_gpu = torch.device(device).type == "cuda"  # a copy from a GPU must block: the host would read too early
        present, listed = self._present(), self._list_head_positions()
        present += [] if listed is None else [("head_positions", listed)]
        pinned = {n: v.pin_memory() if to_gpu and v.device.type == "cpu" else v for n, v in present}
        return Batch(**{name: value.to(device, non_blocking=to_gpu) for name, value in pinned.items()})

    def _list_head_positions(self) -> Tensor | None:
        """Returns `head_positions` of targets in the host's memory; None where most positions have one.

        A few positions without a target are among them, so that their number is a multiple.
        """
        if self.head_positions is not None or self.targets.device.type != "cpu":
            return self.head_positions
        is_free = self.targets.flatten() == IGNORE_INDEX
        total, count = is_free.numel(), is_free.numel() - int(is_free.sum())
        padded = -(-count // LISTED_MULTIPLE) * LISTED_MULTIPLE
        if not 0 < padded <= MAX_LISTED_SHARE * total:
            return None
        return is_free.to(torch.uint8).argsort(stable=True)[:padded].sort().values

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
