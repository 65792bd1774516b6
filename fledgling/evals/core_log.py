"""Logged evaluations: every prompt and what the model said, read again to recompute metrics or to compare two models.

The one idea: a score is a function of the logged items, so it can be checked, replayed and paired without a model. Two
models that answered the same items are compared item by item: what both got right or wrong says nothing about which
one is better.

A log is JSON lines: a line for each task that begins, then one for each item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from fledgling.config import UserError
from fledgling.evals.core import CoreSettings, CoreTaskResult, ItemResult, compute_core, compute_task_result, is_correct
from fledgling.evals.likelihood import ContinuationScore
from fledgling.evals.measurement import Z95
from fledgling.record.jsonl import JsonlWriter, read_jsonl
from fledgling.tasks.core import CorePrompt, CoreTask
from fledgling.text.tokenizer import Tokenizer

BOOTSTRAP_RESAMPLES = 2000
SEED = 0


class CoreLog:
    """Writes an evaluation's log, and knows which tasks it holds whole (`keys`)."""

    def __init__(self, path: Path) -> None:
        self.lines = JsonlWriter(path)
        self.keys = {one.key for one in read_core_log(path) if len(one.results) == one.n} if path.is_file() else set()

    def begin_task(self, task: CoreTask, key: str, settings: CoreSettings, n: int) -> None:
        """A task's items follow; whatever the log held of this task counts no longer."""
        facts = {**asdict(task), "file": task.file.name, **asdict(settings)}
        self.lines.append({"begin": task.label, "key": key, "n": n, **facts})

    def write_item(
        self,
        task: CoreTask,
        prompt: CorePrompt,
        one: ItemResult,
        scores: Sequence[ContinuationScore],
        tokenizer: Tokenizer,
    ) -> None:
        """One item: its text, the scores of its choices, what was predicted."""
        said: dict[str, Any] = {"shots": prompt.examples, "choices": prompt.choices}
        if task.kind == "language_modeling":
            said["predicted"] = tokenizer.decode(scores[0].predicted)
        mark = is_correct(task.kind, one)
        self.lines.append({"task": task.label, **asdict(one), "correct": mark, **said})

    def close(self) -> None:
        """Close the file."""
        self.lines.close()


@dataclass(frozen=True)
class LoggedTask:
    """One task of a log."""

    task: CoreTask
    key: str
    n: int
    convention: str
    results: tuple[ItemResult, ...]
    texts: tuple[str, ...]  # of each item, to see that two logs asked the same

    @property
    def correct_items(self) -> np.ndarray:
        """(items,) 1 where right, in the order of the items."""
        return np.array([is_correct(self.task.kind, one) for one in self.results], float)


def read_core_log(path: Path) -> list[LoggedTask]:
    """The tasks of a log, the last run of each. Raises UserError naming the line of what is no log's."""
    tasks: dict[str, LoggedTask] = {}
    for number, line in enumerate(read_jsonl(path), start=1):
        try:
            if "begin" in line:
                facts = {key: line[key] for key in ("kind", "shots", "delimiter", "baseline", "categories")}
                task = CoreTask(line["begin"], Path(line["file"]), **facts)
                tasks[task.label] = LoggedTask(task, line["key"], line["n"], line["convention"], (), ())
                answers, texts = [], []
            else:
                facts = {key: line[key] for key in ("item", "category", "gold", "greedy", "cropped")}
                answers.append(ItemResult(logprobs=tuple(line["logprobs"]), tokens=tuple(line["tokens"]), **facts))
                texts.append("".join(map("".join, line["choices"])))
                kept = tasks[line["task"]]
                tasks[line["task"]] = replace(kept, results=answers, texts=texts)
        except (KeyError, TypeError, UnboundLocalError):
            raise UserError(f"{path}:{number}: not a line of an evaluation's log; expected what --log wrote") from None
    if not tasks:
        raise UserError(f"{path}: no evaluation is logged there; expected a file that --log wrote")
    return [replace(one, results=tuple(one.results), texts=tuple(one.texts)) for one in tasks.values()]


def replay_core_log(path: Path) -> list[CoreTaskResult]:
    """The results of a log, computed again from its items."""
    return [compute_task_result(one.task, one.results, one.convention) for one in read_core_log(path) if one.results]


# ---- two models ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """B minus A over the same items. p: two-sided, that chance alone separates them so far."""

    name: str
    a: float
    b: float
    low: float
    high: float
    n: int
    only_a: int  # items that A alone got right
    only_b: int
    p: float

    @property
    def value(self) -> float:
        return self.b - self.a


def compare_core_logs(a: Path, b: Path) -> list[Difference]:
    """Paired differences of two logs, task by task, and of CORE over the tasks in both.

    A task: McNemar's exact test on the items that only one got right, and the interval of a paired difference of
    proportions. CORE: a bootstrap over items within each task (2,000 resamples of both models' items together).
    Raises UserError where the logs did not ask the same.
    """
    first, second = ({one.task.label: one for one in read_core_log(path)} for path in (a, b))
    shared = [label for label in first if label in second]
    if not shared:
        raise UserError(f"{a} and {b} have no task in common; they have {', '.join(first)} and {', '.join(second)}")
    for label in shared:
        if first[label].texts != second[label].texts:
            raise UserError(
                f"{label}: {a} and {b} did not ask the same items; run both with the same --max-per-task and files"
            )
    differences = [
        paired_difference(label, first[label].correct_items, second[label].correct_items) for label in shared
    ]
    return [
        _core_difference(a, b, [first[label] for label in shared], [second[label] for label in shared]),
        *differences,
    ]


def paired_difference(name: str, a: np.ndarray, b: np.ndarray) -> Difference:
    """B minus A of marks (items,) 0 or 1 for the same items."""
    n, only_a, only_b = len(a), int((a > b).sum()), int((b > a).sum())
    value = (only_b - only_a) / n
    half = Z95 * max(0.0, (only_a + only_b) / n - value * value) ** 0.5 / n**0.5
    return Difference(
        name,
        float(a.mean()),
        float(b.mean()),
        value - half,
        value + half,
        n,
        only_a,
        only_b,
        mcnemar_p_value(only_a, only_b),
    )


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Exact two-sided p of a fair coin for the items on which two models differ (McNemar 1947)."""
    n, least = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(comb(n, k) for k in range(least + 1)) / 2**n)


def _core_difference(a: Path, b: Path, first: Sequence[LoggedTask], second: Sequence[LoggedTask]) -> Difference:
    generator = np.random.default_rng(SEED)
    moved = np.zeros(BOOTSTRAP_RESAMPLES)
    only_a = only_b = 0
    for one, other in zip(first, second, strict=True):
        gain = (other.correct_items - one.correct_items) / (1 - one.task.baseline)
        only_a, only_b = only_a + int((gain < 0).sum()), only_b + int((gain > 0).sum())
        # resampling n items with replacement only changes how many of each of the three outcomes are drawn
        outcomes = np.array([(gain > 0).sum(), (gain < 0).sum(), (gain == 0).sum()]) / len(gain)
        drawn = generator.multinomial(len(gain), outcomes, BOOTSTRAP_RESAMPLES)
        moved += (drawn[:, 0] - drawn[:, 1]) / len(gain) / (1 - one.task.baseline) / len(first)
    low, high = np.quantile(moved, (0.025, 0.975))
    beyond = min((moved <= 0).mean(), (moved >= 0).mean())
    old, new = (
        compute_core([compute_task_result(one.task, one.results, one.convention) for one in part])
        for part in (first, second)
    )
    n = sum(len(one.results) for one in first)
    p = min(1.0, 2 * max(float(beyond), 1 / BOOTSTRAP_RESAMPLES))
    return Difference("core", old.value, new.value, float(low), float(high), n, only_a, only_b, p)
