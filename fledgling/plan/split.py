"""Splits the rows of a step over ranks and micro-batches: `train` and `plan` call the same code.

Micro-batch k of a step goes to rank k modulo the number of ranks, and every rank makes as many passes as the one with
the most. So R rows in micro-batches of m on N ranks cost ceil(ceil(R / m) / N) passes of m rows: `choose_split` takes
the m that costs least, the largest of several. Where N does not divide R, some of the slots are empty.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fledgling.config import ModelConfig, StageConfig, UserError
from fledgling.plan import memory
from fledgling.plan.memory import TrainingStep
from fledgling.plan.stage_length import open_batch


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
        size = memory.choose_micro_batch_size(config, share, available, step)
        return replace(step, rows=size, micro_batches=share // size)
    sizes = range(min(share, memory.largest_micro_batch(step)), 0, -1)
    splits = [replace(step, rows=size, micro_batches=count_passes(rows, size, step.ranks)) for size in sizes]
    for split in sorted(splits, key=lambda split: split.rows * split.micro_batches):  # stable: the largest comes first
        if memory.fits_memory(config, split, available):
            return split
    raise UserError(memory.explain_memory_shortage(config, splits[-1], available))
