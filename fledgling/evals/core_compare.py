"""Comparison of two CORE logs item by item: is one model better, and can the difference be chance?

Items that both models answer right or both wrong carry no information about which one is better. A task's p is
McNemar's exact test on the other items. Where items share a passage, or the accuracy is a mean over categories, p and
interval are of a bootstrap over passages, as are CORE's.
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

    A task: McNemar's exact test, and the interval of a paired difference of proportions. CORE, a task whose items share
    passages, and one whose accuracy is a mean over categories: a bootstrap over passages, within each category (2,000
    resamples of both models' items together), those of one file together. Raises UserError for logs of different items
    or conventions.
    """
    first, second = ({task.task.label: task for task in read_core_log(path)} for path in (a, b))
    shared = [label for label in first if label in second]
    if not shared:
        raise UserError(f"{a} and {b} have no task in common; they have {', '.join(first)} and {', '.join(second)}")
    for label in shared:
        if (old := first[label].convention) != (new := second[label].convention):
            raise UserError(f"{label}: {a} has --convention {old}, {b} {new}; run both with the same one")
        if first[label].texts != second[label].texts:
            raise UserError(
                f"{label}: {a} and {b} have different items; run both with the same --max-per-task and files"
            )
    pairs = [(first[label], second[label]) for label in shared]
    differences = [
        paired_difference(
            old.task.label, old.correct_items, new.correct_items, old.passage_numbers, old.category_numbers
        )
        for old, new in pairs
    ]
    return [_core_difference(pairs), *differences]


def paired_difference(
    name: str,
    a: np.ndarray,
    b: np.ndarray,
    passages: np.ndarray | None = None,
    categories: np.ndarray | None = None,
) -> Difference:
    """Returns B minus A of the accuracy in the same items; value, interval and p are of one statistic.

    Args:
        name: of the result.
        a, b: marks of each model (items,), 0 or 1.
        passages: of the items (items,) from 0; None: all differ.
        categories: of the items (items,) from 0, over which the accuracy is a mean; None: one.
    """
    n, only_a, only_b = len(a), int((a > b).sum()), int((b > a).sum())
    passages = np.arange(n) if passages is None else passages
    categories = np.zeros(n, np.int64) if categories is None else categories
    clusters = int(passages.max()) + 1
    if clusters == n and not categories.any():
        value = (only_b - only_a) / n
        half = Z95 * max(0.0, (only_a + only_b) / n - value * value) ** 0.5 / n**0.5
        low, high, p = value - half, value + half, mcnemar_p_value(only_a, only_b)
    else:
        low, high, p = _bootstrap_bounds(_resample_mean(b - a, passages, categories, SEED))
    mean_a, mean_b = (_mean_over_categories(marks, categories) for marks in (a, b))
    return Difference(name, mean_a, mean_b, low, high, n, clusters, only_a, only_b, p)


def _mean_over_categories(values: np.ndarray, categories: np.ndarray) -> float:
    """Returns the mean over the categories (items,) of the mean of their values (items,)."""
    return float((np.bincount(categories, values) / np.bincount(categories)).mean())


def _resample_mean(values: np.ndarray, passages: np.ndarray, categories: np.ndarray, seed: int) -> np.ndarray:
    """Returns the mean over categories of values (items,), with passages drawn again in each category: (resamples,)."""
    parts = []
    for category in range(categories.max() + 1):
        chosen = categories == category
        _, clusters = np.unique(passages[chosen], return_inverse=True)
        sums, sizes = sum_by_cluster(values[chosen], clusters)
        parts.append(resample_clusters(sums, sizes, BOOTSTRAP_RESAMPLES, seed + category))
    return np.mean(parts, 0)


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
        resampled += _resample_mean(gain, old.passage_numbers, old.category_numbers, seed) / len(pairs)
    low, high, p = _bootstrap_bounds(resampled)
    a, b = (compute_core([task.compute_result() for task in tasks]) for tasks in zip(*pairs, strict=True))
    n = sum(len(task.results) for task, _ in pairs)
    return Difference("core", a.value, b.value, low, high, n, clusters, only_a, only_b, p)
