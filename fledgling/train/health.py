"""Steps whose loss or gradient is not finite: they move nothing, are counted, and end the stage or send it back.

The one idea: what such a step leaves behind is a count. PATIENCE of them in a row, and the run gives up; or, with
`run.max_rollbacks`, it goes back to the weights of the last checkpoint and on after the batches it has read since, the bad
ones last among them. The counts are part of a checkpoint, so a run that is stopped anywhere decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

MAX_BAD_STEPS = 3  # steps in a row that are not finite


@dataclass
class Health:
    """Counts of a stage. They change with every step and travel with the checkpoint."""

    skipped: int = 0  # steps that moved nothing
    bad: int = 0  # of these, the ones since the last step that did
    rollbacks: int = 0

    def record_step(self, loss: float, norm: float) -> bool:
        """Count a step; whether there were now PATIENCE in a row that were not finite."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.bad = 0 if finite else self.bad + 1
        self.skipped += not finite
        return self.bad >= MAX_BAD_STEPS

    def metrics(self) -> dict[str, int]:
        """What to record with a step: nothing as long as all is well."""
        return {name: count for name, count in (("skipped", self.skipped), ("rollbacks", self.rollbacks)) if count}

    def state_dict(self) -> dict[str, int]:
        """JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.skipped, self.bad, self.rollbacks = (int(state.get(n, 0)) for n in ("skipped", "bad", "rollbacks"))


@dataclass(frozen=True)
class Rollback:
    """How often a stage may go back, and how: `back(finished)` brings model, optimizer and stream to the last
    checkpoint, past the batches of all steps up to `finished`, and returns that checkpoint's step."""

    max_rollbacks: int = 0
    restore: Callable[[int], int] | None = None
