"""A stage's mixture as row sources with weights, and its batch and steps if the recipe leaves them open.

One pass means that no row is learned twice. The stage ends when, of all sources that have an end, the first has given
every row, where each gives rows in proportion to its share (`fledgling.plan.stage_length`). Sources are prepared
smallest first, and a large one only as far as the others allow: of a million conversations as many as the pass reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fledgling.config import Recipe, RLConfig, StageConfig
from fledgling.corpora.prepared_data import Log
from fledgling.data.shards import TokenShard
from fledgling.data.stream import RowSource
from fledgling.plan.stage_length import SourceSize, count_steps, derive_rows, require_end, row_weights
from fledgling.tasks import load_task
from fledgling.tasks.exam_names import exam_names
from fledgling.tasks.task import TEST
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.data_preparer import DataPreparer, MixtureParts, find_held_out_source, split_mixture
from fledgling.train.objectives import OBJECTIVES
from fledgling.train.source_positions import Positions, SetPart, SourcePositions

SPARE_FACTOR = 1.1  # conversations prepared beyond what the steps read, so that packing never wraps around


@dataclass(frozen=True)
class StageRows:
    """The data of a stage."""

    sources: list[tuple[RowSource, float]]  # with their weights among the rows
    weights: dict[str, float]  # of the names of the mixture among the rows
    rows_per_step: int
    steps: int
    positions: SourcePositions
    validation: tuple[TokenShard, ...]  # held-out documents of the first document source


def prepare_stage_rows(
    stage: str,
    table: StageConfig,
    rows_per_step: int | None,
    context: int,
    preparer: DataPreparer,
    tokenizer: Tokenizer,
    before: Positions | None = None,
    saved_weights: Mapping[str, float] | None = None,
) -> StageRows:
    """Prepares and opens the data of a stage.

    Args:
        table: mixture, steps (None: `num_epochs` over the mixture), and what a batch is derived from.
        rows_per_step: rows of `context` tokens that one optimizer step reads, over all ranks; None: as many as
            `examples_per_step` examples fill.
        before: the positions of the sources that earlier stages have read.
        saved_weights: of the sources among the rows, as the checkpoint of a resumed stage has them: its texts may have
            changed since.

    Raises UserError if the steps are open and have no end, because every source is generated.
    """
    parts = split_mixture(table.mixture)
    make_source = partial(
        RowSource, context=context, seed=preparer.seed, bos=tokenizer.bos, turn_end=tokenizer.assistant_end
    )
    documents: dict[str, RowSource] = {}
    validation: tuple[TokenShard, ...] = ()
    for name in parts.documents:
        corpus = preparer.documents.prepare_shards(name, tokenizer)
        validation = validation or corpus.held_out
        documents[name] = make_source(corpus.train, "crop")
    sizes: dict[str, SourceSize] = {}
    if rows_per_step is None or (table.mixture_unit == "examples" and not saved_weights):
        sizes = {name: SourceSize(s.num_documents, len(s) / s.num_documents) for name, s in documents.items()}
        for name in (*parts.tasks, *parts.conversations):
            sizes[name] = preparer.measure_source(name, tokenizer, context)
    weights = dict(saved_weights or row_weights(table, sizes))
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    if rows_per_step is None:
        rows_per_step = derive_rows(table, sizes)
        preparer.log(f"{stage}: {rows_per_step:,} rows a step, {rows_per_step * context:,} tokens, from its examples")

    max_steps = math.inf if table.steps is None else table.steps
    lengths = [(shares[name], len(source)) for name, source in documents.items()]
    conversations: dict[str, RowSource] = {}
    set_parts: dict[str, SetPart] = {}
    for name in sorted(parts.conversations, key=preparer.count_source_bytes):
        steps = max_steps if table.steps is not None else count_steps(table.num_epochs, rows_per_step, lengths)
        rows = steps * shares[name] * rows_per_step
        tokens = None if steps == math.inf else math.ceil(rows * context * SPARE_FACTOR) + 1
        shard, part = preparer.conversation_shard(name, tokens, tokenizer, before)
        conversations[name] = make_source(shard, "whole", shuffled=part is None, breaks=part.breaks if part else ())
        if part:
            set_parts[name] = part
        lengths.append((shares[name], len(conversations[name])))
    if table.steps is None:
        max_steps = count_steps(table.num_epochs, rows_per_step, lengths)
    if max_steps == math.inf:
        raise require_end(stage, "mixture has", parts.tasks)
    stage_steps = max(1, math.floor(max_steps))
    if table.steps is None:
        epochs = "one epoch" if table.num_epochs in (None, 1.0) else f"{table.num_epochs:g} epochs"
        preparer.log(f"{stage}: {stage_steps:,} steps, {epochs} of its mixture")
    sources = [(source, weights[name]) for name, source in documents.items()]
    if parts.tasks:
        weight = sum(weights[name] for name in parts.tasks)
        tokens = int(stage_steps * rows_per_step * context * weight / sum(weights.values()) * SPARE_FACTOR) + 1
        sources.append((make_source(preparer.task_shard(stage, parts.tasks, tokens, tokenizer), "whole"), weight))
    sources += [(conversations[name], weights[name]) for name in parts.conversations]
    indexed = enumerate([*parts.documents, *([""] if parts.tasks else []), *parts.conversations])
    named = {index: name for index, name in indexed if name}
    sources, named = merge_equal_sources(sources, named, preparer.log)
    names = {index: name for index, name in named.items() if name not in set_parts}
    found = {index: set_parts[name] for index, name in named.items() if name in set_parts}
    positions = SourcePositions(before or {}, names, found)
    return StageRows(sources, weights, rows_per_step, stage_steps, positions, validation)


def merge_equal_sources(
    sources: Sequence[tuple[RowSource, float]], names: Mapping[int, str], log: Log
) -> tuple[list[tuple[RowSource, float]], dict[int, str]]:
    """Returns sources and their names by index, where those that hold the same rows are one with the sum of weights.

    Two names of one text would otherwise each read its rows from the first on: every row twice.
    """
    merged: dict[str, int] = {}
    kept: list[tuple[RowSource, float]] = []
    kept_names: dict[int, str] = {}
    for index, (source, weight) in enumerate(sources):
        first = merged.setdefault(source.key, len(kept))
        if first < len(kept):
            log(f"{names.get(index)} holds the same rows as {kept_names.get(first)}: they are read as one source")
            kept[first] = (kept[first][0], kept[first][1] + weight)
            continue
        kept.append((source, weight))
        if index in names:
            kept_names[first] = names[index]
    return kept, kept_names


def require_data(recipe: Recipe, stages: Iterable[str], kept: Mapping[str, Any] | None = None) -> None:
    """Raises UserError, before any work, if a source or an exam of the stages is missing; says how to get it.

    kept: the prepared data that a resumed stage keeps (`resume_check.read_prepared_data`), whose texts and exams need
        not be here.
    """
    preparer = DataPreparer(recipe, Path(recipe.run.out))
    preparer.documents.prepared.pinned = dict(kept or {})
    held_out = find_held_out_source(recipe.pretrain)
    for stage in stages:
        config = recipe.stage_config(stage)
        parts = split_mixture(config.mixture) if config.mixture else MixtureParts({}, {}, {})
        tasks = config.tasks if isinstance(config, RLConfig) else {}
        practiced = [name for name, weight in tasks.items() if weight > 0]
        reads_held_out = stage == "rl" or (stage == "dpo" and not OBJECTIVES[recipe.dpo.objective].trains_head)
        documents = [*parts.documents, *([held_out] if held_out and reads_held_out else [])]
        preparer.require_sources(documents, [*parts.conversations, *practiced])
        for name in exam_names(config, recipe.sft.mixture) if not kept else ():
            load_task(name, recipe.run.data_dir).list_exams({TEST: 1})
