"""Steps whose loss or gradient is not finite: they change no weight, are counted, and end the stage or roll it back.

After MAX_BAD_STEPS of them in a row the stage fails; or, with `run.max_rollbacks`, it restores the last checkpoint and
continues with the batches after the bad ones. The counts are part of a checkpoint, so a resumed run decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

MAX_BAD_STEPS = 3  # in a row


@dataclass
class Health:
    """Counts of a stage, updated by every step and saved in the checkpoint."""

    skipped: int = 0  # steps that were not finite
    bad: int = 0  # of these, the ones since the last finite step
    rollbacks: int = 0

    def record_step(self, loss: float, norm: float) -> bool:
        """Counts a step; returns whether it is the MAX_BAD_STEPS-th in a row that is not finite."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.bad = 0 if finite else self.bad + 1
        self.skipped += not finite
        return self.bad >= MAX_BAD_STEPS

    def metrics(self) -> dict[str, int]:
        """Returns the counts that are not 0."""
        return {name: count for name, count in (("skipped", self.skipped), ("rollbacks", self.rollbacks)) if count}

    def state_dict(self) -> dict[str, int]:
        """Returns the counts as JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues where `state_dict` was taken."""
        self.skipped, self.bad, self.rollbacks = (int(state.get(n, 0)) for n in ("skipped", "bad", "rollbacks"))


@dataclass(frozen=True)
class Rollback:
    """How often a stage may roll back, and the function that does it.

    restore(finished) brings model, optimizer and stream to the last checkpoint, skips the batches of all steps up to
    `finished`, and returns the checkpoint's step.
    """

    max_rollbacks: int = 0
    restore: Callable[[int], int] = lambda finished: finished
