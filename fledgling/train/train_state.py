"""What changes while a stage runs: restored from a checkpoint, written by the saver, and restored by a rollback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fledgling.config import dump_toml
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import load_parameters
from fledgling.record import checkpoint
from fledgling.record.checkpoint import Checkpoint
from fledgling.record.rng_state import set_rng_state
from fledgling.record.seal import seal_stage
from fledgling.train.context import StageContext
from fledgling.train.health import Health
from fledgling.train.kept_bases import remove_checkpoint
from fledgling.train.saver import CheckpointSaver
from fledgling.train.source_positions import carry_positions
from fledgling.train.stage import Stage
from fledgling.train.stage_horizon import StageHorizon
from fledgling.train.stage_weights import describe_start, read_trained, split_trained, write_adapter_config
from fledgling.train.totals import Totals, read_recorded_totals


@dataclass(frozen=True)
class TrainState:
    """The stage with its stream, the optimizer, and what the loop counts. The weights are in `StageContext.model`."""

    stage: Stage
    optimizer: Optimizer
    health: Health
    totals: Totals
    horizon: StageHorizon

    def restore(self, loaded: Checkpoint) -> int:
        """Restores stream, optimizer, counts and random state from a checkpoint; returns its step."""
        recorded = loaded.state.get("totals") or read_recorded_totals(loaded.path, int(loaded.state["step"]))
        self.totals.load_state_dict(recorded)
        self.health.load_state_dict(loaded.state.get("health", {}))
        self.optimizer.load_full_state_dict(loaded.tensors["optimizer"])
        self.stage.batches.load_state_dict(loaded.state["stream"])
        set_rng_state(loaded.tensors["random"], self.optimizer.world.device)
        return int(loaded.state["step"])


def make_rollback(state: TrainState, context: StageContext, saver: CheckpointSaver) -> Callable[[int], int]:
    """Returns the function that restores the last checkpoint and skips the batches read since: see health.py."""
    stage, health, world = state.stage, state.health, context.world

    def restore(finished: int) -> int:
        saver.wait()  # the last checkpoint may not be written yet
        directory = context.run_dir / stage.name / "checkpoints"
        loaded, before = latest_healthy_checkpoint(directory, context.recorder.log_notice), replace(health)
        load_parameters(context.model, read_trained(loaded, context.model.config, context.adapter), world)
        step = state.restore(loaded)
        stage.batches.skip(finished - step)
        with world.main_process_first():
            if world.is_main:  # saved when the run was stopped between bad steps: they are of the course left
                checkpoint.discard_checkpoints_after(directory, step, remove_checkpoint)
        health.load_state_dict({**before.state_dict(), "bad": 0, "rollbacks": before.rollbacks + 1})
        context.recorder.rewind(step)
        if world.is_main:
            seal_stage(context.run_dir / stage.name)
        context.recorder.log_notice(
            f"{stage.name}: loss or gradient not finite for {before.bad} steps up to {finished}: back to the weights "
            f"of step {step}, on with the batches after step {finished} (rollback {health.rollbacks})"
        )
        return step

    return restore


def latest_healthy_checkpoint(directory: Path, warn: Callable[[str], None]) -> Checkpoint:
    """Returns the newest checkpoint that was not saved between bad steps, as happens when a run is stopped there."""
    find = partial(checkpoint.find_latest_checkpoint, directory, warn=warn)
    latest = find(accept=lambda state: not state.get("health", {}).get("bad")) or find()
    assert latest is not None, "a stage with rollbacks saves at step 0"
    return checkpoint.load_checkpoint(latest)


def make_saver(state: TrainState, context: StageContext) -> CheckpointSaver:
    """Returns the saver of a stage. It adds the tensors to what `describe_state` returns."""
    stage, stage_dir = state.stage, context.run_dir / state.stage.name
    init_from = context.recipe.run.init_from
    adapter_files = write_adapter_config(stage_dir, context.model, context.start, init_from, context.world.is_main)
    return CheckpointSaver(
        stage_dir / "checkpoints",
        context.model,
        state.optimizer,
        context.world,
        partial(describe_state, state, context),
        {"tokenizer.json": context.run_dir / "tokenizer" / "tokenizer.json", **adapter_files},
        context.recipe.stage_config(stage.name).keep_checkpoints,
        saves_during_training=stage.save_every > 0,
        log=context.recorder.log_notice,
        flush_record=context.recorder.flush,
        seal_record=partial(seal_stage, stage_dir),
        split=split_trained(context.model, context.adapter),
    )


def describe_state(state: TrainState, context: StageContext, step: int) -> dict[str, Any]:
    """Returns the state.json of the checkpoint after `step` steps."""
    stage = state.stage
    return {
        **describe_start(context.start, context.run_dir / stage.name / "checkpoints" / f"step-{step:08d}"),
        "stage": stage.name,
        "step": step,
        "stream": stage.batches.state_dict(),
        "model": context.model.config.to_dict(),
        "recipe": dump_toml(context.recipe),
        "history": list(context.history),
        "tokenizer": context.tokenizer.fingerprint(),
        "micro_batch": stage.micro_batch_size,
        "rows_per_step": stage.rows_per_step,
        "row_weights": stage.row_weights,
        "health": state.health.state_dict(),
        "totals": state.totals.state_dict(),
        "horizon": state.horizon.state_dict(),
        "parent": context.parent,
        "ranks": context.world.size,
        "positions": (stage.positions or carry_positions(context.positions))(),
        "data": context.preparer.documents.prepared.used_inputs,
    }
