"""Running sums of a stage: what its steps have read and how long they took. Saved in the checkpoint and restored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fledgling.record import read_jsonl


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


def read_recorded_totals(checkpoint_path: Path, step: int) -> dict[str, Any]:
    """Returns the sums after `step` steps from the metrics of a checkpoint's stage; {} where these do not have them.

    A checkpoint of an older version has no sums of its own, and its run has recorded them with each step.
    """
    stage_dir = checkpoint_path.resolve().parents[1]
    lines = [line for line in read_jsonl(stage_dir / "metrics.jsonl") if line.get("step") == step]
    sums = {name: lines[-1].get(name) for name in asdict(Totals())} if lines else {}
    return {name: value for name, value in sums.items() if type(value) in (int, float)}
