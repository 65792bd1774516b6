"""One row of a training step on the device that a process computes on, as the planner counts its memory."""

from __future__ import annotations

from dataclasses import replace

from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.plan.stage_step import one_row_step
from fledgling.plan.training_step import TrainingStep
from fledgling.runtime.device import DeviceSetup, name_dtype
from fledgling.runtime.world import World


def make_device_step(optimizer: OptimizerConfig, config: ModelConfig, setup: DeviceSetup, world: World) -> TrainingStep:
    """Returns one row of a step of pretraining on this process, from which micro-batch sizes follow.

    Args:
        optimizer: whose matrix rule, ZeRO stage, state and determinism count.
        config: of the model.
        setup: dtypes and compiler.
        world: the ranks.
    """
    step = one_row_step(optimizer, config, world.size, world.device.type, setup.dtype_name, setup.compiled)
    return replace(step, answer_dtype=name_dtype(setup.engine_dtype))
