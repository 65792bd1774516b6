"""Running sums of a stage: what its steps have read and how long they took. Saved in the checkpoint and restored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Totals:
    """Sums over the finished steps of a stage; the steps that a resume or a rollback repeats count once.

    A sum is added up step by step and never multiplied: the steps of RL have different numbers of rows.
    """

    tokens: int = 0  # positions of all rows on all ranks, padding included: what the FLOPs are spent on
    targets: int = 0  # tokens that were learned from
    training_seconds: float = 0.0  # of the steps alone: no evaluation, no checkpoint, no preparation

    def add_step(self, tokens: int, targets: int, seconds: float) -> dict[str, Any]:
        """Adds a step and returns the sums."""
        self.tokens += tokens
        self.targets += targets
        self.training_seconds += seconds
        return asdict(self)

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums as JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken; a sum that an older checkpoint lacks begins at 0."""
        self.tokens = int(state.get("tokens", 0))
        self.targets = int(state.get("targets", 0))
        self.training_seconds = float(state.get("training_seconds", 0.0))
