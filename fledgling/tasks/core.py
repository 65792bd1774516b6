"""The 22 tasks of CORE as text: a strict reader of the bundle's files, and the prompts of two published evaluators.

CORE is DCLM's metric of base models (Li et al. 2024, arXiv 2406.11794). Which figures a score is comparable to is
decided here, in text: which examples precede an item, and what separates them. Two conventions are implemented, of the
evaluators with published figures: `nanochat` (the default) and `foundry` (llm-foundry, which produced DCLM's own
table). docs/evaluation.md lists the differences. Tokenizing and scoring is in fledgling/evals/core.py. No torch.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from fledgling.config import UserError, did_you_mean

TASK_KINDS = ("multiple_choice", "schema", "language_modeling")
BUNDLE_FOLDERS = ("core", "eval_bundle", ".")  # under the data root
COLUMNS: dict[str, dict[str, type]] = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}
ORDER_SEED = 1337  # of the order in which a task is cut to a number of items
SHOT_SEED = 1234
MIN_PASSAGE_CHARACTERS = 200  # that the contexts of two items share; instructions of a task are shorter


@dataclass(frozen=True)
class CoreTask:
    """One task as core.yaml describes it."""

    label: str
    file: Path
    kind: str
    shots: int
    delimiter: str  # between a context and its continuation
    baseline: float  # the score of guessing, in [0, 1]
    categories: bool  # items have a category, over which the foundry convention averages


@dataclass(frozen=True)
class CoreItem:
    """One question: several continuations of one context, or (schema) one continuation of several contexts."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int  # index of the right choice; 0 where there is only one
    category: str = ""

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(context, continuation) of every choice."""
        return [(context, continuation) for context in self.contexts for continuation in self.continuations]


@dataclass(frozen=True)
class CorePrompt:
    """The text of one item: what its choices share, and (rest of the context, continuation) of each."""

    examples: str  # the few-shot examples, up to the item itself
    choices: tuple[tuple[str, str], ...]

    @property
    def texts(self) -> list[str]:
        """The complete text of each choice."""
        return [self.examples + context + continuation for context, continuation in self.choices]


# ---- files ---------------------------------------------------------------------------------------


def find_core_bundle(root: Path) -> Path | None:
    """Returns the folder with core.yaml under a data root, or None."""
    return next((root / folder for folder in BUNDLE_FOLDERS if (root / folder / "core.yaml").is_file()), None)


def read_core_tasks(root: Path, names: Sequence[str] = ()) -> list[CoreTask]:
    """Returns the tasks of the bundle under `root`, all 22 or those named. Raises UserError for a missing one."""
    folder = find_core_bundle(root)
    if folder is None:
        raise UserError(
            f"no CORE bundle under {root}: looked for core.yaml in it, in core/ and in eval_bundle/; "
            f"`fledgling data fetch core` brings it there, or unpack eval_bundle.zip there yourself"
        )
    import yaml

    try:
        entries = yaml.safe_load((folder / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
        tasks = [_parse_task(entry, folder, _read_baselines(folder)) for entry in entries]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        reason = " ".join(str(problem).split())[:120]
        raise UserError(f"{folder / 'core.yaml'}: cannot be read ({reason}); unpack the bundle again") from None
    labels = [task.label for task in tasks]
    for name in names:
        if name not in labels:
            raise UserError(f'no CORE task "{name}"{did_you_mean(name, labels) or ": there are " + ", ".join(labels)}')
    return [task for task in tasks if not names or task.label in names]


def _parse_task(entry: dict[str, Any], folder: Path, baselines: dict[str, float]) -> CoreTask:
    label, kind = entry["label"], entry["icl_task_type"]
    if kind not in TASK_KINDS:
        raise ValueError(f"{label}: icl_task_type {kind} is not one of {', '.join(TASK_KINDS)}")
    if label not in baselines:
        raise ValueError(f"{label} has no random baseline in eval_meta_data.csv")
    return CoreTask(
        label=label,
        file=folder / "eval_data" / entry["dataset_uri"],
        kind=kind,
        shots=int(entry["num_fewshot"][0]),
        delimiter=entry.get("continuation_delimiter", " "),
        baseline=baselines[label],
        categories=bool(entry.get("has_categories", False)),
    )


def _read_baselines(folder: Path) -> dict[str, float]:
    """Returns the score of guessing, in [0, 1], by task."""
    path = folder / "eval_meta_data.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["Eval Task"]: 0.01 * float(row["Random baseline"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise UserError(
            f'{path}: expected the columns "Eval Task" and "Random baseline" ({problem}); unpack the bundle again'
        ) from None


def read_core_items(task: CoreTask) -> list[CoreItem]:
    """Returns a task's items in file order. Raises UserError with file and line of an error."""
    try:
        lines = task.file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8"
        raise UserError(f"{task.file}: cannot be read ({reason}); unpack the CORE bundle again") from None
    if lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{task.file}: is empty; unpack the CORE bundle again")
    return [_parse_item(task, line, f"{task.file}:{number}") for number, line in enumerate(lines, start=1)]


def _parse_item(task: CoreTask, line: str, location: str) -> CoreItem:
    """Returns the item on one line; `location` is file:line."""
    try:
        row = json.loads(line)
    except ValueError:
        raise UserError(f"{location}: not whole JSON; the file is cut short or corrupt, unpack it again") from None
    for column, kind in COLUMNS[task.kind].items():
        value = row.get(column) if isinstance(row, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            columns = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{location}: expected {column} ({kind.__name__}) of a {task.kind} task, found {columns}")
    contexts = row.get("context_options") or [row["query" if task.kind == "multiple_choice" else "context"]]
    continuations = row["choices"] if task.kind == "multiple_choice" else [row["continuation"]]
    texts = [*contexts, *continuations]
    if not all(isinstance(text, str) for text in texts) or not all(continuations):
        raise UserError(f"{location}: contexts and choices must be text, and no choice empty")
    gold, num_choices = row.get("gold", 0), len(contexts) * len(continuations)
    if not 0 <= gold < num_choices:
        raise UserError(f"{location}: gold is {gold}, but there are {num_choices} choices")
    return CoreItem(tuple(contexts), tuple(continuations), gold, str(row.get("category", "")))


# ---- prompts -------------------------------------------------------------------------------------


def select_items(items: Sequence[CoreItem], max_items: int | None, convention: str) -> list[CoreItem]:
    """Returns the first `max_items` items in evaluation order: shuffled, except for a complete task of foundry."""
    ordered = list(items)
    if convention == "nanochat" or max_items is not None:
        random.Random(ORDER_SEED).shuffle(ordered)
    return ordered[:max_items]


def number_passages(items: Sequence[CoreItem]) -> list[int]:
    """Returns the number of each item's passage; items with the same one are not independent.

    Two items share a passage if their contexts are equal, or begin with the same `MIN_PASSAGE_CHARACTERS` characters
    and half of the shorter one. CoQA's 7,983 items are on 499 stories, SQuAD's 10,570 on 2,109 paragraphs.
    """
    order = sorted(range(len(items)), key=lambda index: items[index].contexts[0])
    numbers, previous = [0] * len(items), ""
    for position, index in enumerate(order):
        context = items[index].contexts[0]
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(previous, context, strict=False)))
        is_long = shared >= max(MIN_PASSAGE_CHARACTERS, min(len(previous), len(context)) / 2)
        is_same = position > 0 and (context == previous or is_long)
        numbers[index] = numbers[order[position - 1]] if is_same else position
        previous = context
    return numbers


def build_prompts(task: CoreTask, items: Sequence[CoreItem], convention: str) -> Iterator[CorePrompt]:
    """Yields the prompt of every selected item; the few-shot examples are drawn from `items`."""
    return _nanochat_prompts(task, items) if convention == "nanochat" else _foundry_prompts(task, items)


def _format_example(task: CoreTask, item: CoreItem) -> str:
    """Returns an item with its right choice, as a few-shot example."""
    context, continuation = item.choices[item.gold]
    return f"{context}{task.delimiter}{continuation}"


def _nanochat_prompts(task: CoreTask, items: Sequence[CoreItem]) -> Iterator[CorePrompt]:
    """Draws the examples of item i by Random(1234 + i) from all other items; an empty line follows each.

    Contexts of language modeling tasks are stripped, those of other tasks are not.
    """
    if task.kind == "language_modeling":
        items = [replace(item, contexts=(item.contexts[0].strip(),)) for item in items]
    for index, item in enumerate(items):
        count = min(task.shots, len(items) - 1)
        positions = random.Random(SHOT_SEED + index).sample(range(len(items) - 1), count) if count else []
        shots = [items[position + (position >= index)] for position in positions]  # skips item `index`
        yield CorePrompt(
            "".join(f"{_format_example(task, shot)}\n\n" for shot in shots),
            tuple((context + task.delimiter, continuation) for context, continuation in item.choices),
        )


def _foundry_prompts(task: CoreTask, items: Sequence[CoreItem]) -> Iterator[CorePrompt]:
    """Draws the examples of all items in turn by one Random(1234), with a line feed between; texts are stripped.

    The choices of a multiple-choice item and the contexts of a schema are not stripped.
    """
    items = [_strip_texts(task, item) for item in items]
    rng = random.Random(SHOT_SEED)
    for index, item in enumerate(items):
        positions = sample_foundry_shots(len(items), task.shots, index, rng)
        shots = [_format_example(task, items[position]) for position in positions]
        separator = "\n" if shots else ""
        if task.kind == "schema":
            after = task.delimiter.rstrip() if shots else ""
            contexts = [separator + context + after for context in item.contexts]
        else:
            contexts = [(separator + item.contexts[0] + task.delimiter).rstrip()]
        yield CorePrompt("\n".join(shots), tuple((c, t) for c in contexts for t in item.continuations))


def _strip_texts(task: CoreTask, item: CoreItem) -> CoreItem:
    if task.kind == "schema":
        return replace(item, continuations=(item.continuations[0].strip(),))
    if task.kind == "multiple_choice":
        return replace(item, contexts=(item.contexts[0].strip(),))
    return replace(item, contexts=(item.contexts[0].strip(),), continuations=(item.continuations[0].strip(),))


def sample_foundry_shots(size: int, shots: int, index: int, rng: random.Random) -> list[int]:
    """Returns the positions of `shots` examples among `size` items without item `index`, as llm-foundry draws them.

    It draws among all items, replaces the item itself, and keeps the positions in a set, whose order they then have.
    """
    shots = min(size - 1, shots)
    if not shots:
        return []
    positions = set(rng.sample(range(size), shots))
    if index in positions:
        positions.remove(index)
        if len(positions) < size - 1:
            position = rng.choice(range(size))
            while position in positions or position == index:
                position = rng.choice(range(size))
            positions.add(position)
    return list(positions)
