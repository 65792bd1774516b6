"""Which source a row comes from, when several are mixed by weight.

The one idea: the weights become whole numbers, and the sources a cycle in which each stands as often as its
number says, spread as evenly as can be. Where row g comes from, and how many rows each source has given
before it, are then two look-ups: nothing is drawn, so nothing has to be replayed to resume, and every step
has its fair share.

Not here: the rows themselves (`stream.py`). No torch.

S sources, D slots in the cycle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np

from fledgling.config import UserError

WEIGHT_RESOLUTION = 10_000  # weights are honoured to one part in this many


@dataclass(frozen=True)
class SourceOrder:
    """The order of sources, repeated for ever."""

    slots: np.ndarray  #   (D,) int64: the source of each slot
    counts_before: np.ndarray  #  (D + 1, S) int64: slots of each source before a slot; last, those of a whole cycle

    @classmethod
    def from_weights(cls, weights: Sequence[float], offset: int = 0) -> SourceOrder:
        """The cycle for weights in any unit, begun `turn` slots late; a weight of zero is never drawn.

        At every slot of the cycle a source has given its share of the rows so far to within one row (two,
        from a turned beginning). Slots are jobs with a release and a deadline: share j of a source of weight
        w is due between slots j / w and (j + 1) / w, and the earliest deadline first meets them all
        (Tijdeman, "The chairman assignment problem", 1980; Baruah et al., "Proportionate progress", 1996).

        Raises UserError for a weight that is negative or not finite, or if all are zero.
        """
        quota = _integer_weights(weights)
        total = sum(quota)
        given = [0] * len(quota)
        slots = np.empty(total, dtype=np.int64)
        for slot in range(total):
            due = [
                (-(-(given[source] + 1) * total // share), source)  # (the slot it must come before, source)
                for source, share in enumerate(quota)
                if given[source] * total < share * (slot + 1)
            ]
            slots[slot] = source = min(due)[1]
            given[source] += 1
        slots = np.roll(slots, -(offset % total))
        before = np.zeros((total + 1, len(quota)), dtype=np.int64)
        before[1:] = np.cumsum(slots[:, None] == np.arange(len(quota)), axis=0)
        return cls(slots, before)

    def locate(self, row: int) -> tuple[int, int]:
        """The source of global row `row`, and how many rows that source gave before it."""
        turn, slot = divmod(row, len(self.slots))
        source = int(self.slots[slot])
        return source, int(turn * self.counts_before[-1, source] + self.counts_before[slot, source])

    def count_rows(self, rows: int) -> np.ndarray:
        """(S,) int64: rows of each source among the first `rows`."""
        turn, slot = divmod(rows, len(self.slots))
        return turn * self.counts_before[-1] + self.counts_before[slot]


def _integer_weights(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportions of `weights`, at least 1 for any weight above zero, reduced."""
    weight = np.asarray(weights, dtype=np.float64)
    if not len(weight) or not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise UserError(f"mixture weights {list(map(float, weights))}: expected numbers >= 0, at least one above")
    exact = weight / weight.sum() * WEIGHT_RESOLUTION
    # Rounding may miss SLOTS by a few; the cycle is as long as the quotas come to.
    quota = [max(1, round(share)) if share > 0 else 0 for share in exact.tolist()]
    common = gcd(*quota)
    return [share // common for share in quota]
