"""Derives the batch and the steps of a stage where its table leaves them open: `train` and `plan` call the same code.

A supervised stage reads rows of `context` tokens, each of one source, in proportion to the sources' shares.

    share      of a source among the rows: its weight, in the unit "examples" times the rows that an example fills
    rows       of a step: those that `examples_per_step` examples fill on average, the nearest power of two,
               so that it does not depend on the number of ranks and that 1, 2, 4, 8 ranks divide it
    steps      passes x min over the sources that end of rows(source) / (share x rows of a step), rounded down

Reinforcement learning counts prompts instead: steps = rounds x epochs x minibatches, and a pass ends when the first of
the tasks that end has given every prompt once. The published depth-20 run took 32 conversations a step in fine-tuning
and 16 prompts a round in RL.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fledgling.config import DPOConfig, LoopConfig, ModelConfig, Recipe, RLConfig, StageConfig, UserError
from fledgling.plan.horizon import compute_horizon

SFT_EXAMPLES_PER_STEP = 32


@dataclass(frozen=True)
class SourceSize:
    """The size of one pass over a source of a mixture.

    examples: its conversations or documents; math.inf where they are generated. rows: of the context that an example
    fills on average, in (0, 1] for conversations. is_assumed: whether that is not measured.
    """

    examples: float
    rows: float = 1.0
    is_assumed: bool = False


def open_batch(name: str, table: StageConfig) -> bool:
    """Returns whether the batch of stage `name` follows from its examples, not from `batch_tokens` or the depth.

    Raises UserError if the table gives both.
    """
    if table.batch_tokens is not None and table.examples_per_step is not None:
        raise UserError(
            f"{name}.batch_tokens={table.batch_tokens} and {name}.examples_per_step={table.examples_per_step} both set "
            "the batch: leave one of them out"
        )
    return table.batch_tokens is None and (name == "sft" or table.examples_per_step is not None)


def fixed_rows(name: str, table: StageConfig, config: ModelConfig) -> int | None:
    """Returns the rows of a step over all ranks from `batch_tokens` or the depth; None where the examples decide."""
    if open_batch(name, table):
        return None
    return compute_horizon(config, table.batch_tokens, stage=name).batch_tokens // config.context


def row_weights(table: StageConfig, sizes: Mapping[str, SourceSize]) -> dict[str, float]:
    """Returns the weight of each source of the mixture among the rows of the stage, relative to each other.

    sizes: needed for the unit "examples" only.
    """
    used = {name: table.mixture[name] for name in table.used_sources}
    if table.mixture_unit == "examples":
        return {name: weight * sizes[name].rows for name, weight in used.items()}
    return used


def derive_rows(table: StageConfig, sizes: Mapping[str, SourceSize]) -> int:
    """Returns the rows of a step that hold `examples_per_step` examples on average, as a power of two."""
    weights = row_weights(table, sizes)
    examples_per_row = sum(weight / sizes[name].rows for name, weight in weights.items()) / sum(weights.values())
    rows = (table.examples_per_step or SFT_EXAMPLES_PER_STEP) / examples_per_row
    return 2 ** max(0, round(math.log2(rows)))


def count_steps(num_epochs: float | None, rows: int, sources: Iterable[tuple[float, float]]) -> float:
    """Returns the steps, not rounded, until the first source has given every row `num_epochs` times (None: once).

    Args:
        rows: of a step.
        sources: (share among the rows, rows of one epoch) of each source; math.inf for one without end.
    """
    ends = [length / (share * rows) for share, length in sources]
    return (num_epochs or 1.0) * min(ends, default=math.inf)


def require_end(name: str, kind: str, endless: Iterable[str]) -> UserError:
    """Returns the error of a stage whose steps are open and whose sources have no end."""
    return UserError(
        f"{name}.steps is not set, and its {kind} no end ({', '.join(endless)} are generated): "
        f"set the number of optimizer steps, such as {name}.steps=300"
    )


def derive_rl_steps(table: RLConfig, prompts: Mapping[str, float]) -> int:
    """Returns the optimizer steps of RL: the recipe's, or those of `num_epochs` epochs of its tasks' prompts.

    prompts: of one epoch by task, math.inf where they are generated. Raises UserError if no task ends.
    """
    if table.steps is not None:
        return table.steps
    used = {name: weight for name, weight in table.tasks.items() if weight > 0}
    total = sum(used.values())
    count = min((prompts[name] / (weight / total) for name, weight in used.items()), default=math.inf)
    if count == math.inf:
        raise require_end("rl", "tasks have", used)
    rounds = max(1, math.floor((table.num_epochs or 1.0) * count / table.prompts_per_round))
    return rounds * table.epochs * table.minibatches


def derive_dpo_steps(table: DPOConfig, pairs: int) -> int:
    """Returns the optimizer steps of DPO: the recipe's, or those of `num_epochs` epochs of `pairs` pairs."""
    return table.steps or max(1, int((table.num_epochs or 1.0) * pairs) // table.batch_size)


def find_rows(
    name: str, table: StageConfig, config: ModelConfig, sizes: Mapping[str, SourceSize]
) -> tuple[int, bool] | None:
    """Returns (rows of a step over all ranks, whether an assumed size decides); None if a size decides that is unknown.

    sizes: of the sources of the mixture that are known.
    """
    rows = fixed_rows(name, table, config)
    if rows is not None:
        return rows, False
    needed = table.used_sources
    if not needed or any(source not in sizes for source in needed):
        return None
    return derive_rows(table, sizes), any(sizes[source].is_assumed for source in needed)


def fixed_steps(name: str, table: StageConfig, rows: int, config: ModelConfig) -> int | None:
    """Returns the steps of `rows` rows that the table gives, or in pretraining the depth; None if the data decide."""
    if table.steps is not None or name != "pretrain" or table.num_epochs is not None:
        return table.steps
    return compute_horizon(config, rows * config.context).steps


def explain_unknown_length(name: str, table: LoopConfig) -> str:
    """Returns one line: the length of a stage is known once its data are read, and which settings give it before."""
    needed = [f"{name}.steps"] if table.steps is None else []
    if isinstance(table, StageConfig) and open_batch(name, table):
        instead = " instead of examples_per_step" if table.examples_per_step else ""
        needed.append(f"{name}.batch_tokens{instead}")
    return f"the length of {name} is not known before its data are read; set {' and '.join(needed)}"


def derive_length(
    recipe: Recipe, name: str, config: ModelConfig, sizes: Mapping[str, SourceSize]
) -> tuple[int, int, bool] | None:
    """Returns (rows of a step, steps, whether an assumed size decides) of a supervised stage; None if it is unknown.

    sizes: of the sources of its mixture that are known; a step count that depends on others is unknown. Raises
    UserError if every source is known to have no end.
    """
    table: StageConfig = getattr(recipe, name)
    found = find_rows(name, table, config, sizes)
    if found is None:
        return None
    rows, assumed = found
    if (steps := fixed_steps(name, table, rows, config)) is not None:
        return rows, steps, assumed
    needed = table.used_sources
    known = {source: sizes[source] for source in needed if source in sizes}
    if not needed or (table.mixture_unit == "examples" and len(known) < len(needed)):
        return None
    weights = row_weights(table, sizes)
    total = sum(weights.values())
    ends = [(weights[source] / total, size.examples * size.rows) for source, size in known.items()]
    derived = count_steps(table.num_epochs, rows, ends)
    if derived == math.inf:
        if len(known) < len(needed):
            return None
        raise require_end(name, "mixture has", needed)
    return rows, max(1, math.floor(derived)), assumed or any(size.is_assumed for size in known.values())
