"""CORE's metric: from the log-probabilities of an item's choices to the accuracy of a task and the centered mean.

A choice is as good as the mean log-probability of its tokens. A language modeling item is right when every token of its
continuation is the most likely one at its position. Each accuracy is centered on guessing, and CORE is their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fledgling.evals.intervals import combine_intervals, number_clusters, share_interval
from fledgling.evals.measurement import Measurement
from fledgling.tasks.core import CoreTask

DEFAULT_CONVENTION = "nanochat"


@dataclass(frozen=True)
class CoreSettings:
    """What a score depends on besides model and files. max_per_task: items of a task, None for all."""

    max_per_task: int | None = None
    convention: str = DEFAULT_CONVENTION


@dataclass(frozen=True)
class ItemResult:
    """The model's scores of one item; enough to compute the metric again."""

    item: int  # index in evaluation order
    category: str
    gold: int
    logprobs: tuple[float, ...]  # of each choice, in nats
    tokens: tuple[int, ...]  # of each choice
    greedy: bool  # language modeling: every token is the most likely one
    cropped: int  # tokens removed on the left, of the choice that lost most
    passage: int = -1  # number of the text that it is about, which other items may share; -1: its own


@dataclass(frozen=True)
class CoreTaskResult:
    """One task's score. tokens: of all choices, each from its beginning; fed: tokens that were computed.

    passages: how many texts the n items are about; file: the name of the task's file, which two tasks may share.
    """

    label: str
    kind: str
    shots: int
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    baseline: float
    cropped: int  # items
    tokens: int
    fed: int
    seconds: float
    passages: int = 0
    file: str = ""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CoreTaskResult:
        """Returns the result that `asdict` made JSON of; older versions called `correct` `right`."""
        return cls(**{"correct" if name == "right" else name: value for name, value in values.items()})

    @property
    def centered(self) -> tuple[float, float, float]:
        """(value, low, high) on the scale where guessing is 0 and a perfect score 1."""
        return self._center(self.accuracy), self._center(self.low), self._center(self.high)

    def _center(self, accuracy: float) -> float:
        return (accuracy - self.baseline) / (1 - self.baseline)


def compute_task_result(
    task: CoreTask, results: Sequence[ItemResult], convention: str, seconds: float = 0.0, tokens: int = 0, fed: int = 0
) -> CoreTaskResult:
    """Returns the task's score over its items, with its interval over their passages.

    The interval of a mean over categories is combined of theirs, which count as independent.

    Args:
        results: of the task's items, at least one.
        convention: "foundry" averages over the categories of a task that has some.
        seconds: that the evaluation took.
        tokens: of all choices, each from its beginning.
        fed: tokens that were computed.
    """
    n, marks = len(results), [is_correct(task.kind, result) for result in results]
    correct = sum(marks)
    clusters, categories = number_passages_of(results), number_categories_of(task, results, convention)
    parts = []
    for category in range(categories.max() + 1):
        chosen = categories == category
        shares = np.array(marks, float)[chosen]
        _, passages = np.unique(clusters[chosen], return_inverse=True)
        parts.append((float(shares.mean()), *share_interval(shares, passages)))
    accuracy, low, high = combine_intervals(parts) if len(parts) > 1 else parts[0]
    return CoreTaskResult(
        label=task.label,
        kind=task.kind,
        shots=task.shots,
        n=n,
        correct=correct,
        accuracy=accuracy,
        low=low,
        high=high,
        baseline=task.baseline,
        cropped=sum(result.cropped > 0 for result in results),
        tokens=tokens,
        fed=fed,
        seconds=seconds,
        passages=int(clusters.max()) + 1,
        file=task.file.name,
    )


def number_passages_of(results: Sequence[ItemResult]) -> np.ndarray:
    """Returns the number of each item's passage, (items,) int64 from 0; an item without one has its own."""
    return number_clusters([(result.passage, -1 if result.passage >= 0 else i) for i, result in enumerate(results)])


def number_categories_of(task: CoreTask, results: Sequence[ItemResult], convention: str) -> np.ndarray:
    """Returns the number of each item's category, (items,) int64 from 0; one where no mean over categories is taken."""
    averages = task.categories and convention == "foundry"
    return number_clusters([result.category if averages else "" for result in results])


def is_correct(kind: str, result: ItemResult) -> bool:
    """Returns whether an item is answered right. Of equally likely choices the first counts, as in nanochat."""
    if kind == "language_modeling":
        return result.greedy
    pairs = zip(result.logprobs, result.tokens, strict=True)
    losses = [-logprob / tokens if tokens else float("nan") for logprob, tokens in pairs]
    return losses.index(min(losses)) == result.gold


def compute_core(results: Sequence[CoreTaskResult]) -> Measurement:
    """Returns the mean centered accuracy. Its interval takes files as independent, each with its own interval.

    Tasks on one file (HellaSwag with and without examples) have the same items, so their errors add up.
    """
    files: dict[str, list[tuple[float, float, float]]] = {}
    for result in results:
        files.setdefault(result.file or result.label, []).append(result.centered)
    # A file's part is the sum of its tasks; the mean over parts times their number is the sum over all tasks.
    parts = [
        (sum(v for v, _, _ in group), sum(v for _, v, _ in group), sum(v for *_, v in group))
        for group in files.values()
    ]
    mean, low, high = (bound * len(parts) / len(results) for bound in combine_intervals(parts))
    n, clusters = sum(result.n for result in results), sum(result.passages or result.n for result in results)
    return Measurement("core", mean, low, high, n, clusters=clusters, cluster_unit="passages")


def list_core_measurements(
    results: Sequence[CoreTaskResult], include_mean: bool, convention: str = DEFAULT_CONVENTION
) -> list[Measurement]:
    """Returns CORE (when all tasks were run) and the accuracy of each task, named core_LABEL.

    Those of another convention are other figures, named core_CONVENTION and core_CONVENTION_LABEL.
    """
    name = "core" if convention == DEFAULT_CONVENTION else f"core_{convention}"
    parts = [
        Measurement(
            f"{name}_{r.label}",
            r.accuracy,
            r.low,
            r.high,
            r.n,
            chance=r.baseline,
            clusters=r.passages or None,
            cluster_unit="passages",
        )
        for r in results
    ]
    return [replace(compute_core(results), name=name), *parts] if include_mean else parts
