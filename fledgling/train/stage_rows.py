"""A stage's mixture as row sources with weights, and the number of steps if the recipe leaves it open.

One pass means that no row is learned twice. The stage ends when, of all sources that have an end, the first has given
every row, where each gives rows in proportion to its weight:

    steps = floor(min over sources of rows(source) / (weight share of source x rows per step)), at least 1

Sources are prepared smallest first, and a large one only as far as the others allow: of a million conversations as many
as the pass reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fledgling.config import LoopConfig, Recipe, RLConfig, UserError
from fledgling.data.shards import TokenShard
from fledgling.data.stream import RowSource
from fledgling.tasks import PUBLIC_TASKS, SKILLS, load_task
from fledgling.tasks.task import TEST
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.positions import Positions, SourcePositions
from fledgling.train.prepare import DataPreparer, MixtureParts, split_mixture

SPARE_FACTOR = 1.1  # conversations prepared beyond what the steps read, so that packing never wraps around


@dataclass(frozen=True)
class StageRows:
    """The data of a stage."""

    sources: list[tuple[RowSource, float]]  # with weights
    steps: int
    positions: SourcePositions
    validation: tuple[TokenShard, ...]  # held-out documents of the first document source


def prepare_stage_rows(
    stage: str,
    mixture: dict[str, float],
    rows_per_step: int,
    steps: int | None,
    context: int,
    preparer: DataPreparer,
    tokenizer: Tokenizer,
    before: Positions | None = None,
) -> StageRows:
    """Prepares and opens the data of a stage.

    Args:
        before: the positions of the sources that earlier stages have read.
        rows_per_step: rows of `context` tokens that one optimizer step reads, over all ranks.
        steps: None means one pass. Raises UserError if that has no end, because every source is generated.
    """
    parts, total = split_mixture(mixture), sum(mixture.values())
    make_source = partial(
        RowSource, context=context, seed=preparer.seed, bos=tokenizer.bos, turn_end=tokenizer.assistant_end
    )
    max_steps = math.inf if steps is None else steps
    documents: list[tuple[RowSource, float]] = []
    conversations: dict[str, RowSource] = {}
    tasks: list[tuple[RowSource, float]] = []
    validation: tuple[TokenShard, ...] = ()
    parts_read: Positions = {}
    for name, weight in parts.documents.items():
        corpus = preparer.documents.prepare_shards(name, tokenizer)
        validation = validation or corpus.held_out
        documents.append((make_source(corpus.train, "crop"), weight))
        if steps is None:
            max_steps = min(max_steps, len(documents[-1][0]) / (weight / total * rows_per_step))
    for name in sorted(parts.conversations, key=preparer.count_source_bytes):
        per_step = parts.conversations[name] / total * rows_per_step
        tokens = None if max_steps == math.inf else math.ceil(max_steps * per_step * context * SPARE_FACTOR) + 1
        shard, part = preparer.conversation_shard(name, tokens, tokenizer, before)
        conversations[name], parts_read = make_source(shard, "whole"), parts_read | part
        if steps is None:
            max_steps = min(max_steps, len(conversations[name]) / per_step)
    if max_steps == math.inf:
        raise UserError(
            f"{stage}.steps is not set, and its mixture has no end ({', '.join(parts.tasks)} are generated): "
            f"set the number of optimizer steps, such as {stage}.steps=300"
        )
    stage_steps = max(1, math.floor(max_steps))
    if steps is None:
        preparer.log(f"{stage}: {stage_steps:,} steps, one pass over its mixture")
    if parts.tasks:
        weight = sum(parts.tasks.values())
        tokens = int(stage_steps * rows_per_step * context * weight / total * SPARE_FACTOR) + 1
        tasks.append((make_source(preparer.task_shard(stage, parts.tasks, tokens, tokenizer), "whole"), weight))
    in_recipe_order = [(conversations[name], weight) for name, weight in parts.conversations.items()]
    in_parts = {entry["source"] for entry in parts_read.values()}
    indexed = enumerate([*parts.documents, *["" for _ in tasks], *parts.conversations])
    names = {index: name for index, name in indexed if name and name not in in_parts}
    positions = SourcePositions(before or {}, names, parts_read)
    return StageRows(documents + tasks + in_recipe_order, stage_steps, positions, validation)


def exam_names(config: LoopConfig, default_mixture: dict[str, float]) -> list[str]:
    """Returns the tasks that a stage is evaluated on: those of its mixture, and those that RL practices.

    default_mixture: replaces an empty one; RL and DPO are evaluated on the tasks of SFT too.
    """
    practiced = config.tasks if isinstance(config, RLConfig) else {}
    learned = {**(config.mixture or default_mixture), **practiced}
    return [name for name in (*SKILLS, *PUBLIC_TASKS) if learned.get(name, 0) > 0]


def require_data(recipe: Recipe, stages: Iterable[str]) -> None:
    """Raises UserError, before any work, if a source or an exam of the stages is missing; says how to get it."""
    preparer = DataPreparer(recipe, Path(recipe.run.out))
    for stage in stages:
        config = recipe.stage_config(stage)
        parts = split_mixture(config.mixture) if config.mixture else MixtureParts({}, {}, {})
        tasks = config.tasks if isinstance(config, RLConfig) else {}
        practiced = [name for name, weight in tasks.items() if weight > 0]
        preparer.require_sources(parts.documents, [*parts.conversations, *practiced])
        for name in exam_names(config, recipe.sft.mixture):
            load_task(name, recipe.run.data_dir).list_exams({TEST: 1})
