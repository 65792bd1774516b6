"""Steps that change nothing: those without targets, and those whose loss or gradient is not finite. Both are counted.

The second end the stage or roll it back: after MAX_BAD_STEPS of them in a row the stage fails; or, with
`run.max_rollbacks`, it restores the last checkpoint and continues with the batches after the bad ones. The counts are
part of a checkpoint, so a resumed run decides the same.
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
    empty: int = 0  # steps without targets
    rescaled: int = 0  # steps that only lowered the scale of a float16 loss

    def record_step(self, loss: float, norm: float, updated: bool = True, rescaled: bool = False) -> bool:
        """Counts a step; returns whether it is the MAX_BAD_STEPS-th in a row that is not finite.

        updated: whether the step updated the weights; a finite step without targets does not, and ends no row.
        rescaled: whether it lowered the scale of the loss instead, as float16 expects now and then; ends no row either.
        """
        if rescaled:
            self.rescaled += 1
            return False
        finite = math.isfinite(loss) and math.isfinite(norm)
        if not finite:
            self.skipped, self.bad = self.skipped + 1, self.bad + 1
        elif updated:
            self.bad = 0
        else:
            self.empty += 1
        return not finite and self.bad >= MAX_BAD_STEPS

    def metrics(self) -> dict[str, int]:
        """Returns the counts that are not 0."""
        counts = {"skipped": self.skipped, "rollbacks": self.rollbacks, "empty": self.empty, "rescaled": self.rescaled}
        return {name: count for name, count in counts.items() if count}

    def state_dict(self) -> dict[str, int]:
        """Returns the counts as JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues where `state_dict` was taken."""
        for name in asdict(self):
            setattr(self, name, int(state.get(name, 0)))


@dataclass(frozen=True)
class Rollback:
    """How often a stage may roll back, and the function that does it.

    restore(finished) brings model, optimizer and stream to the last checkpoint, skips the batches of all steps up to
    `finished`, and returns the checkpoint's step.
    """

    max_rollbacks: int = 0
    restore: Callable[[int], int] = lambda finished: finished
