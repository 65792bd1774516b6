"""The 22 tasks of CORE as text: the bundle's files read strictly, and the prompts that a published evaluator makes.

CORE is DCLM's measure of base models (Li et al. 2024, arXiv 2406.11794). The one idea: what a number is comparable to
is decided here, in text, before any model: which examples stand before an item, and what separates them. Two
conventions are known, by the evaluators whose numbers are published: `nanochat` (the default) and `foundry`
(llm-foundry, with which DCLM's own table was made). docs/evaluation.md lists where they differ.

It tokenizes nothing and scores nothing: that is fledgling/evals/core.py. No torch.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fledgling.config import UserError, did_you_mean

TASK_KINDS = ("multiple_choice", "schema", "language_modeling")
CONVENTIONS = ("nanochat", "foundry")
BUNDLE_FOLDERS = ("core", "eval_bundle", ".")  # under the data root
COLUMNS = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}
ORDER_SEED = 1337  # of the order that a cut to some items a task is taken in
SHOT_SEED = 1234


@dataclass(frozen=True)
class CoreTask:
    """One task as core.yaml describes it; baseline: what guessing scores, as a share."""

    label: str
    file: Path
    kind: str
    shots: int
    delimiter: str  # between a context and its continuation
    baseline: float
    categories: bool  # items have one, over which the foundry convention averages


@dataclass(frozen=True)
class CoreItem:
    """One question: several continuations of one context, or (schema) one continuation of several contexts."""

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int  # which choice is right; 0 where there is only one
    category: str = ""

    @property
    def choices(self) -> list[tuple[str, str]]:
        """(context, continuation) of every choice."""
        return [(context, continuation) for context in self.contexts for continuation in self.continuations]


@dataclass(frozen=True)
class CorePrompt:
    """One item's text. What is common to its choices, and (rest of the context, continuation) of each."""

    examples: str  # the examples, up to where the item itself begins
    choices: tuple[tuple[str, str], ...]

    @property
    def texts(self) -> list[str]:
        """The whole text of each choice."""
        return [self.examples + context + continuation for context, continuation in self.choices]


# ---- files ---------------------------------------------------------------------------------------


def find_core_bundle(root: Path) -> Path | None:
    """The folder with core.yaml under a data root, or None."""
    return next((root / folder for folder in BUNDLE_FOLDERS if (root / folder / "core.yaml").is_file()), None)


def read_core_tasks(root: Path, names: Sequence[str] = ()) -> list[CoreTask]:
    """The tasks of the bundle under `root`, all 22 or those named. Raises UserError where something is missing."""
    folder = find_core_bundle(root)
    if folder is None:
        raise UserError(
            f"no CORE bundle under {root}: looked for core.yaml in it, in core/ and in eval_bundle/; "
            f"`fledgling data fetch core` brings it there, or unpack eval_bundle.zip there yourself"
        )
    import yaml

    try:
        listed = yaml.safe_load((folder / "core.yaml").read_text(encoding="utf-8"))["icl_tasks"]
        tasks = [_parse_task(entry, folder, _read_baselines(folder)) for entry in listed]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        reason = " ".join(str(problem).split())[:120]
        raise UserError(f"{folder / 'core.yaml'}: cannot be read ({reason}); unpack the bundle again") from None
    known = [task.label for task in tasks]
    for name in names:
        if name not in known:
            raise UserError(f'no CORE task "{name}"{did_you_mean(name, known) or ": there are " + ", ".join(known)}')
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
    """Task -> what guessing scores, as a share."""
    path = folder / "eval_meta_data.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["Eval Task"]: 0.01 * float(row["Random baseline"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise UserError(
            f'{path}: expected the columns "Eval Task" and "Random baseline" ({problem}); unpack the bundle again'
        ) from None


def read_core_items(task: CoreTask) -> list[CoreItem]:
    """A task's items in the order of its file. Raises UserError naming file and line of what is wrong."""
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
    """One line; `place` is file:line."""
    try:
        row = json.loads(line)
    except ValueError:
        raise UserError(f"{location}: not whole JSON; the file is cut short or damaged, unpack it again") from None
    columns = COLUMNS[task.kind]
    for column, kind in columns.items():
        value = row.get(column) if isinstance(row, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{location}: expected {column} ({kind.__name__}) of a {task.kind} task, found {found}")
    contexts = row.get("context_options") or [row["query" if task.kind == "multiple_choice" else "context"]]
    continuations = row["choices"] if task.kind == "multiple_choice" else [row["continuation"]]
    texts = [*contexts, *continuations]
    if not all(isinstance(text, str) for text in texts) or not all(continuations):
        raise UserError(f"{location}: contexts and choices must be text, and no choice empty")
    gold = row.get("gold", 0)
    if not 0 <= gold < len(contexts) * len(continuations):
        raise UserError(f"{location}: gold is {gold}, but there are {len(contexts) * len(continuations)} choices")
    return CoreItem(tuple(contexts), tuple(continuations), gold, str(row.get("category", "")))


# ---- prompts -------------------------------------------------------------------------------------


def select_items(items: Sequence[CoreItem], max_items: int | None, convention: str) -> list[CoreItem]:
    """The items in the order they are asked in, cut to `most`. Shuffled, but for foundry's whole tasks."""
    ordered = list(items)
    if convention == "nanochat" or max_items is not None:
        random.Random(ORDER_SEED).shuffle(ordered)
    return ordered[:max_items]


def build_prompts(task: CoreTask, items: Sequence[CoreItem], convention: str) -> Iterator[CorePrompt]:
    """The prompt of every item. `items` are those chosen: examples are drawn among them."""
    return _nanochat_prompts(task, items) if convention == "nanochat" else _foundry_prompts(task, items)


def _format_example(task: CoreTask, item: CoreItem) -> str:
    """An item as an example: the right choice."""
    context, continuation = item.choices[item.gold]
    return f"{context}{task.delimiter}{continuation}"


def _nanochat_prompts(task: CoreTask, items: Sequence[CoreItem]) -> Iterator[CorePrompt]:
    """Examples of item i drawn by Random(1234 + i) from all others, an empty line after each.

    Contexts of language modelling tasks are stripped, those of other tasks are not.
    """
    if task.kind == "language_modeling":
        items = [replace(item, contexts=(item.contexts[0].strip(),)) for item in items]
    for index, item in enumerate(items):
        count = min(task.shots, len(items) - 1)
        drawn = random.Random(SHOT_SEED + index).sample(range(len(items) - 1), count) if count else []
        shots = [items[place + (place >= index)] for place in drawn]  # the places of all items but this one
        yield CorePrompt(
            "".join(f"{_format_example(task, shot)}\n\n" for shot in shots),
            tuple((context + task.delimiter, continuation) for context, continuation in item.choices),
        )


def _foundry_prompts(task: CoreTask, items: Sequence[CoreItem]) -> Iterator[CorePrompt]:
    """Examples of all items drawn by one Random(1234) in turn, a line feed between; all texts of an item stripped.

    The choices of a multiple-choice item are not stripped, nor the contexts of a schema.
    """
    items = [_strip_texts(task, item) for item in items]
    generator = random.Random(SHOT_SEED)
    for index, item in enumerate(items):
        shots = [
            _format_example(task, items[place])
            for place in sample_foundry_shots(len(items), task.shots, index, generator)
        ]
        between = "\n" if shots else ""
        if task.kind == "schema":
            after = task.delimiter.rstrip() if shots else ""
            contexts = [between + context + after for context in item.contexts]
        else:
            contexts = [(between + item.contexts[0] + task.delimiter).rstrip()]
        yield CorePrompt("\n".join(shots), tuple((c, t) for c in contexts for t in item.continuations))


def _strip_texts(task: CoreTask, item: CoreItem) -> CoreItem:
    if task.kind == "schema":
        return replace(item, continuations=(item.continuations[0].strip(),))
    if task.kind == "multiple_choice":
        return replace(item, contexts=(item.contexts[0].strip(),))
    return replace(item, contexts=(item.contexts[0].strip(),), continuations=(item.continuations[0].strip(),))


def sample_foundry_shots(size: int, shots: int, index: int, generator: random.Random) -> list[int]:
    """Places of `shots` examples among `size` items without item `index`, as llm-foundry draws them.

    It draws among all items and replaces the item itself, and keeps the places in a set, whose order they then have.
    """
    shots = min(size - 1, shots)
    if not shots:
        return []
    drawn = set(generator.sample(range(size), shots))
    if index in drawn:
        drawn.remove(index)
        if len(drawn) < size - 1:
            place = generator.choice(range(size))
            while place in drawn or place == index:
                place = generator.choice(range(size))
            drawn.add(place)
    return list(drawn)
