"""What one forward and backward needs, and nothing else.

The one idea: every stage hands the same value to the same loop. Pretraining, midtraining and SFT fill the
first three fields; reinforcement learning fills the rest, so that no stage needs a loop of its own.

Not here: how rows are chosen and packed (`stream.py`, `pack.py`), and the loss that reads these fields.

B rows (batch), T positions (time).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

IGNORE_INDEX = -1  # a target that is not learned: it adds nothing to the loss and nothing to the count


@dataclass
class Batch:
    """One micro-batch; every field that is present has the shape (B, T).

    `document_ids` numbers the segment a position belongs to, per row: attention does not cross from one number to
    another. The fields after it belong to the target of their position, and are not read where it is IGNORE_INDEX.
    """

    tokens: Tensor  #                             (B, T) int64
    targets: Tensor  #                            (B, T) int64, IGNORE_INDEX where nothing is learned
    document_ids: Tensor | None = None  #         (B, T) int32
    loss_weights: Tensor | None = None  #         (B, T) float, weight of a target in the loss; None: all 1
    rewards: Tensor | None = None  #              (B, T) float, of the answer that the target belongs to (RL)
    advantages: Tensor | None = None  #           (B, T) float
    old_logprobs: Tensor | None = None  #         (B, T) float, nats, of the policy that sampled
    reference_logprobs: Tensor | None = None  #   (B, T) float, nats, of the frozen reference (KL)
    returns: Tensor | None = None  #              (B, T) float (PPO)
    old_values: Tensor | None = None  #           (B, T) float (PPO)

    def __post_init__(self) -> None:
        shape = self.tokens.shape
        assert len(shape) == 2, f"tokens are (B, T), not {tuple(shape)}"
        for name, value in self._present():
            assert value.shape == shape, f"{name} is {tuple(value.shape)}, tokens are {tuple(shape)}"

    def _present(self) -> list[tuple[str, Tensor]]:
        """The fields that are not None, by name."""
        pairs = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in pairs if value is not None]

    @property
    def target_count(self) -> int:
        """Positions that are learned: what the summed loss is divided by, after summing over all ranks."""
        return int((self.targets != IGNORE_INDEX).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; the copy to a GPU does not wait where the memory is pinned."""
        ahead = torch.device(device).type == "cuda"  # from a GPU it must wait: the host would read too early
        return Batch(**{name: value.to(device, non_blocking=ahead) for name, value in self._present()})

    def split(self, max_rows: int) -> list[Batch]:
        """Cuts the batch into consecutive batches of at most `rows` rows; the last may have fewer."""
        assert max_rows >= 1, f"cannot split into batches of {max_rows} rows"
        parts = [
            {name: value[start : start + max_rows] for name, value in self._present()}
            for start in range(0, self.tokens.shape[0], max_rows)
        ]
        return [Batch(**part) for part in parts]
