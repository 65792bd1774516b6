"""Runs one stage of a recipe: tokenizer, model, optimizer, stream, checkpoints, loop. Start with `run_stage`.

A stage is written to RUN/<stage>. It starts from the last checkpoint of the stage before it (pretraining: from the
seed), resumes from its own newest checkpoint, and does nothing once it is done. Meanwhile the run is locked
(`record/run_lock.py`); `resume_check.py` decides whether the stage may be resumed from what it finds there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fledgling.config import Recipe, UserError, dump_toml
from fledgling.config.load import RECIPE_FILE
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import load_parameters
from fledgling.plan.derive import derive_recipe, derive_stage, list_derived
from fledgling.plan.flops import training_flops_per_token
from fledgling.record import Recorder, checkpoint, write_text
from fledgling.record.checkpoint import Checkpoint
from fledgling.record.run_lock import RunLock
from fledgling.record.seal import seal_run, seal_stage
from fledgling.report.page_footer import set_aside_page
from fledgling.runtime.device import DeviceSetup, set_up_device
from fledgling.runtime.signals import catch_stop_signals
from fledgling.runtime.watchdog import run_watchdog
from fledgling.runtime.world import World, get_restart_count, is_main_process
from fledgling.train.build_context import build_context, require_same_data
from fledgling.train.context import StageContext
from fledgling.train.derived_values import write_derived_values
from fledgling.train.dpo import build_dpo_stage
from fledgling.train.free_cores import follow_free_cores
from fledgling.train.health import Health, Rollback
from fledgling.train.history import extend_history
from fledgling.train.horizon import Horizon
from fledgling.train.init_from import find_init_checkpoint, recipe_from_checkpoint
from fledgling.train.kept_bases import describe_dependents, remove_checkpoint
from fledgling.train.loop import ChooseSteps, LoopContext, TrainingStopped, run_loop
from fledgling.train.peak import discard_outdated_peak, find_datasheet_peak, replace_exceeded_peak
from fledgling.train.positions import carry_positions, describe_reading
from fledgling.train.prepare import DataPreparer
from fledgling.train.resume_check import read_prepared_data, reconcile
from fledgling.train.rl.build import build_rl_stage
from fledgling.train.run_directory import (
    lock_stage,
    parent_checkpoint,
    print_line,
    print_nothing,
    remove_stage,
    require_done,
    require_lock,
    restore_unless_begun,
    write_run_files,
)
from fledgling.train.same_ranks import require_same_device
from fledgling.train.saver import CheckpointSaver
from fledgling.train.stage import Eval, Stage
from fledgling.train.stage_rows import require_data
from fledgling.train.stage_settings import require_valid_settings
from fledgling.train.stage_weights import (
    describe_start,
    read_trained,
    recipe_with_adapter,
    split_trained,
    write_adapter_config,
)
from fledgling.train.supervised import build_supervised_stage
from fledgling.train.totals import Totals

STAGE_BUILDERS: dict[str, Callable[[str, StageContext], Stage]] = {
    "pretrain": build_supervised_stage,
    "midtrain": build_supervised_stage,
    "sft": build_supervised_stage,
    "dpo": build_dpo_stage,
    "rl": build_rl_stage,
}
SelectEvals = Callable[[tuple[Eval, ...]], tuple[Eval, ...]]
AdaptStage = Callable[[Stage], Stage]


def run_stage(
    recipe: Recipe,
    name: str,
    resume: str = "auto",
    quiet: bool = False,
    select_evals: SelectEvals = tuple,
    lock: RunLock | None = None,
    adapt_stage: AdaptStage = lambda stage: stage,
    should_stop: Callable[[], bool] = lambda: False,
    prepared: dict[str, Any] | None = None,
    choose_steps: ChooseSteps | None = None,
) -> bool:
    """Runs stage `name`; returns False if it was already done.

    Args:
        resume: "auto" resumes from the newest checkpoint, "never" restarts the stage.
        quiet: shows no progress line.
        select_evals: returns the evaluations to run, of those that the stage has.
        lock: of the run, if the caller holds it; else it is taken for the stage.
        adapt_stage: returns the stage that runs, given the one of the recipe.
        should_stop: is asked after every step, as a signal is.
        prepared: the prepared data that the stage starts with, as a checkpoint's state records it in "data"; None: as
            its texts are now. A stage that resumes has that of its checkpoint.
        choose_steps: may change the number of steps while the stage runs (`fledgling.train.horizon`).

    Raises:
        TrainingStopped: after a signal, once everything is saved.
        UserError: before any work, if data or the checkpoint of the stage before it are missing, if another process
            writes the run, or if settings differ that the checkpoint has decided.
    """
    run_dir = Path(recipe.run.out)
    resume = "auto" if get_restart_count() else resume
    if resume == "auto" and (run_dir / name / "done.json").exists():
        require_done(recipe, name, run_dir, print_nothing if quiet or not is_main_process() else print_line)
        return False
    require_valid_settings(recipe, name)
    parent = parent_checkpoint(recipe.stages, name, run_dir)
    kept = read_prepared_data(run_dir, name) if resume == "auto" else None
    require_data(recipe, [name], prepared or kept)
    world = World.start(recipe.run.device)
    with run_watchdog(world, run_dir / name, collective_exceptions=(TrainingStopped,)), ExitStack() as locks:
        with world.main_process_first():
            if world.is_main and lock is None:
                lock = locks.enter_context(lock_stage(run_dir, name))
            init = find_init_checkpoint(recipe, run_dir)
        saved, notices = find_saved_checkpoint(run_dir / name, resume, world)
        recipe, parent = recipe_from_checkpoint(recipe, init, notices.append), parent or init
        with world.main_process_first():
            recipe = recipe_with_adapter(recipe, run_dir, parent, name)
            given = reconcile(recipe, name, run_dir, saved, parent, notices.append, choose_steps is not None)
            recipe = derive_recipe(given)
            notices += describe_dependents(run_dir, name) + describe_derived(name, given, recipe)
        begun = locks.enter_context(restore_unless_begun(run_dir, name, world.is_main))
        setup = start_run(given, recipe, name, resume, world, saved)
        loggers = recipe.run.loggers
        with Recorder(run_dir / name, name, 0, quiet=quiet, loggers=loggers, enabled=world.is_main) as recorder:
            if world.is_main and (discarded := discard_outdated_peak(setup, world.device)):
                notices.append(discarded)
            for line in (*notices, f"{name}: {setup.summary}"):
                recorder.log_notice(line)
            preparer = DataPreparer(recipe, run_dir, recorder.log_notice, show_progress=world.is_main and not quiet)
            preparer.documents.prepared.pinned = prepared or {}
            context, loaded = build_context(recipe, name, world, setup, recorder, preparer, saved, parent, lock)

            def begin() -> None:
                begun.set()
                if world.is_main:
                    set_aside_page(run_dir, name, recorder.log_notice)
                    seal_run(run_dir)  # again: the tokenizer may have been trained since

            train_stage(name, context, loaded, select_evals, adapt_stage, should_stop, begin, choose_steps)
    return True


def start_run(given: Recipe, recipe: Recipe, name: str, resume: str, world: World, saved: Path | None) -> DeviceSetup:
    """Sets up the device and writes the run's files; deletes the stage if it is restarted. Every rank calls it.

    given: the recipe before rules filled its open fields.
    """
    setup = set_up_device(recipe.run, world)
    require_same_device(setup, world)
    memory_limit = min(world.all_gather_object(setup.memory_limit))  # the same micro-batch on every rank
    setup = replace(setup, memory_limit=memory_limit)
    run_dir = Path(recipe.run.out)
    step = int(checkpoint.read_checkpoint_state(saved)["step"]) if saved else 0
    with world.main_process_first():
        if world.is_main:
            if resume == "never":
                remove_stage(run_dir / name)
            write_run_files(given, recipe, name, run_dir, setup, world, step)
    return setup


def find_saved_checkpoint(stage_dir: Path, resume: str, world: World) -> tuple[Path | None, list[str]]:
    """Returns the checkpoint that the stage resumes from, the same on all ranks, and notices about skipped ones."""
    notices: list[str] = []
    saved = None
    if resume == "auto":
        saved = checkpoint.find_latest_checkpoint(stage_dir / "checkpoints", warn=notices.append)
    return world.all_gather_object(saved)[0], notices  # rank 0's: a shared file system may show others an older state


def train_stage(
    name: str,
    context: StageContext,
    saved: Checkpoint | None,
    select_evals: SelectEvals = tuple,
    adapt_stage: AdaptStage = lambda stage: stage,
    should_stop: Callable[[], bool] = lambda: False,
    on_begin: Callable[[], None] = lambda: None,
    choose_steps: ChooseSteps | None = None,
) -> None:
    """Builds the stage's data and optimizer, restores the checkpoint `saved`, and runs the loop to the stage's end.

    on_begin: is called once everything is built, before the first step.
    """
    recipe, world, recorder, setup = context.recipe, context.world, context.recorder, context.setup
    with world.local_main_process_first():
        stage = STAGE_BUILDERS[name](name, context)
    require_same_data(world, context.preparer, context.tokenizer)
    stage = adapt_stage(replace(stage, evals=select_evals(stage.evals)))
    context = derive_context(context, stage)
    recipe, read_files = context.recipe, context.preparer.documents.prepared.read_files
    history = extend_history(saved.state if saved else None, recipe, read_files)
    context = replace(context, history=tuple(history))
    learning_rate = recipe.stage_config(name).learning_rate or 1.0  # derived, if it was open
    table = recipe.optimizer if name == "pretrain" else replace(recipe.optimizer, tied_updates=0)
    optimizer = Optimizer(context.model, table, world, learning_rate, setup.compiled, setup.dtype)
    start_step, health, totals = 0, Health(), Totals()
    horizon = Horizon(stage.steps, stage.recorded_changes, is_recorded=bool(stage.recorded_changes))
    torch.manual_seed(recipe.seed)
    if saved:
        horizon.load_state_dict(saved.state.get("horizon", {}))
        start_step = restore_state(saved, stage, optimizer, health, totals)
        recorder.log_notice(f"{name}: resuming after step {start_step} of {horizon.steps}")
    recorder.rewind(start_step or -1)
    if world.is_main:
        seal_stage(context.run_dir / name)
    if start_step > horizon.steps:
        raise UserError(
            f"{name}.steps: the checkpoint has {start_step} steps, more than the {horizon.steps} of the stage"
        )
    recorder.total_steps = horizon.steps
    on_begin()
    saver = make_saver(stage, optimizer, context, health, totals, horizon)
    rollback = Rollback(recipe.run.max_rollbacks, make_rollback(stage, optimizer, context, health, totals, saver))
    with catch_stop_signals() as stop_requested, saver:
        loop_context = LoopContext(
            world,
            recorder,
            saver,
            lambda: require_lock(context.lock) or stop_requested() or saver.failed or should_stop(),
            training_flops_per_token(context.model.config, adapter=context.adapter),
            setup.peak_flops,
            find_datasheet_peak(setup, world.device),
            partial(replace_exceeded_peak, setup, world.device),
            health,
            rollback,
            totals,
            horizon,
            choose_steps,
            follow_free_cores(recipe.run, world, recorder.log_notice),
        )
        reporting = replace(stage, extra_metrics=lambda: stage.extra_metrics() | saver.metrics())
        try:
            run_loop(reporting, context.model, optimizer, loop_context, start_step)
        finally:
            stage.batches.close()
    counted = not saved or "targets" in saved.state.get("totals", {})  # an older checkpoint has not
    if name != "rl" and counted and not totals.targets:
        nothing = f"{name}: none of {horizon.steps:,} steps had a token to learn from, so the weights are as they were"
        raise UserError(f"{nothing}; see the stage's notices for what was cut or left out")
    reading = stage.count_reading()
    if line := describe_reading(name, reading):
        recorder.log_notice(line)
    facts = ({"sources": reading} if reading else {}) | ({"planned_steps": horizon.planned} if horizon.changes else {})
    recorder.mark_done(**totals.state_dict(), **saver.metrics(), **facts)
    if world.is_main:
        seal_stage(context.run_dir / name)


def describe_derived(name: str, given: Recipe, derived: Recipe) -> list[str]:
    """Returns a line with the values that rules have filled and the numbers of these rules; none if there are none."""
    values = ", ".join(value.describe() for value in list_derived(given, derived))
    return [f"{name}: by the rules of fledgling/config/scaling_rules.py: {values}"] if values else []


def derive_context(context: StageContext, stage: Stage) -> StageContext:
    """Returns the context with what follows from the stage's length; writes that into the run's recipe.toml."""
    config, given = context.model.config, context.recipe
    recipe = derive_stage(given, stage.name, stage.steps, stage.rows_per_step * config.context, config)
    if recipe == given:
        return context
    for line in describe_derived(stage.name, given, recipe):
        context.recorder.log_notice(line)
    if context.world.is_main:
        write_text(context.run_dir / RECIPE_FILE, dump_toml(recipe))
        write_derived_values(context.run_dir, given, recipe)
        seal_run(context.run_dir)
    return replace(context, recipe=recipe)


def restore_state(loaded: Checkpoint, stage: Stage, optimizer: Optimizer, health: Health, totals: Totals) -> int:
    """Restores stream, optimizer, counts and random state from a checkpoint; returns its step."""
    totals.load_state_dict(loaded.state.get("totals", {}))
    health.load_state_dict(loaded.state.get("health", {}))
    optimizer.load_full_state_dict(loaded.tensors["optimizer"])
    stage.batches.load_state_dict(loaded.state["stream"])
    checkpoint.set_rng_state(loaded.tensors["random"], optimizer.world.device)
    return int(loaded.state["step"])


def make_rollback(
    stage: Stage, optimizer: Optimizer, context: StageContext, health: Health, totals: Totals, saver: CheckpointSaver
) -> Callable[[int], int]:
    """Returns the function that restores the last checkpoint and skips the batches read since: see health.py."""

    def restore(finished: int) -> int:
        saver.wait()  # the last checkpoint may not be written yet
        directory = context.run_dir / stage.name / "checkpoints"
        loaded, before = latest_healthy_checkpoint(directory, context.recorder.log_notice), replace(health)
        load_parameters(context.model, read_trained(loaded, context.model.config, context.adapter), context.world)
        step = restore_state(loaded, stage, optimizer, health, totals)
        stage.batches.skip(finished - step)
        with context.world.main_process_first():
            if context.world.is_main:  # saved when the run was stopped between bad steps: they are of the course left
                checkpoint.discard_checkpoints_after(directory, step, remove_checkpoint)
        health.load_state_dict({**before.state_dict(), "bad": 0, "rollbacks": before.rollbacks + 1})
        context.recorder.rewind(step)
        if context.world.is_main:
            set_aside_page(context.run_dir, stage.name, context.recorder.log_notice)
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


def make_saver(
    stage: Stage, optimizer: Optimizer, context: StageContext, health: Health, totals: Totals, horizon: Horizon
) -> CheckpointSaver:
    """Returns the saver of a stage, with what goes into state.json; the tensors are the saver's."""

    directory = context.run_dir / stage.name / "checkpoints"

    def state(step: int) -> dict:
        return {
            **describe_start(context.start, directory / f"step-{step:08d}"),
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
            "health": health.state_dict(),
            "totals": totals.state_dict(),
            "horizon": horizon.state_dict(),
            "parent": context.parent,
            "ranks": context.world.size,
            "positions": (stage.positions or carry_positions(context.positions))(),
            "data": context.preparer.documents.prepared.used_inputs,
        }

    return CheckpointSaver(
        directory,
        context.model,
        optimizer,
        context.world,
        state,
        {
            "tokenizer.json": context.run_dir / "tokenizer" / "tokenizer.json",
            **write_adapter_config(
                context.run_dir / stage.name,
                context.model,
                context.start,
                context.recipe.run.init_from,
                context.world.is_main,
            ),
        },
        context.recipe.stage_config(stage.name).keep_checkpoints,
        saves_during_training=stage.save_every > 0,
        log=context.recorder.log_notice,
        flush_record=context.recorder.flush,
        seal_record=partial(seal_stage, context.run_dir / stage.name),
        split=split_trained(context.model, context.adapter),
    )
