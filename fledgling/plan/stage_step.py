"""A training step as the planner counts it, made of a recipe: `plan` and `train` derive micro-batches from it."""

from __future__ import annotations

from dataclasses import replace

from fledgling.config import (
    AdapterConfig,
    DPOConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    RLConfig,
    RunConfig,
    StageConfig,
)
from fledgling.plan import memory
from fledgling.plan.hardware import DeviceSpec
from fledgling.plan.optimizer_state import resolve_state
from fledgling.plan.teacher import PlannedTeacher


def one_row_step(
    optimizer: OptimizerConfig, config: ModelConfig, ranks: int, device_kind: str, dtype: str, compiled: bool
) -> memory.TrainingStep:
    """Returns one row of a training step with that optimizer, from which `plan` and `train` derive micro-batch sizes.

    Args:
        optimizer: whose matrix rule, ZeRO stage, state and determinism count.
        config: of the model.
        ranks: over which the step is divided.
        device_kind: the torch device type; every accelerator is counted as a GPU.
        dtype: of the products.
        compiled: whether blocks are compiled.
    """
    return memory.TrainingStep(
        rows=1,
        context=config.context,
        dtype=dtype,
        ranks=ranks,
        zero_stage=1 if optimizer.zero_stage is None else optimizer.zero_stage,
        device="cpu" if device_kind == "cpu" else "cuda",
        compiled=compiled,
        deterministic=None if optimizer.deterministic == "auto" else optimizer.deterministic == "on",
        copies_weights_for_eval=True,
        matrix_optimizer=optimizer.matrix_optimizer,
        optimizer_state=resolve_state(optimizer.state, device_kind),
        keeps_scores=device_kind == "mps",
    )


def device_row_step(
    optimizer: OptimizerConfig, run: RunConfig, config: ModelConfig, ranks: int, device: DeviceSpec
) -> memory.TrainingStep:
    """Returns one row of a training step on a device of the table: of every plan, for one recipe or for all depths.

    Args:
        optimizer: as for `one_row_step`.
        run: whose dtype and compiler count.
        config: of the model.
        ranks: over which the step is divided.
        device: that each rank has.
    """
    is_open = run.dtype == "auto"
    dtype = device.dtype if is_open else run.dtype
    step = one_row_step(optimizer, config, ranks, device.kind, dtype, device.compiles(run.compile))
    return replace(step, answer_dtype=device.answer_dtype if is_open else "")


def stage_step(
    step: memory.TrainingStep,
    table: LoopConfig,
    adapter: AdapterConfig | None = None,
    teacher: PlannedTeacher | None = None,
) -> memory.TrainingStep:
    """Returns a step with what else a stage holds: a copy for checkpoints, a reference model, a teacher.

    Args:
        adapter: that it trains instead of the weights.
        teacher: that it learns from.
    """
    has_reference = (isinstance(table, DPOConfig) and table.uses_reference) or (
        isinstance(table, RLConfig) and table.kl_weight > 0
    )
    return replace(
        step,
        compiled=step.compiled and (adapter is None or adapter.compiles_blocks(step.device, step.dtype)),
        saves_checkpoints=table.save_every > 0,
        has_reference_model=has_reference,
        adapter=adapter,
        teacher=teacher,
        is_quantization_aware=isinstance(table, StageConfig) and table.quantization_aware != "none",
    )
