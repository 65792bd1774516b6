"""CORE's metric: from the log-probabilities of an item's choices to the accuracy of a task and the centered mean.

A choice is as good as the mean log-probability of its tokens. A language modeling item is right when every token of its
continuation is the most likely one at its position. Each accuracy is centered on guessing, and CORE is their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from fledgling.evals.measurement import Measurement, wilson_interval
from fledgling.tasks.core import CoreTask


@dataclass(frozen=True)
class CoreSettings:
    """What a score depends on besides model and files. max_per_task: items of a task, None for all."""

    max_per_task: int | None = None
    convention: str = "nanochat"


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


@dataclass(frozen=True)
class CoreTaskResult:
    """One task's score. tokens: of all choices, each from its beginning; fed: tokens that were computed."""

    label: str
    kind: str
    shots: int
    n: int
    right: int
    accuracy: float
    low: float
    high: float
    baseline: float
    cropped: int  # items
    tokens: int
    fed: int
    seconds: float

    @property
    def centered(self) -> tuple[float, float, float]:
        """(value, low, high) on the scale where guessing is 0 and a perfect score 1."""
        return self._center(self.accuracy), self._center(self.low), self._center(self.high)

    def _center(self, accuracy: float) -> float:
        return (accuracy - self.baseline) / (1 - self.baseline)


def compute_task_result(
    task: CoreTask, results: Sequence[ItemResult], convention: str, seconds: float = 0.0, tokens: int = 0, fed: int = 0
) -> CoreTaskResult:
    """Returns the task's score over its items; the foundry convention averages over categories."""
    n, marks = len(results), [is_correct(task.kind, result) for result in results]
    right = sum(marks)
    low, high = wilson_interval(right, n)
    accuracy = right / n
    if task.categories and convention == "foundry":
        groups: dict[str, list[bool]] = {}
        for result, mark in zip(results, marks, strict=True):
            groups.setdefault(result.category, []).append(mark)
        shares = [sum(group) / len(group) for group in groups.values()]
        shift = sum(shares) / len(shares) - accuracy
        low, high, accuracy = low + shift, high + shift, accuracy + shift
    cropped = sum(result.cropped > 0 for result in results)
    return CoreTaskResult(
        task.label, task.kind, task.shots, n, right, accuracy, low, high, task.baseline, cropped, tokens, fed, seconds
    )


def is_correct(kind: str, result: ItemResult) -> bool:
    """Returns whether an item is answered right. Of equally likely choices the first counts, as in nanochat."""
    if kind == "language_modeling":
        return result.greedy
    pairs = zip(result.logprobs, result.tokens, strict=True)
    losses = [-logprob / tokens if tokens else float("nan") for logprob, tokens in pairs]
    return losses.index(min(losses)) == result.gold


def compute_core(results: Sequence[CoreTaskResult]) -> Measurement:
    """Returns the mean centered accuracy; its interval takes the tasks as independent, each with its own interval."""
    values = [result.centered for result in results]
    mean = sum(value for value, _, _ in values) / len(values)
    half = sqrt(sum(((high - low) / 2) ** 2 for _, low, high in values)) / len(values)
    return Measurement("core", mean, mean - half, mean + half, sum(result.n for result in results))


def list_core_measurements(results: Sequence[CoreTaskResult], include_mean: bool) -> list[Measurement]:
    """Returns CORE (when all tasks were run) and the accuracy of each task, named core_LABEL."""
    parts = [Measurement(f"core_{r.label}", r.accuracy, r.low, r.high, r.n, chance=r.baseline) for r in results]
    return [compute_core(results), *parts] if include_mean else parts
