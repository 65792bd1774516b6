"""Splits the rows of a step over ranks and micro-batches: `train` and `plan` call the same code.

Micro-batch k of a step goes to rank k modulo the number of ranks, and every rank makes as many passes as the one with
the most. So R rows in micro-batches of m on N ranks cost ceil(ceil(R / m) / N) passes of m rows: `choose_split` takes
the m that costs least, the largest of several. Where N does not divide R, some of the slots are empty.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fledgling.config import ModelConfig, StageConfig, UserError
from fledgling.plan.memory import estimate_peak_memory, fits_memory, memory_slack
from fledgling.plan.optimizer_state import find_fitting_state
from fledgling.plan.stage_length import open_batch
from fledgling.plan.training_step import TrainingStep
from fledgling.record.jsonl import format_bytes

MAX_MICRO_BATCH_ROWS = 64  # of an automatically chosen forward/backward
MAX_MICRO_BATCH_TOKENS = {"cpu": 8192}  # a larger micro-batch is not faster on a CPU


def count_passes(rows: int, size: int, ranks: int) -> int:
    """Returns the forward/backward passes of a rank for `rows` rows of all ranks in micro-batches of `size`."""
    return math.ceil(math.ceil(rows / size) / ranks)


def require_row_each(name: str, table: StageConfig, rows: int, ranks: int) -> None:
    """Raises UserError if a step that a recipe or a depth has fixed has fewer rows than ranks.

    A step that holds some number of examples stays as it is on more ranks, of which some then have no row.
    """
    if rows < ranks and not open_batch(name, table):
        raise UserError(
            f"{name}: a step has {rows} rows, so {ranks - rows} of {ranks} ranks have none: use fewer ranks, or raise "
            f"{name}.batch_tokens"
        )


def empty_share(rows: int, step: TrainingStep) -> float:
    """Returns the share of a step's row slots, of all ranks, that hold none of its `rows` rows."""
    return max(0.0, 1 - rows / (step.rows * step.micro_batches * step.ranks))


def choose_split(
    config: ModelConfig, rows: int, available: int, step: TrainingStep, pinned: int | None = None
) -> TrainingStep:
    """Returns `step` with the rows of a micro-batch and the passes of a rank.

    Args:
        rows: of the whole step, over all of `step.ranks` ranks.
        available: bytes of one rank.
        pinned: rows of a micro-batch that the recipe asks for, whether they fit or not; taken up to a rank's share.

    Raises:
        UserError: if not even one row fits.
    """
    share = -(-rows // step.ranks)
    if pinned is not None:
        size = min(pinned, share)
        return replace(step, rows=size, micro_batches=count_passes(rows, size, step.ranks))
    if rows % step.ranks == 0:
        size = choose_micro_batch_size(config, share, available, step)
        return replace(step, rows=size, micro_batches=share // size)
    sizes = range(min(share, largest_micro_batch(step)), 0, -1)
    splits = [replace(step, rows=size, micro_batches=count_passes(rows, size, step.ranks)) for size in sizes]
    for split in sorted(splits, key=lambda split: split.rows * split.micro_batches):  # stable: the largest comes first
        if fits_memory(config, split, available):
            return split
    raise UserError(explain_memory_shortage(config, splits[-1], available))


def largest_micro_batch(step: TrainingStep) -> int:
    """Returns the most rows of one forward/backward that are chosen automatically, however large the memory."""
    return min(MAX_MICRO_BATCH_ROWS, max(1, MAX_MICRO_BATCH_TOKENS.get(step.device, 1 << 62) // step.context))


def choose_micro_batch_size(config: ModelConfig, rows: int, memory: int, step: TrainingStep) -> int:
    """Returns the most rows of one forward/backward that divide a rank's `rows` and fit into `memory` bytes.

    `plan` proposes it and `train` uses it. At most MAX_MICRO_BATCH_ROWS, and no more tokens than increase the device's
    speed. Raises UserError if not even one row fits.
    """
    for size in range(min(rows, largest_micro_batch(step)), 0, -1):
        if rows % size == 0 and fits_memory(config, replace(step, rows=size, micro_batches=rows // size), memory):
            return size
    raise UserError(explain_memory_shortage(config, replace(step, rows=1, micro_batches=rows), memory))


def explain_memory_shortage(config: ModelConfig, step: TrainingStep, memory: int) -> str:
    """Returns one line: the memory needed, the memory available, and settings that would fit."""
    total = estimate_peak_memory(config, step)["total"]
    needed = total + memory_slack(total, step.device)
    rows = step.rows * step.micro_batches
    smaller = (n for n in range(step.rows - 1, 0, -1) if rows % n == 0)
    fitting_rows = next(
        (n for n in smaller if fits_memory(config, replace(step, rows=n, micro_batches=rows // n), memory)), 0
    )
    one_row = replace(step, rows=1, micro_batches=rows)
    contexts = (step.context >> k for k in range(1, step.context.bit_length()))
    context = next((T for T in contexts if fits_memory(config, replace(one_row, context=T), memory)), 0)
    depths = range(config.depth - 1, 0, -1)
    depth = next((L for L in depths if fits_memory(replace(config, depth=L), one_row, memory)), 0)
    advice = [f"a micro-batch of {fitting_rows}"] if fitting_rows else [f"model.context={context}"] if context else []
    advice += [f"model.depth={depth} at this width"] if depth and not fitting_rows else []
    if form := find_fitting_state(config, step, memory):
        advice = [f'optimizer.state="{form}"', *advice]
    advice = advice or ["a smaller model.depth and width"]
    zero3_hint = "" if step.shards_parameters else ", more ranks with optimizer.zero_stage=3"
    return (
        f"{step.rows} rows of {step.context} tokens need {format_bytes(needed, binary=True)} and there are "
        f"{format_bytes(memory, binary=True)}: use {', or '.join(advice)}{zero3_hint}, or a larger device"
    )
