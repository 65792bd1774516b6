"""A stage's mixture as row sources with weights, and its batch and steps if the recipe leaves them open.

One pass means that no row is learned twice. The stage ends when, of all sources that have an end, the first has given
every row, where each gives rows in proportion to its share (`fledgling.plan.stage_length`). Sources are prepared
smallest first, and a large one only as far as the others allow: of a million conversations as many as the pass reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fledgling.config import ModelConfig, Recipe, RLConfig, StageConfig
from fledgling.corpora.prepared_data import Log
from fledgling.data.shards import TokenShard
from fledgling.data.stream import RowSource
from fledgling.plan.stage_length import SourceSize, count_steps, derive_rows, fixed_steps, require_end, row_weights
from fledgling.tasks import load_task
from fledgling.tasks.exam_names import exam_names
from fledgling.tasks.task import DEV, TEST
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.data_preparer import DataPreparer, MixtureParts, find_held_out_source, split_mixture
from fledgling.train.source_positions import Positions, SetPart, SourcePositions

# Conversations prepared beyond what the planned steps read, so that packing never wraps around; where a deadline raises
# the steps (`stage_horizon.MAX_GROWTH`) the last ones may read the first rows again.
SPARE_FACTOR = 1.1


@dataclass(frozen=True)
class StageRows:
    """The data of a stage."""

    sources: list[tuple[RowSource, float]]  # with their weights among the rows
    weights: dict[str, float]  # of the names of the mixture among the rows
    rows_per_step: int
    steps: int
    positions: SourcePositions
    validation: tuple[TokenShard, ...]  # held-out documents of the first document source


@dataclass(frozen=True)
class RowsRequest:
    """What the rows of a stage are asked for.

    Attributes:
        table: mixture, and what batch and steps are derived from.
        config: of the model.
        rows_per_step: rows that one optimizer step reads, over all ranks; None: as many as `examples_per_step` examples
            fill.
        positions: of the sources that earlier stages have read.
        weights: of the sources among the rows, as the checkpoint of a resumed stage has them: its texts may have
            changed since. None: by the mixture.
    """

    stage: str
    table: StageConfig
    config: ModelConfig
    rows_per_step: int | None = None
    positions: Positions = field(default_factory=dict)
    weights: Mapping[str, float] | None = None

    @property
    def context(self) -> int:
        """Inputs of a row."""
        return self.config.context

    def with_steps(self, rows_per_step: int) -> RowsRequest:
        """Returns the request with the steps of its table where that or the depth gives them, not the mixture."""
        steps = fixed_steps(self.stage, self.table, rows_per_step, self.config)
        return replace(self, table=replace(self.table, steps=steps))


def prepare_stage_rows(request: RowsRequest, preparer: DataPreparer, tokenizer: Tokenizer) -> StageRows:
    """Prepares and opens the data of a stage.

    Raises UserError if the steps are open and have no end, because every source is generated.
    """
    table, opener = request.table, _SourceOpener(request, preparer, tokenizer)
    parts, rows_per_step = opener.parts, request.rows_per_step
    documents, held_out = opener.open_documents()
    sizes = opener.measure_sizes(documents)
    weights = dict(request.weights or row_weights(table, sizes))
    if rows_per_step is None:
        rows_per_step = derive_rows(table, sizes)
        tokens = rows_per_step * request.context
        preparer.log(f"{request.stage}: {rows_per_step:,} rows a step, {tokens:,} tokens, from its examples")
    opener = replace(opener, request=request.with_steps(rows_per_step))
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    conversations, set_parts = opener.open_conversations(documents, shares, rows_per_step)
    lengths = [(shares[name], len(source)) for name, source in (documents | conversations).items()]
    steps = opener.count_steps(rows_per_step, lengths)
    sources = [(source, weights[name]) for name, source in documents.items()]
    if parts.tasks:
        weight = sum(weights[name] for name in parts.tasks)
        tokens = int(steps * rows_per_step * request.context * weight / sum(weights.values()) * SPARE_FACTOR) + 1
        sources.append((opener.open_tasks(tokens), weight))
    sources += [(conversations[name], weights[name]) for name in parts.conversations]
    indexed = enumerate([*parts.documents, *([""] if parts.tasks else []), *parts.conversations])
    sources, named = merge_equal_sources(sources, {index: name for index, name in indexed if name}, preparer.log)
    names = {index: name for index, name in named.items() if name not in set_parts}
    found = {index: set_parts[name] for index, name in named.items() if name in set_parts}
    positions = SourcePositions(request.positions, names, found)
    return StageRows(sources, weights, rows_per_step, steps, positions, held_out)


@dataclass(frozen=True)
class _SourceOpener:
    """Opens the sources of a stage's mixture as rows."""

    request: RowsRequest
    preparer: DataPreparer
    tokenizer: Tokenizer

    @property
    def parts(self) -> MixtureParts:
        """The mixture by kind of source."""
        return split_mixture(self.request.table.mixture)

    def open_documents(self) -> tuple[dict[str, RowSource], tuple[TokenShard, ...]]:
        """Returns the sources of documents by name, and the held-out documents of the first."""
        sources: dict[str, RowSource] = {}
        held_out: tuple[TokenShard, ...] = ()
        for name in self.parts.documents:
            corpus = self.preparer.documents.prepare_shards(name, self.tokenizer)
            held_out = held_out or corpus.held_out
            sources[name] = self._open(corpus.train, "crop")
        return sources, held_out

    def measure_sizes(self, documents: Mapping[str, RowSource]) -> dict[str, SourceSize]:
        """Returns the sizes of all sources where batch or weights follow from their examples; else none."""
        request = self.request
        needs_weights = request.table.mixture_unit == "examples" and not request.weights
        if request.rows_per_step is not None and not needs_weights:
            return {}
        sizes = {name: SourceSize(s.num_documents, len(s) / s.num_documents) for name, s in documents.items()}
        for name in (*self.parts.tasks, *self.parts.conversations):
            sizes[name] = self.preparer.measure_source(name, self.tokenizer, request.context)
        return sizes

    def open_conversations(
        self, documents: Mapping[str, RowSource], shares: Mapping[str, float], rows_per_step: int
    ) -> tuple[dict[str, RowSource], dict[str, SetPart]]:
        """Returns the sources of conversations by name, and the parts of large sets: as much as the others allow.

        shares: of the sources among the rows.
        """
        table = self.request.table
        lengths = [(shares[name], len(source)) for name, source in documents.items()]
        sources: dict[str, RowSource] = {}
        set_parts: dict[str, SetPart] = {}
        for name in sorted(self.parts.conversations, key=self.preparer.count_source_bytes):
            steps = count_steps(table.num_epochs, rows_per_step, lengths) if table.steps is None else table.steps
            rows = steps * shares[name] * rows_per_step
            tokens = None if steps == math.inf else math.ceil(rows * self.request.context * SPARE_FACTOR) + 1
            shard, part = self.preparer.conversation_shard(name, tokens, self.tokenizer, self.request.positions)
            sources[name] = self._open(shard, "whole", shuffled=part is None, breaks=part.breaks if part else ())
            if part:
                set_parts[name] = part
            lengths.append((shares[name], len(sources[name])))
        return sources, set_parts

    def open_tasks(self, tokens: int) -> RowSource:
        """Returns `tokens` tokens of the generated tasks, in the mixture's proportions."""
        shard = self.preparer.task_shard(self.request.stage, self.parts.tasks, tokens, self.tokenizer)
        return self._open(shard, "whole")

    def count_steps(self, rows_per_step: int, lengths: Iterable[tuple[float, float]]) -> int:
        """Returns the steps of the stage; lengths: (share among the rows, rows of one epoch) of sources that end."""
        stage, table = self.request.stage, self.request.table
        if table.steps is not None:
            return max(1, table.steps)
        steps = count_steps(table.num_epochs, rows_per_step, lengths)
        if steps == math.inf:
            raise require_end(stage, "mixture has", self.parts.tasks)
        rounded = max(1, math.floor(steps))
        epochs = "one epoch" if table.num_epochs in (None, 1.0) else f"{table.num_epochs:g} epochs"
        self.preparer.log(f"{stage}: {rounded:,} steps, {epochs} of its mixture")
        return rounded

    def _open(self, shards: Any, kind: Literal["crop", "whole"], **options: Any) -> RowSource:
        tokenizer = self.tokenizer
        return RowSource(
            shards,
            kind,
            context=self.request.context,
            seed=self.preparer.seed,
            bos=tokenizer.bos,
            turn_end=tokenizer.assistant_end,
            **options,
        )


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
        reads_held_out = stage == "rl" or (stage == "dpo" and not recipe.dpo.trains_head)
        documents = [*parts.documents, *([held_out] if held_out and reads_held_out else [])]
        preparer.require_sources(documents, [*parts.conversations, *practiced])
        for name in exam_names(config, recipe.sft.mixture) if not kept else ():
            load_task(name, recipe.run.data_dir).list_exams({TEST: 1, DEV: 1})
