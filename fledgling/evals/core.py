"""CORE: 22 tasks answered by likelihood, each accuracy centred on guessing, and their mean.

The one idea: a choice is as good as the mean log-probability of its tokens, and a language-modelling item is right when
every token of its continuation is the most likely one there. Which tokens those are is found as the published
evaluators find them (see `rows`); the text comes from fledgling/tasks/core.py, log-probabilities from likelihood.py.

A finished task is a line in a file, keyed by the checkpoint, the task's file and the settings: it is not run again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fledgling.evals.likelihood import (
    ContinuationRow,
    ContinuationScore,
    Scorer,
    common_prefix_length,
    common_suffix_length,
)
from fledgling.evals.measurement import Measurement, wilson_interval
from fledgling.record.jsonl import JsonlWriter, read_jsonl
from fledgling.tasks.core import CoreItem, CorePrompt, CoreTask, build_prompts, read_core_items, select_items
from fledgling.text.tokenizer import Tokenizer, bos_prefix

if TYPE_CHECKING:
    from fledgling.evals.core_log import CoreLog

SCORING_VERSION = 1  # of how scores come about: another number, and finished tasks are run again
ITEMS_PER_BATCH = 512  # rendered and sorted by length at a time, times the number of ranks


@dataclass(frozen=True)
class CoreSettings:
    """What a score depends on beside model and files. most: items a task, None for all."""

    max_per_task: int | None = None
    convention: str = "nanochat"


@dataclass(frozen=True)
class ItemResult:
    """What a model made of one item; enough to compute the metric again."""

    item: int  # its place in the order that was asked
    category: str
    gold: int
    logprobs: tuple[float, ...]  # of each choice, in nats
    tokens: tuple[int, ...]  # of each choice
    greedy: bool  # language modelling: every token was the most likely one
    cropped: int  # tokens cut off on the left, of the choice that lost most


@dataclass(frozen=True)
class CoreTaskResult:
    """One task's score. tokens: of all choices, each read from its beginning; fed: what was computed."""

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
        """(value, low, high) on the scale where guessing is 0 and perfection 1."""
        return tuple((x - self.baseline) / (1 - self.baseline) for x in (self.accuracy, self.low, self.high))


def run_core(
    scorer: Scorer,
    tasks: Sequence[CoreTask],
    settings: CoreSettings,
    model_key: str = "",
    finished: Path | None = None,
    log: CoreLog | None = None,
    progress: Callable[[str, float, float], None] | None = None,
) -> list[CoreTaskResult]:
    """Score every task; those that stand in `finished` under the same key are taken from there.

    progress(label, done, all) counts roughly in tokens. All ranks must call it; the first one writes.
    """
    main = scorer.world.is_main
    known = {line["key"]: line for line in read_jsonl(finished)} if finished else {}
    known = scorer.world.all_gather_object(known)[0]
    logged = scorer.world.all_gather_object(log.keys if log else None)[0]
    waiting = []
    for task in tasks:
        items = select_items(read_core_items(task), settings.max_per_task, settings.convention)
        key = task_key(task, settings, model_key)
        ready = key in known and (logged is None or key in logged)
        waiting.append((task, items, key, 0.0 if ready else estimate_tokens(task, items, scorer.engine.context)))
    whole, done, results = sum(entry[-1] for entry in waiting), 0.0, []
    lines = JsonlWriter(finished) if finished and main else None
    for task, items, key, weight in waiting:
        if not weight:
            results.append(CoreTaskResult(**known[key]["result"]))
            continue

        def told(share: float, task: CoreTask = task, before: float = done, weight: float = weight) -> None:
            if progress:
                progress(task.label, before + weight * share, whole)

        if log and main:
            log.begin_task(task, key, settings, len(items))
        result = run_core_task(scorer, task, items, settings.convention, told, log if main else None)
        results.append(result)
        if lines:
            lines.append({"key": key, "result": asdict(result)})
        done += weight
    if lines:
        lines.close()
    return results


def run_core_task(
    scorer: Scorer,
    task: CoreTask,
    items: Sequence[CoreItem],
    convention: str,
    progress: Callable[[float], None] = lambda share: None,
    log: CoreLog | None = None,
) -> CoreTaskResult:
    """Score the items of one task; progress(share of them)."""
    began, fed, whole = time.perf_counter(), scorer.stats.computed_tokens, scorer.stats.choice_tokens
    answers: list[ItemResult] = []
    for batch in prefetch(tokenize_items(scorer, task, items, convention)):
        scores = scorer.score([rows for _, _, rows in batch])
        for (item, prompt, _), found in zip(batch, scores, strict=True):
            answers.append(make_item_result(len(answers), item, found))
            if log:
                log.write_item(task, prompt, answers[-1], found, scorer.engine.tokenizer)
        progress(len(answers) / len(items))
    fed = int(scorer.world.all_reduce(scorer.stats.computed_tokens - fed))
    seconds = time.perf_counter() - began
    return compute_task_result(task, answers, convention, seconds, scorer.stats.choice_tokens - whole, fed)


def compute_task_result(
    task: CoreTask, answers: Sequence[ItemResult], convention: str, seconds: float = 0.0, tokens: int = 0, fed: int = 0
) -> CoreTaskResult:
    """The task's score from what the model said; the foundry convention averages over categories."""
    n, marks = len(answers), [is_correct(task.kind, one) for one in answers]
    right = sum(marks)
    low, high = wilson_interval(right, n)
    accuracy = right / n
    if task.categories and convention == "foundry":
        groups: dict[str, list[bool]] = {}
        for one, mark in zip(answers, marks, strict=True):
            groups.setdefault(one.category, []).append(mark)
        shares = [sum(group) / len(group) for group in groups.values()]
        shift = sum(shares) / len(shares) - accuracy
        low, high, accuracy = low + shift, high + shift, accuracy + shift
    cropped = sum(one.cropped > 0 for one in answers)
    return CoreTaskResult(
        task.label, task.kind, task.shots, n, right, accuracy, low, high, task.baseline, cropped, tokens, fed, seconds
    )


def is_correct(kind: str, one: ItemResult) -> bool:
    """Whether an answer is right. Of equally likely choices the first counts, as `list.index` of `min` finds it."""
    if kind == "language_modeling":
        return one.greedy
    means = [-nats / count if count else float("nan") for nats, count in zip(one.logprobs, one.tokens, strict=True)]
    return means.index(min(means)) == one.gold


def compute_core(results: Sequence[CoreTaskResult]) -> Measurement:
    """The mean centred accuracy. Interval: of independent tasks, each as wide as its Wilson interval."""
    values = [result.centered for result in results]
    mean = sum(value for value, _, _ in values) / len(values)
    half = sqrt(sum(((high - low) / 2) ** 2 for _, low, high in values)) / len(values)
    return Measurement("core", mean, mean - half, mean + half, sum(result.n for result in results))


def list_core_measurements(results: Sequence[CoreTaskResult], include_mean: bool) -> list[Measurement]:
    """CORE (where all its tasks were run) and the accuracy of each task, named core_LABEL."""
    parts = [Measurement(f"core_{r.label}", r.accuracy, r.low, r.high, r.n, chance=r.baseline) for r in results]
    return [compute_core(results), *parts] if include_mean else parts


# ---- text to rows --------------------------------------------------------------------------------


def tokenize_items(
    scorer: Scorer, task: CoreTask, items: Sequence[CoreItem], convention: str
) -> Iterator[list[tuple[CoreItem, CorePrompt, list[ContinuationRow]]]]:
    """The items with their prompts and rows, some at a time."""
    tokenizer = scorer.engine.tokenizer
    pairs = zip_prompts(task, items, convention)
    while batch := list(islice(pairs, ITEMS_PER_BATCH * scorer.world.size)):
        rowed = tokenize_prompts(tokenizer, task.kind, [prompt for _, prompt in batch], convention)
        yield [(item, prompt, made) for (item, prompt), made in zip(batch, rowed, strict=True)]


def zip_prompts(task: CoreTask, items: Sequence[CoreItem], convention: str) -> Iterator[tuple[CoreItem, CorePrompt]]:
    """Items with their prompts; where categories are tasks of their own, the examples are of the same category."""
    groups: dict[str, list[CoreItem]] = {}
    for item in items:
        groups.setdefault(item.category if task.categories and convention == "foundry" else "", []).append(item)
    for group in groups.values():
        yield from zip(group, build_prompts(task, group, convention), strict=True)


def prefetch(batches: Iterator) -> Iterator:
    """The same batches; the next one is made in a thread while the caller works on the last."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = thread.submit(next, batches, None)
            yield batch


def tokenize_prompts(
    tokenizer: Tokenizer, kind: str, made: Sequence[CorePrompt], convention: str
) -> list[list[ContinuationRow]]:
    """Each prompt's choices as tokens, and where in them the continuation begins.

    nanochat: a whole text is tokenized at once; what is asked for is what follows the tokens that all choices begin
    with (multiple choice), the tokens that all end with (schema), or what follows the context (language modelling). A
    token that reaches over the end of the context counts to the continuation.
    foundry: examples, context and continuation are tokenized apart, with a space before the continuation where " a" is
    one token; what is asked for is the continuation.
    """
    return (
        _tokenize_whole_texts(tokenizer, kind, made) if convention == "nanochat" else _tokenize_pieces(tokenizer, made)
    )


def _tokenize_whole_texts(tokenizer: Tokenizer, kind: str, made: Sequence[CorePrompt]) -> list[list[ContinuationRow]]:
    encoded = iter(tokenizer.encode_batch([text for prompt in made for text in prompt.texts]))
    first, lengths, found = bos_prefix(tokenizer), tokenizer.byte_lengths(), []
    for prompt in made:
        tokens = [np.array([*first, *next(encoded)], np.int32) for _ in prompt.choices]
        if kind == "multiple_choice":
            starts = [common_prefix_length(tokens)] * len(tokens)
        elif kind == "schema":
            suffix = common_suffix_length(tokens)
            starts = [len(row) - suffix for row in tokens]
        else:
            context = (prompt.examples + prompt.choices[0][0]).strip().encode("utf-8", "replace")
            ends = lengths[tokens[0][len(first) :]].cumsum()
            starts = [len(first) + int(np.searchsorted(ends, len(context), side="right"))]
        found.append([ContinuationRow(row, start) for row, start in zip(tokens, starts, strict=True)])
    return found


def _tokenize_pieces(tokenizer: Tokenizer, made: Sequence[CorePrompt]) -> list[list[ContinuationRow]]:
    space = " " if len(tokenizer.encode(" a")) == 1 else ""
    first = bos_prefix(tokenizer)
    texts: dict[str, None] = {}
    answers = [[c if c.startswith(" ") else space + c for _, c in prompt.choices] for prompt in made]
    for prompt, continuations in zip(made, answers, strict=True):
        texts |= dict.fromkeys([prompt.examples, *continuations, *(context for context, _ in prompt.choices)])
    pieces = dict(zip(texts, tokenizer.encode_batch(list(texts)), strict=True))
    found = []
    for prompt, continuations in zip(made, answers, strict=True):
        shots = [*first, *pieces[prompt.examples]]
        befores = [[*shots, *pieces[context]] for context, _ in prompt.choices]
        pairs = zip(befores, (pieces[continuation] for continuation in continuations), strict=True)
        found.append([ContinuationRow(np.array([*before, *after], np.int32), len(before)) for before, after in pairs])
    return found


def make_item_result(item_number: int, item: CoreItem, scores: Sequence[ContinuationScore]) -> ItemResult:
    """What the scores of an item's choices say."""
    return ItemResult(
        item_number,
        item.category,
        item.gold,
        tuple(score.logprob for score in scores),
        tuple(score.num_tokens for score in scores),
        scores[0].is_greedy,
        max(score.num_cropped for score in scores),
    )


# ---- keys, cost ----------------------------------------------------------------------------------


def task_key(task: CoreTask, settings: CoreSettings, model_key: str) -> str:
    """What a finished task is found again by: the model, the task's file and description, the settings."""
    facts = [
        SCORING_VERSION,
        model_key,
        task.label,
        task.kind,
        task.shots,
        task.delimiter,
        task.baseline,
        asdict(settings),
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(task.file.read_bytes())
    return digest.hexdigest()[:16]


def estimate_tokens(task: CoreTask, items: Sequence[CoreItem], context: int) -> float:
    """Roughly the tokens to compute, four bytes each: what progress is measured by."""
    size = sum(len(text) for item in items for text in (*item.contexts, *item.continuations)) / len(items) / 4
    return len(items) * min(float(context), (task.shots + 1) * size)
