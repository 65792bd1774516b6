"""A mixture's names become row sources with weights, and where its length is left open, a number of steps.

One idea: one pass means that no row is learned from twice. The stage ends when, of all sources that have an end, the
first one has given every row, where each gives rows in proportion to its weight:

    steps = floor(min over sources of rows(source) / (share(source) x rows a step)), at least 1

so SFT over 8,000 problems at a share of .37 takes what the other sets give beside them, and of a million conversations
reads as many as belong there. Sources are written smallest first, and a large one only as far as the others allow.

Not here: how rows are packed and dealt (`fledgling.data`), what a name means (`prepare.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fledgling.config import Recipe, UserError
from fledgling.data.shards import TokenShard
from fledgling.data.stream import RowSource
from fledgling.tasks import PUBLIC_TASKS, SKILLS, load_task
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.prepare import DataPreparer, MixtureParts, split_mixture

SPARE_FACTOR = 1.1  # conversations prepared beyond what the steps read, so that packing never wraps around


@dataclass(frozen=True)
class StageRows:
    """What a stage reads: row sources with weights, for so many steps; and held-out documents of the first of them."""

    sources: list[tuple[RowSource, float]]
    steps: int
    validation: tuple[TokenShard, ...]


def prepare_stage_rows(
    stage: str,
    mixture: dict[str, float],
    rows_per_step: int,
    steps: int | None,
    preparer: DataPreparer,
    tokenizer: Tokenizer,
) -> StageRows:
    """The mixture for a stage whose steps read `rows` rows; `steps` None asks for one pass.

    Raises UserError when that has no end: every source is generated.
    """
    recipe, mixed, total = preparer.recipe, split_mixture(mixture), sum(mixture.values())
    context = recipe.model.context
    source = partial(RowSource, context=context, seed=recipe.seed, bos=tokenizer.bos, turn_end=tokenizer.assistant_end)
    most = math.inf if steps is None else steps
    documents, tasks, conversations, validation = [], [], {}, ()
    for name, weight in mixed.documents.items():
        corpus = preparer.documents.prepare_shards(name, tokenizer)
        validation = validation or corpus.held_out
        documents.append((source(corpus.train, "crop"), weight))
        if steps is None:
            most = min(most, len(documents[-1][0]) / (weight / total * rows_per_step))
    for name in sorted(mixed.conversations, key=lambda name: _bytes(preparer, name)):
        per_step = mixed.conversations[name] / total * rows_per_step
        needed = None if most == math.inf else math.ceil(most * per_step * context * SPARE_FACTOR) + 1
        conversations[name] = source(preparer.conversation_shard(name, needed, tokenizer), "whole")
        if steps is None:
            most = min(most, len(conversations[name]) / per_step)
    if most == math.inf:
        raise UserError(
            f"{stage}.steps is not set, and its mixture has no end ({', '.join(mixed.tasks)} are generated): "
            f"set the number of optimizer steps, such as {stage}.steps=300"
        )
    length = max(1, math.floor(most))
    if steps is None:
        preparer.log(f"{stage}: {length:,} steps, one pass over its mixture")
    if mixed.tasks:
        weight = sum(mixed.tasks.values())
        tokens = int(length * rows_per_step * context * weight / total * SPARE_FACTOR) + 1
        tasks.append((source(preparer.task_shard(stage, mixed.tasks, tokens, tokenizer), "whole"), weight))
    read = [(conversations[name], mixed.conversations[name]) for name in mixed.conversations]  # in the recipe's order
    return StageRows(documents + tasks + read, length, validation)


def _bytes(preparer: DataPreparer, name: str) -> int:
    return sum(file.stat().st_size for file in preparer.conversation_source(name).files())


def exam_names(recipe: Recipe, stage: str) -> list[str]:
    """The tasks that a stage is examined in: those it learns from, by demonstration or by practice.

    RL has no mixture of its own: it is examined in all of SFT's too.
    """
    table = recipe.stage_config(stage)
    learned = {**(table.mixture or recipe.sft.mixture), **getattr(table, "tasks", {})}
    return [name for name in (*SKILLS, *PUBLIC_TASKS) if learned.get(name, 0) > 0]


def require_data(recipe: Recipe, stages: Iterable[str]) -> None:
    """Raise UserError, before anything starts, when a source or an exam of one of the stages is not there.

    The message says how to get it.
    """
    preparer = DataPreparer(recipe, Path(recipe.run.out))
    for stage in stages:
        table = recipe.stage_config(stage)
        mixed = split_mixture(table.mixture) if table.mixture else MixtureParts({}, {}, {})
        practised = [name for name, weight in getattr(table, "tasks", {}).items() if weight > 0]
        preparer.require_sources(mixed.documents, [*mixed.conversations, *practised])
        for name in exam_names(recipe, stage):
            load_task(name, recipe.run.data_dir).list_exam_questions(1)
