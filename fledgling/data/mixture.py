"""The source of each row, when several sources are mixed by weight.

The weights become integers, and the sources a cycle in which each occurs as often as its integer says, distributed as
evenly as possible. The source of row g, and the number of rows that each source has given before it, are then two
look-ups: nothing is random, so a resumed run replays nothing, and every step has the right proportions.

S sources, D slots of the cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from fledgling.config import UserError

WEIGHT_RESOLUTION = 10_000  # weights are exact to one part in this many


@dataclass(frozen=True)
class SourceOrder:
    """A cycle of sources, repeated without end."""

    slots: np.ndarray  #          (D,) int64: the source of each slot
    counts_before: np.ndarray  #  (D + 1, S) int64: slots of each source before a slot; the last row: in the cycle

    @classmethod
    def from_weights(cls, weights: Sequence[float], offset: int = 0) -> SourceOrder:
        """Returns the cycle for some weights, rotated by `offset` slots; a source of weight zero never occurs.

        At every slot, the rows that a source has given differ from its share by less than one (two, if rotated). Slots
        are jobs with a release and a deadline: row j of a source of share w is due between slots j / w and
        (j + 1) / w, and scheduling the earliest deadline first meets all deadlines.

        Args:
            weights: (S,), in any unit.

        Raises:
            UserError: for a weight that is negative or not finite, or if all are zero.

        Source: Tijdeman, "The chairman assignment problem", 1980; Baruah et al., "Proportionate progress", 1996.
        """
        quotas = _integer_weights(weights)
        total = sum(quotas)
        taken = [0] * len(quotas)
        slots = np.empty(total, dtype=np.int64)
        for slot in range(total):
            due = [
                (-(-(taken[source] + 1) * total // quota), source)  # (deadline: a slot, source)
                for source, quota in enumerate(quotas)
                if taken[source] * total < quota * (slot + 1)
            ]
            slots[slot] = source = min(due)[1]
            taken[source] += 1
        slots = np.roll(slots, -(offset % total))
        counts_before = np.zeros((total + 1, len(quotas)), dtype=np.int64)
        counts_before[1:] = np.cumsum(slots[:, None] == np.arange(len(quotas)), axis=0)
        return cls(slots, counts_before)

    def locate(self, row: int) -> tuple[int, int]:
        """Returns the source of global row `row`, and the number of rows that this source gave before it."""
        cycle, slot = divmod(row, len(self.slots))
        source = int(self.slots[slot])
        return source, int(cycle * self.counts_before[-1, source] + self.counts_before[slot, source])

    def count_rows(self, rows: int) -> np.ndarray:
        """Returns the rows of each source among the first `rows` rows, (S,) int64."""
        cycle, slot = divmod(rows, len(self.slots))
        return cycle * self.counts_before[-1] + self.counts_before[slot]


def _integer_weights(weights: Sequence[float]) -> list[int]:
    """Returns integers in the proportions of `weights`, reduced, and at least 1 for a weight above zero."""
    weight = np.asarray(weights, dtype=np.float64)
    if not len(weight) or not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise UserError(f"mixture weights {list(map(float, weights))}: expected numbers >= 0, at least one above")
    shares = weight / weight.sum() * WEIGHT_RESOLUTION
    # After rounding, the sum may differ from WEIGHT_RESOLUTION by a few; the cycle is as long as the sum.
    quotas = [max(1, round(share)) if share > 0 else 0 for share in shares.tolist()]
    divisor = gcd(*quotas)
    return [quota // divisor for quota in quotas]
