"""CORE: 22 tasks answered by likelihood. Turns prompts into tokens, scores them and saves every finished task.

Which tokens of a choice are scored follows the published evaluators (see `tokenize_prompts`). The text comes from
fledgling/tasks/core.py, log-probabilities from likelihood.py, the metric from core_results.py. A finished task is a
line in a file, keyed by the checkpoint, the task's file and the settings; it is not run again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np

from fledgling.config import UserError
from fledgling.evals.core_log import CoreLog
from fledgling.evals.core_results import CoreSettings, CoreTaskResult, ItemResult, compute_task_result
from fledgling.evals.likelihood import (
    ContinuationRow,
    ContinuationScore,
    Scorer,
    common_prefix_length,
    common_suffix_length,
)
from fledgling.record.jsonl import JsonlWriter, read_jsonl
from fledgling.tasks.core import (
    CoreItem,
    CorePrompt,
    CoreTask,
    build_prompts,
    number_passages,
    read_core_items,
    select_items,
)
from fledgling.text.tokenizer import Tokenizer, bos_prefix

SCORING_VERSION = 2  # of the scoring method: with another number, finished tasks are run again
ITEMS_PER_BATCH = 512  # tokenized and sorted by length at a time, times the number of ranks

TokenizedItem = tuple[CoreItem, CorePrompt, list[ContinuationRow]]


def run_core(
    scorer: Scorer,
    tasks: Sequence[CoreTask],
    settings: CoreSettings,
    model_key: str = "",
    finished: Path | None = None,
    log: CoreLog | None = None,
    progress: Callable[[str, float, float], None] | None = None,
) -> list[CoreTaskResult]:
    """Returns the score of every task; those that `finished` has under the same key are read from there.

    All ranks must call it; the main rank writes.

    Args:
        scorer: of the model.
        tasks: to evaluate, in order.
        settings: items per task and the convention of prompts.
        model_key: identifies the model in `finished`.
        finished: a file of finished tasks, read and appended to; None: none.
        log: receives every item; None: no log.
        progress: called with (label, done, total), approximately in tokens.
    """
    is_main = scorer.world.is_main
    known = {line["key"]: line for line in read_jsonl(finished)} if finished else {}
    known = scorer.world.all_gather_object(known)[0]
    logged_keys = scorer.world.all_gather_object(log.keys if log else None)[0]
    queue = []
    for task in tasks:
        items = select_items(read_core_items(task), settings.max_per_task, settings.convention)
        key = task_key(task, settings, model_key)
        is_finished = key in known and (logged_keys is None or key in logged_keys)
        queue.append((task, items, key, 0.0 if is_finished else estimate_tokens(task, items, scorer.engine.context)))
    total, done, results = sum(entry[-1] for entry in queue), 0.0, []
    writer = JsonlWriter(finished) if finished and is_main else None
    for task, items, key, weight in queue:
        if not weight:
            results.append(CoreTaskResult.from_json(known[key]["result"]))
            continue

        def report_share(share: float, task: CoreTask = task, before: float = done, weight: float = weight) -> None:
            if progress:
                progress(task.label, before + weight * share, total)

        if log and is_main:
            log.begin_task(task, key, settings, len(items))
        result = run_core_task(scorer, task, items, settings.convention, report_share, log if is_main else None)
        results.append(result)
        if writer:
            writer.append({"key": key, "result": asdict(result)})
        done += weight
    if writer:
        writer.close()
    return results


def run_core_task(
    scorer: Scorer,
    task: CoreTask,
    items: Sequence[CoreItem],
    convention: str,
    progress: Callable[[float], None] = lambda share: None,
    log: CoreLog | None = None,
) -> CoreTaskResult:
    """Returns the score of one task over `items`.

    Args:
        scorer: of the model.
        items: of the task, those that are scored.
        convention: of prompts, one of the published evaluators'.
        progress: called with the finished fraction in [0, 1].
        log: receives every item; None: no log.
    """
    started, before = time.perf_counter(), replace(scorer.stats)
    passages = dict(zip(map(id, items), number_passages(items), strict=True))
    results: list[ItemResult] = []
    for batch in prefetch(tokenize_items(scorer, task, items, convention)):
        batch_scores = scorer.score([rows for _, _, rows in batch])
        for (item, prompt, _), scores in zip(batch, batch_scores, strict=True):
            results.append(make_item_result(len(results), item, scores, passages[id(item)]))
            if log:
                log.write_item(task, prompt, results[-1], scores, scorer.engine.tokenizer)
        progress(len(results) / len(items))
    computed = int(scorer.world.all_reduce(scorer.stats.computed_tokens - before.computed_tokens))
    tokens = scorer.stats.choice_tokens - before.choice_tokens
    return compute_task_result(task, results, convention, time.perf_counter() - started, tokens, computed)


# ---- text to rows --------------------------------------------------------------------------------


def tokenize_items(
    scorer: Scorer, task: CoreTask, items: Sequence[CoreItem], convention: str
) -> Iterator[list[TokenizedItem]]:
    """Yields the items with their prompts and rows, in batches."""
    tokenizer = scorer.engine.tokenizer
    pairs = zip_prompts(task, items, convention)
    while batch := list(islice(pairs, ITEMS_PER_BATCH * scorer.world.size)):
        rows = tokenize_prompts(tokenizer, task.kind, [prompt for _, prompt in batch], convention)
        yield [(item, prompt, item_rows) for (item, prompt), item_rows in zip(batch, rows, strict=True)]


def zip_prompts(task: CoreTask, items: Sequence[CoreItem], convention: str) -> Iterator[tuple[CoreItem, CorePrompt]]:
    """Yields items with their prompts; where categories are separate tasks, examples have the item's category."""
    groups: dict[str, list[CoreItem]] = {}
    for item in items:
        groups.setdefault(item.category if task.categories and convention == "foundry" else "", []).append(item)
    for group in groups.values():
        yield from zip(group, build_prompts(task, group, convention), strict=True)


def prefetch(batches: Iterator[list[TokenizedItem]]) -> Iterator[list[TokenizedItem]]:
    """Yields the same batches; a thread makes the next one while the caller works on the current one."""
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = thread.submit(next, batches, None)
            yield batch


def tokenize_prompts(
    tokenizer: Tokenizer, kind: str, prompts: Sequence[CorePrompt], convention: str
) -> list[list[ContinuationRow]]:
    """Returns the rows of each prompt's choices: their tokens, and where the scored continuation starts.

    nanochat: a complete text is tokenized at once. Scored are the tokens after those that all choices begin with
    (multiple choice), the tokens that all choices end with (schema), or the tokens after the context (language
    modeling). A token that extends over the end of the context belongs to the continuation. Where this leaves a choice
    without a scored token (one choice is the beginning of another, or the choices end with different tokens), the last
    token of that choice is scored, and in multiple choice all choices are scored from the same place: a mean over no
    token would decide the item by the order of its choices.

    foundry: examples, context and continuation are tokenized separately, with a space before the continuation where
    " a" is one token. Scored is the continuation.
    """
    if convention == "nanochat":
        return _tokenize_whole_texts(tokenizer, kind, prompts)
    return _tokenize_pieces(tokenizer, prompts)


def _tokenize_whole_texts(
    tokenizer: Tokenizer, kind: str, prompts: Sequence[CorePrompt]
) -> list[list[ContinuationRow]]:
    encoded = iter(tokenizer.encode_batch([text for prompt in prompts for text in prompt.texts]))
    bos, byte_lengths, rows = bos_prefix(tokenizer), tokenizer.byte_lengths(), []
    for prompt in prompts:
        tokens = [np.array([*bos, *next(encoded)], np.int32) for _ in prompt.choices]
        if kind == "multiple_choice":
            starts = [min(common_prefix_length(tokens), *(len(choice) - 1 for choice in tokens))] * len(tokens)
        elif kind == "schema":
            suffix = common_suffix_length(tokens)
            starts = [min(len(choice) - suffix, len(choice) - 1) for choice in tokens]
        else:
            context = (prompt.examples + prompt.choices[0][0]).strip().encode("utf-8", "replace")
            ends = byte_lengths[tokens[0][len(bos) :]].cumsum()
            end = len(bos) + int(np.searchsorted(ends, len(context), side="right"))
            starts = [min(end, len(tokens[0]) - 1)]
        rows.append([_make_row(choice, start) for choice, start in zip(tokens, starts, strict=True)])
    return rows


def _tokenize_pieces(tokenizer: Tokenizer, prompts: Sequence[CorePrompt]) -> list[list[ContinuationRow]]:
    space = " " if len(tokenizer.encode(" a")) == 1 else ""
    bos = bos_prefix(tokenizer)
    texts: dict[str, None] = {}
    continuations = [[c if c.startswith(" ") else space + c for _, c in prompt.choices] for prompt in prompts]
    for prompt, choices in zip(prompts, continuations, strict=True):
        texts |= dict.fromkeys([prompt.examples, *choices, *(context for context, _ in prompt.choices)])
    pieces = dict(zip(texts, tokenizer.encode_batch(list(texts)), strict=True))
    rows = []
    for prompt, choices in zip(prompts, continuations, strict=True):
        examples = [*bos, *pieces[prompt.examples]]
        contexts = [[*examples, *pieces[context]] for context, _ in prompt.choices]
        pairs = zip(contexts, (pieces[choice] for choice in choices), strict=True)
        rows.append([_make_row(np.array([*before, *after], np.int32), len(before)) for before, after in pairs])
    return rows


def _make_row(tokens: np.ndarray, start: int) -> ContinuationRow:
    """Returns a row whose first scored token follows another: without bos, a choice's first token cannot be scored.

    Raises UserError for a choice of one token that nothing precedes.
    """
    if len(tokens) < 2:
        raise UserError(
            "a choice is one token and nothing precedes it, so it has no probability; expected a context, or a "
            "tokenizer that begins a text with bos"
        )
    return ContinuationRow(tokens, max(1, start))


def make_item_result(index: int, item: CoreItem, scores: Sequence[ContinuationScore], passage: int = -1) -> ItemResult:
    """Returns the result of an item from the scores of its choices."""
    return ItemResult(
        index,
        item.category,
        item.gold,
        tuple(score.logprob for score in scores),
        tuple(score.num_tokens for score in scores),
        scores[0].is_greedy,
        max(score.num_cropped for score in scores),
        passage,
    )


# ---- keys, cost ----------------------------------------------------------------------------------


def task_key(task: CoreTask, settings: CoreSettings, model_key: str) -> str:
    """Returns the key of a finished task: a hash of the model, the task's file and description, and the settings."""
    description = [task.label, task.kind, task.shots, task.delimiter, task.baseline]
    facts = [SCORING_VERSION, model_key, *description, asdict(settings)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(task.file.read_bytes())
    return digest.hexdigest()[:16]


def estimate_tokens(task: CoreTask, items: Sequence[CoreItem], context: int) -> float:
    """Returns the approximate number of tokens to compute, at four bytes each: the unit of progress."""
    size = sum(len(text) for item in items for text in (*item.contexts, *item.continuations)) / len(items) / 4
    return len(items) * min(float(context), (task.shots + 1) * size)
