"""Sizes of the sources that a recipe's open steps and batches follow from, counted from the files that are present.

The count of examples is exact; their tokens are estimated from characters, because a plan has no tokenizer. Training
measures with the run's own (`DataPreparer.measure_source`) and derives steps with the same functions.
"""

from __future__ import annotations

import math
from pathlib import Path

from fledgling.config import Recipe, RLConfig, StageConfig, UserError
from fledgling.files import list_row_blocks, split_columns
from fledgling.plan.plan import CHARACTERS_PER_TOKEN
from fledgling.plan.stage_length import SourceSize, open_batch
from fledgling.tasks import is_file_source, is_generated_source, load_source, load_task
from fledgling.tasks.epoch_reader import sample_conversations

SAMPLED_EXAMPLES = 64
TURN_TOKENS = 2  # special tokens around a message


def list_needed_sources(recipe: Recipe) -> list[str]:
    """Returns the sources that an open batch or open steps of the recipe's stages depend on."""
    needed: list[str] = []
    for stage in recipe.stages:
        table = recipe.stage_config(stage)
        if isinstance(table, RLConfig):
            names = table.tasks if table.steps is None else {}
        elif isinstance(table, StageConfig):
            is_open = open_batch(stage, table) or table.mixture_unit == "examples"
            has_budget = stage == "pretrain" and table.num_epochs is None
            names = table.mixture if is_open or (table.steps is None and not has_budget) else {}
        else:
            names = {}
        needed += [name for name, weight in names.items() if weight > 0]
    return list(dict.fromkeys(needed))


def count_generated_shares(recipe: Recipe) -> dict[str, float]:
    """Returns the share of the rows of each text stage that are generated conversations: skills, environments."""
    shares = {}
    for name in recipe.stages:
        table = recipe.stage_config(name)
        if isinstance(table, StageConfig) and (total := sum(table.mixture.values())):
            generated = sum(weight for source, weight in table.mixture.items() if is_generated_source(source))
            shares[name] = generated / total
    return shares


def count_source_sizes(recipe: Recipe) -> dict[str, SourceSize]:
    """Returns the sizes of the sources that a plan of the recipe needs and whose files are present."""
    context, found = recipe.resolve_model().context, {}
    for name in list_needed_sources(recipe):
        if not is_generated_source(name) and not is_file_source(name):
            continue  # documents: how many tokens they have is known once they are tokens
        try:
            source = load_task(name) if is_generated_source(name) else load_source(name, recipe.run.data_dir)
            count = len(source)
            sample = sample_conversations(source, recipe.seed, SAMPLED_EXAMPLES)
        except UserError:
            continue  # missing, or with many bad rows: training says so
        rows = [min(1.0, _estimate_tokens(example) / context) for example in sample]
        found[name] = SourceSize(count or math.inf, sum(rows) / len(rows))
    pairs = recipe.dpo.pairs
    if "dpo" in recipe.stages and recipe.dpo.steps is None and pairs:
        path = Path(split_columns(pairs)[0])
        if path.is_file():
            found[pairs] = SourceSize(sum(block.row_count for block in list_row_blocks(path)))
    return found


def _estimate_tokens(example: dict) -> float:
    total = 1.0
    for message in example["messages"]:
        content = message["content"]
        parts = [content] if isinstance(content, str) else [part["text"] for part in content]
        total += sum(map(len, parts)) / CHARACTERS_PER_TOKEN + TURN_TOKENS * len(parts)
    return total
