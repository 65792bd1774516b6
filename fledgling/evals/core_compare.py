"""Comparison of two CORE logs item by item: is one model better, and can the difference be chance?

Items that both models answer right or both wrong carry no information about which one is better. A task's p is
McNemar's exact test on the other items; CORE's is a bootstrap over the items of each task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np

from fledgling.config import UserError
from fledgling.evals.core_log import LoggedTask, read_core_log
from fledgling.evals.core_results import compute_core
from fledgling.evals.measurement import Z95

BOOTSTRAP_RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Difference:
    """B minus A over the same items, with its 95 % interval [low, high]. p: two-sided, of no difference."""

    name: str
    a: float
    b: float
    low: float
    high: float
    n: int
    only_a: int  # items that only A answers right
    only_b: int
    p: float

    @property
    def value(self) -> float:
        """B minus A."""
        return self.b - self.a


def compare_core_logs(a: Path, b: Path) -> list[Difference]:
    """Returns the paired difference of two logs in CORE, over the tasks in both, and in each of these tasks.

    A task: McNemar's exact test, and the interval of a paired difference of proportions. CORE: a bootstrap over items
    within each task (2,000 resamples of both models' items together). Raises UserError for logs of different items.
    """
    first, second = ({task.task.label: task for task in read_core_log(path)} for path in (a, b))
    shared = [label for label in first if label in second]
    if not shared:
        raise UserError(f"{a} and {b} have no task in common; they have {', '.join(first)} and {', '.join(second)}")
    for label in shared:
        if first[label].texts != second[label].texts:
            raise UserError(
                f"{label}: {a} and {b} have different items; run both with the same --max-per-task and files"
            )
    pairs = [(first[label], second[label]) for label in shared]
    differences = [paired_difference(old.task.label, old.correct_items, new.correct_items) for old, new in pairs]
    return [_core_difference(pairs), *differences]


def paired_difference(name: str, a: np.ndarray, b: np.ndarray) -> Difference:
    """Returns B minus A of marks (items,), 0 or 1, for the same items."""
    n, only_a, only_b = len(a), int((a > b).sum()), int((b > a).sum())
    value = (only_b - only_a) / n
    half = Z95 * max(0.0, (only_a + only_b) / n - value * value) ** 0.5 / n**0.5
    p = mcnemar_p_value(only_a, only_b)
    return Difference(name, float(a.mean()), float(b.mean()), value - half, value + half, n, only_a, only_b, p)


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Returns the exact two-sided p of a fair coin for the items on which two models differ (McNemar 1947)."""
    n, least = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(comb(n, k) for k in range(least + 1)) / 2**n)


def _core_difference(pairs: Sequence[tuple[LoggedTask, LoggedTask]]) -> Difference:
    """Returns the difference in CORE, with interval and p from the bootstrap; p is at least 2 / resamples."""
    rng = np.random.default_rng(SEED)
    resampled = np.zeros(BOOTSTRAP_RESAMPLES)
    only_a = only_b = 0
    for old, new in pairs:
        gain = (new.correct_items - old.correct_items) / (1 - old.task.baseline)
        only_a, only_b = only_a + int((gain < 0).sum()), only_b + int((gain > 0).sum())
        # Resampling n items with replacement only changes how often each of the three outcomes is drawn.
        outcomes = np.array([(gain > 0).sum(), (gain < 0).sum(), (gain == 0).sum()]) / len(gain)
        counts = rng.multinomial(len(gain), outcomes, BOOTSTRAP_RESAMPLES)
        resampled += (counts[:, 0] - counts[:, 1]) / len(gain) / (1 - old.task.baseline) / len(pairs)
    low, high = np.quantile(resampled, (0.025, 0.975))
    tail = min((resampled <= 0).mean(), (resampled >= 0).mean())
    p = min(1.0, 2 * max(float(tail), 1 / BOOTSTRAP_RESAMPLES))
    a, b = (compute_core([task.compute_result() for task in tasks]) for tasks in zip(*pairs, strict=True))
    n = sum(len(task.results) for task, _ in pairs)
    return Difference("core", a.value, b.value, float(low), float(high), n, only_a, only_b, p)
