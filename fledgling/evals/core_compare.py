"""Comparison of two CORE logs item by item: is one model better, and can the difference be chance?

Items that both models answer right or both wrong carry no information about which one is better. A task's p is
McNemar's exact test on the other items; where items share a passage, it and CORE's are of a bootstrap over passages.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np

from fledgling.config import UserError
from fledgling.evals.core_log import LoggedTask, read_core_log
from fledgling.evals.core_results import compute_core
from fledgling.evals.intervals import resample_clusters, sum_by_cluster
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
    clusters: int  # passages that the items are about
    only_a: int  # items that only A answers right
    only_b: int
    p: float

    @property
    def value(self) -> float:
        """B minus A."""
        return self.b - self.a


def compare_core_logs(a: Path, b: Path) -> list[Difference]:
    """Returns the paired difference of two logs in CORE, over the tasks in both, and in each of these tasks.

    A task: McNemar's exact test, and the interval of a paired difference of proportions. CORE, and a task whose items
    share passages: a bootstrap over passages (2,000 resamples of both models' items together), those of one file
    together. Raises UserError for logs of different items.
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
    differences = [
        paired_difference(old.task.label, old.correct_items, new.correct_items, old.passage_numbers)
        for old, new in pairs
    ]
    return [_core_difference(pairs), *differences]


def paired_difference(name: str, a: np.ndarray, b: np.ndarray, passages: np.ndarray | None = None) -> Difference:
    """Returns B minus A of marks (items,), 0 or 1, for the same items. passages: (items,) from 0; None: all differ."""
    n, only_a, only_b = len(a), int((a > b).sum()), int((b > a).sum())
    value = (only_b - only_a) / n
    clusters = n if passages is None else int(passages.max()) + 1
    if passages is None or clusters == n:
        half = Z95 * max(0.0, (only_a + only_b) / n - value * value) ** 0.5 / n**0.5
        low, high, p = value - half, value + half, mcnemar_p_value(only_a, only_b)
    else:
        low, high, p = _bootstrap_bounds(resample_clusters(*sum_by_cluster(b - a, passages), BOOTSTRAP_RESAMPLES, SEED))
    return Difference(name, float(a.mean()), float(b.mean()), low, high, n, clusters, only_a, only_b, p)


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Returns the exact two-sided p of a fair coin for the items on which two models differ (McNemar 1947)."""
    n, least = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(comb(n, k) for k in range(least + 1)) / 2**n)


def _bootstrap_bounds(resampled: np.ndarray) -> tuple[float, float, float]:
    """Returns the 95 % interval of resampled differences, and the two-sided p of no difference."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    tail = min((resampled <= 0).mean(), (resampled >= 0).mean())
    return float(low), float(high), min(1.0, 2 * max(float(tail), 1 / len(resampled)))


def _core_difference(pairs: Sequence[tuple[LoggedTask, LoggedTask]]) -> Difference:
    """Returns the difference in CORE, with interval and p from the bootstrap; p is at least 2 / resamples."""
    resampled = np.zeros(BOOTSTRAP_RESAMPLES)
    only_a = only_b = clusters = 0
    for old, new in pairs:
        gain = (new.correct_items - old.correct_items) / (1 - old.task.baseline)
        only_a, only_b = only_a + int((gain < 0).sum()), only_b + int((gain > 0).sum())
        clusters += int(old.passage_numbers.max()) + 1
        # Tasks on the same file have the same items: the same seed draws the same passages of both.
        seed = SEED + zlib.crc32(old.task.file.name.encode())
        sums, sizes = sum_by_cluster(gain, old.passage_numbers)
        resampled += resample_clusters(sums, sizes, BOOTSTRAP_RESAMPLES, seed) / len(pairs)
    low, high, p = _bootstrap_bounds(resampled)
    a, b = (compute_core([task.compute_result() for task in tasks]) for tasks in zip(*pairs, strict=True))
    n = sum(len(task.results) for task, _ in pairs)
    return Difference("core", a.value, b.value, low, high, n, clusters, only_a, only_b, p)
