"""Whether blocks keep their activations for backward or recompute them: `run.recompute`, for plan and train alike.

A block that recomputes keeps only its input, (rows, context, width) in the dtype of the products, and runs forward once
more in backward: a third more FLOPs of the blocks.

Source: Chen et al. 2016, training deep nets with sublinear memory cost, arXiv 1604.06174.
"""

from __future__ import annotations

from dataclasses import replace

from fledgling.config import ModelConfig
from fledgling.plan.memory import fits_memory
from fledgling.plan.training_step import TrainingStep


def resolve_recompute(setting: str, config: ModelConfig, step: TrainingStep, memory: int) -> TrainingStep:
    """Returns the step with `recompute` as the setting says: "auto" where it fits `memory` bytes only so.

    Args:
        setting: "auto", "on" or "off".
        step: of the fewest rows that are possible.
    """
    again = replace(step, recompute=True)
    if setting == "auto":
        return again if not fits_memory(config, step, memory) and fits_memory(config, again, memory) else step
    return replace(step, recompute=setting == "on")
