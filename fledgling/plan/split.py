"""Splits the rows of a step over ranks and micro-batches: `train` and `plan` call the same code.

Micro-batch k of a step goes to rank k modulo the number of ranks, and every rank makes as many passes as the one with
the most. So R rows in micro-batches of m on N ranks cost ceil(ceil(R / m) / N) passes of m rows: `choose_split` takes
the m that costs least, where a pass costs as much as PASS_ROWS rows besides its own: 43 passes of one row are slower
than two of 22. Where N does not divide R, some of the slots are empty.

A block that recomputes keeps only its input, (rows, context, width) in the dtype of the products, and runs forward once
more in backward: a third more FLOPs of the blocks (Chen et al. 2016, arXiv 1604.06174). Plan, dry run and training all
ask `choose_split` whether it does, because that depends on the split: several passes also hold their sum of gradients.
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

PASS_ROWS = 0.25  # assumed: launches, and the weights that every pass reads
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
    """Returns the share of a step's row slots, of all ranks, that hold none of its `rows` rows.

    A single rank has none: its last micro-batch has the rows that are left. Several ranks wait for a full one.
    """
    return 0.0 if step.ranks == 1 else max(0.0, 1 - rows / (step.rows * step.micro_batches * step.ranks))


def explain_empty_slots(rows: int, size: int, ranks: int) -> str:
    """Returns why slots of a step of `rows` rows are empty, in micro-batches of `size`: what does not divide what."""
    if rows % ranks:
        return f"{ranks} ranks do not divide {rows} rows"
    return f"micro-batches of {size} rows do not divide the {rows // ranks} rows of each of {ranks} ranks"


def choose_split(
    config: ModelConfig,
    rows: int,
    available: int,
    step: TrainingStep,
    pinned: int | None = None,
    recompute: str | None = None,
) -> TrainingStep:
    """Returns `step` with the rows of a micro-batch, the passes of a rank, and whether blocks recompute activations.

    Args:
        rows: of the whole step, over all of `step.ranks` ranks.
        available: bytes of one rank.
        pinned: rows of a micro-batch that the recipe asks for, whether they fit or not; taken up to a rank's share.
        recompute: `run.recompute`: "on", "off", or "auto", where a step fits only so; None: as `step` has it.

    Raises:
        UserError: if not even one row fits.
    """
    split = find_split(config, rows, available, step, pinned, recompute)
    if split is None:
        least = replace(step, rows=1, micro_batches=count_passes(rows, 1, step.ranks))
        least = least if recompute is None else replace(least, recompute=recompute != "off")
        raise UserError(explain_memory_shortage(config, least, available))
    return split


def find_split(
    config: ModelConfig,
    rows: int,
    available: int,
    step: TrainingStep,
    pinned: int | None = None,
    recompute: str | None = None,
) -> TrainingStep | None:
    """Returns what `choose_split` does; None if not even one row fits.

    Args:
        rows: of the whole step.
        available: bytes of one rank.
        step: one row of it.
        pinned: rows of a micro-batch that the recipe asks for.
        recompute: `run.recompute`; None: as `step` has it.
    """
    if recompute != "auto":
        step = step if recompute is None else replace(step, recompute=recompute == "on")
        return _split_rows(config, rows, available, step, pinned)
    splits = (_split_rows(config, rows, available, replace(step, recompute=on), pinned) for on in (False, True))
    first: TrainingStep | None = None
    for split in splits:
        first = first or split
        if split and (pinned is None or fits_memory(config, split, available)):
            return split
    return first  # of a pinned size that fits in neither way


def _split_rows(
    config: ModelConfig, rows: int, available: int, step: TrainingStep, pinned: int | None
) -> TrainingStep | None:
    """Returns the step with the rows of a micro-batch and the passes of a rank; None if not even one row fits."""
    share = -(-rows // step.ranks)
    if pinned is not None:
        sizes = [min(pinned, share)]
    else:
        sizes = list(range(min(share, largest_micro_batch(step)), 0, -1))
        if rows % step.ranks == 0:
            sizes = [size for size in sizes if share % size == 0]
    splits = [replace(step, rows=size, micro_batches=count_passes(rows, size, step.ranks)) for size in sizes]
    splits.sort(key=lambda split: (split.rows + PASS_ROWS) * split.micro_batches)  # stable: the largest comes first
    if pinned is not None:
        return splits[0]
    return next((split for split in splits if fits_memory(config, split, available)), None)


def largest_micro_batch(step: TrainingStep) -> int:
    """Returns the most rows of one forward/backward that are chosen automatically, however large the memory."""
    return min(MAX_MICRO_BATCH_ROWS, max(1, MAX_MICRO_BATCH_TOKENS.get(step.device, 1 << 62) // step.context))


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
