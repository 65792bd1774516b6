"""What the builders of all stages need: the objects of a run, the micro-batch size, the schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fledgling.config import AdapterConfig, LoopConfig, Recipe
from fledgling.data.shards import TokenShard
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan import memory
from fledgling.plan.derive import derive_warmup
from fledgling.plan.split import MAX_MICRO_BATCH_ROWS, choose_split
from fledgling.plan.stage_step import stage_step
from fledgling.plan.teacher import PlannedTeacher
from fledgling.record import Recorder
from fledgling.record.run_lock import RunLock
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.data_preparer import DataPreparer, find_held_out_source
from fledgling.train.device_step import make_device_step
from fledgling.train.source_positions import Positions
from fledgling.train.stage_weights import StageWeights


@dataclass(frozen=True)
class StageContext:
    """The objects that a stage is built from and that its evaluations use."""

    recipe: Recipe
    run_dir: Path
    world: World
    model: Transformer
    tokenizer: Tokenizer
    engine: Engine  # generates with the model's current weights
    recorder: Recorder
    preparer: DataPreparer
    setup: DeviceSetup
    load_initial_model: Callable[[], Transformer]  # a frozen copy of the model as it was when the stage began
    positions: Positions = field(default_factory=dict)  # of the sources that earlier stages have read
    saved_micro_batch_size: int | None = None  # of the checkpoint that the stage resumes from
    saved_rows_per_step: int | None = None  # the same
    saved_row_weights: dict[str, float] | None = None  # the same
    start: StageWeights | None = None  # what the weights were loaded from; None: from the seed
    parent: dict[str, Any] | None = None  # `record.parent.describe_parent` of the checkpoint that the stage starts from
    lock: RunLock | None = None  # of the run; None on all ranks but the main one
    history: tuple[dict[str, Any], ...] = ()  # what the stage ran with (history.py)
    teacher: PlannedTeacher | None = None  # that the stage learns from, before it is loaded

    @property
    def adapter(self) -> AdapterConfig | None:
        """The adapter that the stage trains; None: it trains the weights."""
        return self.start.adapter if self.start else None


def resolve_micro_batch_size(config: LoopConfig, context: StageContext) -> int:
    """Returns the rows of one forward/backward, of any number of rows in a step: the recipe's, or the planner's.

    A resumed stage keeps the size that it had, or takes a smaller one. Raises UserError if not even one row fits.
    """
    split = resolve_split(config, context, MAX_MICRO_BATCH_ROWS * context.world.size)
    return min(list_known_sizes(config, context), default=split.rows)


def list_known_sizes(config: LoopConfig, context: StageContext) -> list[int]:
    """Returns the rows of a micro-batch that the recipe gives, and those that a resumed stage had."""
    return [size for size in (config.micro_batch_size, context.saved_micro_batch_size) if size]


def resolve_split(config: LoopConfig, context: StageContext, rows: int) -> memory.TrainingStep:
    """Returns the step of a rank for `rows` rows over all ranks: the recipe's micro-batches, or what fits this machine.

    A resumed stage keeps the size that it had, or takes a smaller one. Raises UserError if not even one row fits.
    """
    setup, model = context.setup, context.model.config
    step = make_device_step(context.recipe.optimizer, model, setup, context.world)
    step = stage_step(step, config, context.adapter, context.teacher)
    pinned = min(list_known_sizes(config, context), default=None)
    split = choose_split(model, rows, setup.memory_limit, step, pinned, context.recipe.run.recompute)
    set_recompute(context, split.recompute)
    return split


def set_recompute(context: StageContext, recompute: bool) -> None:
    """Sets whether the model's blocks recompute their activations, and says so where they do."""
    context.model.recompute = recompute
    if recompute:
        is_set = context.recipe.run.recompute == "on"
        reason = "run.recompute is on" if is_set else "its micro-batch fits in memory only so"
        context.recorder.log_notice(f"blocks recompute their activations in backward: {reason}")


def make_schedule(recipe: Recipe, name: str, steps: int) -> Callable[[float], float]:
    """Returns the learning rate's multiplier, in stage `name` of `steps` steps, as a function of progress in [0, 1)."""
    config = derive_warmup(recipe, name, steps).stage_config(name)
    return partial(
        trapezoidal_schedule,
        total_steps=steps,
        warmup_steps=config.warmup_steps or 0,
        decay_fraction=config.decay_fraction,
        final_lr_fraction=config.final_lr_fraction,
    )


def held_out_shards(context: StageContext) -> tuple[TokenShard, ...]:
    """Returns the held-out documents of pretraining, on which later stages measure bits per byte too."""
    source = find_held_out_source(context.recipe.pretrain)
    return () if source is None else context.preparer.documents.prepare_shards(source, context.tokenizer).held_out
