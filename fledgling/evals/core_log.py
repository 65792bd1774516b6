"""Logs of CORE: every prompt with the scores of its choices, from which the metric can be recomputed.

A log is JSON lines: one for each task that begins, then one for each item. A score is a function of the logged items,
so that it can be checked and replayed without a model (`replay_core_log`), and two models can be compared item by item
(core_compare.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fledgling.config import UserError
from fledgling.evals.core_results import (
    CoreSettings,
    CoreTaskResult,
    ItemResult,
    compute_task_result,
    is_correct,
    number_categories_of,
    number_passages_of,
)
from fledgling.evals.likelihood import ContinuationScore
from fledgling.record.jsonl import JsonlWriter, read_jsonl
from fledgling.tasks.core import CorePrompt, CoreTask
from fledgling.text.tokenizer import Tokenizer


class CoreLog:
    """Writes a log. `keys` are the keys of the tasks that the file already holds completely."""

    def __init__(self, path: Path) -> None:
        self.writer = JsonlWriter(path)
        tasks = read_core_log(path) if path.is_file() else []
        self.keys = {task.key for task in tasks if len(task.results) == task.n}

    def begin_task(self, task: CoreTask, key: str, settings: CoreSettings, n: int) -> None:
        """Starts a task of `n` items; earlier lines of the same task count no longer."""
        facts = {**asdict(task), "file": task.file.name, **asdict(settings)}
        self.writer.append({"begin": task.label, "key": key, "n": n, **facts})

    def write_item(
        self,
        task: CoreTask,
        prompt: CorePrompt,
        result: ItemResult,
        scores: Sequence[ContinuationScore],
        tokenizer: Tokenizer,
    ) -> None:
        """Writes one item: its text, the scores of its choices, the predicted text.

        Args:
            task: of the item.
            prompt: its text.
            result: the model's scores of the item.
            scores: of each choice, with the predicted tokens.
            tokenizer: decodes the predicted tokens.
        """
        text: dict[str, Any] = {"shots": prompt.examples, "choices": prompt.choices}
        if task.kind == "language_modeling":
            text["predicted"] = tokenizer.decode(scores[0].predicted)
        correct = is_correct(task.kind, result)
        self.writer.append({"task": task.label, **asdict(result), "correct": correct, **text})

    def close(self) -> None:
        """Closes the file."""
        self.writer.close()


@dataclass(frozen=True)
class LoggedTask:
    """One task of a log."""

    task: CoreTask
    key: str
    n: int
    convention: str
    results: tuple[ItemResult, ...] = ()
    texts: tuple[str, ...] = ()  # of each item, to check that two logs have the same items

    @property
    def correct_items(self) -> np.ndarray:
        """(items,) 1 where right, in evaluation order."""
        return np.array([is_correct(self.task.kind, result) for result in self.results], float)

    @property
    def passage_numbers(self) -> np.ndarray:
        """(items,) the number of each item's passage, from 0."""
        return number_passages_of(self.results)

    @property
    def category_numbers(self) -> np.ndarray:
        """(items,) the number of each item's category, from 0, where the score is a mean over categories."""
        return number_categories_of(self.task, self.results, self.convention)

    def compute_result(self) -> CoreTaskResult:
        """Returns the task's score, recomputed from its items."""
        return compute_task_result(self.task, self.results, self.convention)


def read_core_log(path: Path) -> list[LoggedTask]:
    """Returns the tasks of a log, the last run of each. Raises UserError with the line that is not from a log."""
    tasks: dict[str, LoggedTask] = {}
    results: dict[str, list[ItemResult]] = {}
    texts: dict[str, list[str]] = {}
    for number, line in enumerate(read_jsonl(path), start=1):
        try:
            if "begin" in line:
                label = line["begin"]
                facts = {key: line[key] for key in ("kind", "shots", "delimiter", "baseline", "categories")}
                tasks[label] = LoggedTask(
                    CoreTask(label, Path(line["file"]), **facts), line["key"], line["n"], line["convention"]
                )
                results[label], texts[label] = [], []
            else:
                facts = {key: line[key] for key in ("item", "category", "gold", "greedy", "cropped")}
                facts["passage"] = line.get("passage", -1)
                result = ItemResult(logprobs=tuple(line["logprobs"]), tokens=tuple(line["tokens"]), **facts)
                text = "".join(map("".join, line["choices"]))
                results[line["task"]].append(result)
                texts[line["task"]].append(text)
        except (KeyError, TypeError):
            raise UserError(f"{path}:{number}: not a line of an evaluation's log; expected what --log wrote") from None
    if not tasks:
        raise UserError(f"{path}: contains no logged evaluation; expected a file that --log wrote")
    return [replace(task, results=tuple(results[label]), texts=tuple(texts[label])) for label, task in tasks.items()]


def replay_core_log(path: Path) -> list[CoreTaskResult]:
    """Returns the results of a log, recomputed from its items."""
    return [task.compute_result() for task in read_core_log(path) if task.results]
