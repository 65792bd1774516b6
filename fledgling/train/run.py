"""Runs one stage of a recipe: tokenizer, model, optimizer, stream, checkpoints, loop. Start with `run_stage`.

A stage is written to RUN/<stage>. It starts from the last checkpoint of the stage before it (pretraining: from the
seed), resumes from its own newest checkpoint, and does nothing once it is done. Meanwhile the run is locked
(`record/run_lock.py`); `stage_origin.py` decides what the stage starts from, and `resume_check.py` whether it may;
`train_state.py` has what a checkpoint restores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fledgling.config import Recipe, UserError, dump_toml
from fledgling.config.load import RECIPE_FILE
from fledgling.kernels.native import load_native_library
from fledgling.optim.optimizer import Optimizer
from fledgling.plan.derive import derive_stage
from fledgling.plan.flops import training_flops
from fledgling.record import Recorder, checkpoint, write_text
from fledgling.record.checkpoint import Checkpoint
from fledgling.record.run_lock import RunLock
from fledgling.record.seal import seal_run, seal_stage
from fledgling.report.page_footer import set_aside_page
from fledgling.runtime.compiler import report_compile_failures
from fledgling.runtime.device import DeviceSetup, set_up_device
from fledgling.runtime.signals import catch_stop_signals
from fledgling.runtime.watchdog import run_watchdog
from fledgling.runtime.world import World, get_restart_count, is_main_process
from fledgling.train.build_context import build_context, require_same_data
from fledgling.train.check_values import require_buildable
from fledgling.train.context import StageContext
from fledgling.train.data_preparer import DataPreparer
from fledgling.train.derived_values import write_derived_values
from fledgling.train.dpo import build_dpo_stage
from fledgling.train.free_cores import follow_free_cores
from fledgling.train.health import Health, Rollback
from fledgling.train.history import describe_other_dtype, extend_history
from fledgling.train.hooks import NO_HOOKS, StageHooks
from fledgling.train.loop import LoopContext, TrainingStopped, run_loop
from fledgling.train.peak import discard_outdated_peak, find_datasheet_peak, replace_exceeded_peak
from fledgling.train.replaced_stage import (
    forget_run_files,
    is_being_replaced,
    keep_run_files,
    remove_replaced_stage,
    set_stage_aside,
)
from fledgling.train.resume_check import read_prepared_data, read_pretrain_rows
from fledgling.train.rl.build import build_rl_stage
from fledgling.train.run_directory import (
    Log,
    is_done,
    lock_stage,
    parent_checkpoint,
    print_line,
    print_nothing,
    require_lock,
    restore_unless_begun,
    settle_starts,
    write_run_files,
)
from fledgling.train.same_ranks import require_same_device, require_same_recipe
from fledgling.train.saver import CheckpointSaver
from fledgling.train.source_positions import describe_reading
from fledgling.train.stage import Stage
from fledgling.train.stage_horizon import StageHorizon, keep_made_steps
from fledgling.train.stage_origin import StageOrigin, describe_derived, find_stage_origin
from fledgling.train.stage_rows import require_data
from fledgling.train.stage_settings import require_valid_settings
from fledgling.train.supervised import build_supervised_stage
from fledgling.train.totals import Totals
from fledgling.train.train_state import TrainState, make_rollback, make_saver

STAGE_BUILDERS: dict[str, Callable[[str, StageContext], Stage]] = {
    "pretrain": build_supervised_stage,
    "midtrain": build_supervised_stage,
    "sft": build_supervised_stage,
    "dpo": build_dpo_stage,
    "rl": build_rl_stage,
}


def run_stage(
    recipe: Recipe,
    name: str,
    resume: str = "auto",
    quiet: bool = False,
    hooks: StageHooks = NO_HOOKS,
    lock: RunLock | None = None,
) -> bool:
    """Runs stage `name`; returns False if it was already done.

    Args:
        resume: "auto" resumes from the newest checkpoint, "never" restarts the stage.
        quiet: shows no progress line.
        hooks: what the caller changes of the stage.
        lock: of the run, if the caller holds it; else it is taken for the stage.

    Raises:
        TrainingStopped: after a signal, once everything is saved.
        UserError: before any work, if data or the checkpoint of the stage before it are missing, if the stage is done
            and its checkpoints are all corrupt, if another process writes the run, or if settings differ that the
            checkpoint has decided.
    """
    run_dir = Path(recipe.run.out)
    if get_restart_count():
        resume = "never" if is_being_replaced(run_dir / name) else "auto"
    log = print_nothing if quiet or not is_main_process() else print_line
    if lock is None:
        settle_starts(run_dir)
    if resume == "auto" and is_done(recipe, name, run_dir, log):
        return False
    skipped: list[str] = []  # corrupt checkpoints of the stage before it
    parent = require_inputs(recipe, name, resume, hooks.prepared, skipped.append)
    world = World.start(recipe.run.device)
    require_same_recipe(recipe, world, name)
    require_buildable(recipe, name, world)
    with run_watchdog(world, run_dir / name, collective_exceptions=(TrainingStopped,)), ExitStack() as locks:
        with world.main_process_first():
            if world.is_main and lock is None:
                lock = locks.enter_context(lock_stage(run_dir, name))
        if resume == "auto" and is_done(recipe, name, run_dir, log):  # the lock has put it back
            return False
        origin = find_stage_origin(recipe, name, resume, world, parent, hooks.choose_steps is not None)
        if origin.saved is None:
            origin = replace(origin, notices=(*skipped, *origin.notices))
        locks.enter_context(restore_unless_begun(run_dir, name, lock))
        setup = start_run(origin, resume, world)
        build_and_train(origin, setup, world, quiet, hooks, lock)
    return True


def build_and_train(
    origin: StageOrigin, setup: DeviceSetup, world: World, quiet: bool, hooks: StageHooks, lock: RunLock | None
) -> None:
    """Opens the stage's record, builds tokenizer, model and engine, and trains the stage.

    Args:
        origin: the stage, its recipe, its run directory, and the checkpoints that it starts from.
        setup: dtype and compiler.
        world: the ranks.
        quiet: whether nothing is printed.
        hooks: what a caller changes of the stage.
        lock: of the run directory.
    """
    name, run, show_progress = origin.name, origin.recipe.run, world.is_main and not quiet
    stage_dir = origin.run_dir / name
    with Recorder(stage_dir, name, 0, quiet=quiet, loggers=run.loggers, enabled=world.is_main) as recorder:
        log_start(origin, setup, world, recorder)
        preparer = DataPreparer(origin.recipe, origin.run_dir, recorder.log_notice, show_progress=show_progress)
        preparer.documents.prepared.pinned = dict(hooks.prepared or {})
        context, saved = build_context(origin, world, setup, recorder, preparer, lock)

        def begin() -> None:
            hooks.on_begin()
            if world.is_main:
                forget_run_files(stage_dir)
                if not is_being_replaced(stage_dir):
                    set_aside_page(origin.run_dir, name, recorder.log_notice)
                seal_run(origin.run_dir)  # again: the tokenizer may have been trained since

        def keep() -> None:
            hooks.on_saved()
            set_aside_page(origin.run_dir, name, recorder.log_notice)  # of a stage that is replaced only now
            remove_replaced_stage(stage_dir)

        train_stage(name, context, saved, replace(hooks, on_begin=begin, on_saved=keep))


def require_inputs(recipe: Recipe, name: str, resume: str, prepared: Mapping[str, Any] | None, log: Log) -> Path | None:
    """Returns the last checkpoint of the stage before `name`; None for the first stage.

    Args:
        recipe: of this start.
        name: of the stage.
        resume: "auto" or "never".
        prepared: data that the stage is to read, if a caller names them.
        log: receives a line for each newer checkpoint of the stage before it that is corrupt.

    Raises UserError if it or data are missing, or if settings of the stage do not fit together.
    """
    run_dir = Path(recipe.run.out)
    require_valid_settings(recipe, name)
    parent = parent_checkpoint(recipe.stages, name, run_dir, log=log)
    kept = read_prepared_data(run_dir, name) if resume == "auto" else None
    require_data(recipe, [name], prepared or kept)
    return parent


def start_run(origin: StageOrigin, resume: str, world: World) -> DeviceSetup:
    """Sets up the device and writes the run's files; sets the stage aside if it is restarted. Every rank calls it."""
    setup = set_up_device(origin.recipe.run, world)
    require_same_device(setup, world)
    memory_limit = min(world.all_gather_object(setup.memory_limit))  # the same micro-batch on every rank
    setup = replace(setup, memory_limit=memory_limit)
    step = int(checkpoint.read_checkpoint_state(origin.saved)["step"]) if origin.saved else 0
    with world.main_process_first():
        if world.is_main:
            if resume == "never":
                set_stage_aside(origin.run_dir / origin.name)
            keep_run_files(origin.run_dir / origin.name)
            write_run_files(origin, setup, world, step)
    return setup


def log_start(origin: StageOrigin, setup: DeviceSetup, world: World, recorder: Recorder) -> None:
    """Logs what was found, changed and derived before the stage starts, and the device."""
    notices = list(origin.notices)
    if world.is_main and (discarded := discard_outdated_peak(setup, world.device)):
        notices.append(discarded)
    for line in (*notices, f"{origin.name}: {setup.summary}"):
        recorder.log_notice(line)


def train_stage(name: str, context: StageContext, saved: Checkpoint | None, hooks: StageHooks) -> None:
    """Builds the stage's data and optimizer, restores the checkpoint `saved`, and runs the loop to the stage's end."""
    stage, context = build_stage(name, context, saved, hooks)
    state, start_step = start_state(stage, context, saved)
    waiting = [hooks.on_begin]  # until the first step has ended: a reward that cannot be loaded fails within it
    unsaved = [hooks.on_saved]
    saver = make_saver(state, context)

    def report_saved() -> None:
        while unsaved and saver.newest_step:
            unsaved.pop()()

    with catch_stop_signals() as stop_requested, report_compile_failures(stop_requested), ExitStack() as at_end:
        at_end.callback(report_saved)  # after the last write, also where the stage is stopped
        at_end.enter_context(saver)

        def should_stop() -> bool:
            return require_lock(context.lock) or stop_requested() or saver.failed or hooks.should_stop()

        loop_context = make_loop_context(state, context, saver, should_stop, hooks)

        def begin_once() -> None:
            while waiting:
                waiting.pop()()

        def extra_metrics() -> dict[str, Any]:
            begin_once()
            report_saved()
            return stage.extra_metrics() | saver.metrics()

        reporting = replace(stage, extra_metrics=extra_metrics)
        try:
            stopping = run_loop(reporting, context.model, state.optimizer, loop_context, start_step)
            begin_once()  # where no step was left to make
        finally:
            stage.batches.close()
    if not saved or "targets" in saved.state.get("totals", {}):  # an older checkpoint has not counted them
        require_targets(state)
    record_end(state, context, saver)
    if hooks.is_followed and context.world.all_reduce(float(stopping or stop_requested())):
        raise TrainingStopped(state.horizon.steps)


def build_stage(
    name: str, context: StageContext, saved: Checkpoint | None, hooks: StageHooks
) -> tuple[Stage, StageContext]:
    """Returns the stage with its data, and the context with the values that follow from the stage's length."""
    world, prepared = context.world, context.preparer.documents.prepared
    with world.local_main_process_first():
        stage = STAGE_BUILDERS[name](name, context)
    require_same_data(world, context.preparer, context.tokenizer)
    stage = hooks.adapt_stage(replace(stage, evals=hooks.select_evals(stage.evals)))
    context = derive_context(context, stage)
    native = load_native_library() is not None if name == "rl" and world.device.type == "cpu" else None
    history = extend_history(saved.state if saved else None, context.recipe, context.setup, prepared.read_files, native)
    if saved and (line := describe_other_dtype(history, int(saved.state["step"]))):
        context.recorder.log_notice(f"{name}: {line}")
    return stage, replace(context, history=tuple(history))


def derive_context(context: StageContext, stage: Stage) -> StageContext:
    """Returns the context with what follows from the stage's length; writes that into the run's recipe.toml."""
    config, given = context.model.config, context.recipe
    rows = read_pretrain_rows(context.run_dir, given, config)
    recipe = derive_stage(given, stage.name, stage.steps, stage.rows_per_step * config.context, config, rows)
    if recipe == given:
        return context
    for line in describe_derived(stage.name, given, recipe):
        context.recorder.log_notice(line)
    if context.world.is_main:
        write_text(context.run_dir / RECIPE_FILE, dump_toml(recipe))
        write_derived_values(context.run_dir, given, recipe)
        seal_run(context.run_dir)
    return replace(context, recipe=recipe)


def start_state(stage: Stage, context: StageContext, saved: Checkpoint | None) -> tuple[TrainState, int]:
    """Returns the optimizer and the counts of a stage as `saved` has them, and its step; without it, new ones and 0.

    Lines that were recorded after that step are removed. Raises UserError if the stage has fewer steps than `saved`.
    """
    name, recipe, recorder, setup = stage.name, context.recipe, context.recorder, context.setup
    lr_multiplier = recipe.stage_config(name).learning_rate or 1.0  # derived, if it was open
    table = recipe.optimizer if name == "pretrain" else replace(recipe.optimizer, tied_updates=0)
    optimizer = Optimizer(context.model, table, context.world, lr_multiplier, setup.compiled, setup.dtype)
    horizon = StageHorizon(
        stage.steps, stage.recorded_changes, is_recorded=bool(stage.recorded_changes), most=stage.most_steps
    )
    state = TrainState(stage, optimizer, Health(), Totals(), horizon)
    start_step = 0
    torch.manual_seed(recipe.seed)
    if saved:
        horizon.load_state_dict(saved.state.get("horizon", {}))
        start_step = state.restore(saved)
        recorder.log_notice(f"{name}: resuming after step {start_step} of {horizon.steps}")
    recorder.rewind(start_step or -1)
    if context.world.is_main:
        seal_stage(context.run_dir / name)
    if start_step > horizon.steps:
        raise UserError(
            f"{name}.steps: the checkpoint has {start_step} steps, more than the {horizon.steps} of the stage"
        )
    recorder.total_steps = horizon.steps
    return state, start_step


def make_loop_context(
    state: TrainState,
    context: StageContext,
    saver: CheckpointSaver,
    should_stop: Callable[[], bool],
    hooks: StageHooks,
) -> LoopContext:
    """Returns what the loop needs besides the stage.

    Args:
        state: the stage with its stream, the optimizer, and what the loop counts.
        context: what the stage's builder was given.
        saver: writes checkpoints.
        should_stop: returns whether a stop is requested.
        hooks: what a caller changes of the stage.
    """
    world, recorder, setup, run = context.world, context.recorder, context.setup, context.recipe.run
    flops = training_flops(context.model.config, adapter=context.adapter)  # of a token
    return LoopContext(
        world=world,
        recorder=recorder,
        save=saver,
        should_stop=should_stop,
        flops_per_token=flops["total"],
        head_flops_per_token=flops["head"],
        peak_flops=setup.peak_flops,
        datasheet_flops=find_datasheet_peak(setup, world.device),
        measure_peak=partial(replace_exceeded_peak, setup, world.device),
        health=state.health,
        rollback=Rollback(run.max_rollbacks, make_rollback(state, context, saver)),
        totals=state.totals,
        horizon=state.horizon,
        choose_steps=hooks.choose_steps,
        adapt_threads=hooks.adapt_threads or follow_free_cores(run, world, recorder.log_notice, hooks.first_threads),
    )


def require_targets(state: TrainState) -> None:
    """Raises UserError if no step of a finished stage had a token to learn from; RL has rewards instead."""
    name = state.stage.name
    if name != "rl" and not state.totals.targets:
        raise UserError(
            f"{name}: none of {state.horizon.steps:,} steps had a token to learn from, so the weights are as they "
            "were; see the stage's notices for what was cut or left out"
        )


def record_end(state: TrainState, context: StageContext, saver: CheckpointSaver) -> None:
    """Records that a stage is done: what was read, the totals, the steps that were planned if others were made.

    The run's recipe.toml has those that were made.
    """
    stage, horizon = state.stage, state.horizon
    reading = stage.count_reading()
    if line := describe_reading(stage.name, reading):
        context.recorder.log_notice(line)
    facts = ({"sources": reading} if reading else {}) | ({"planned_steps": horizon.planned} if horizon.changes else {})
    context.recorder.mark_done(**state.totals.state_dict(), **saver.metrics(), **facts)
    if context.world.is_main:
        end = {"stage": stage.name, "step": horizon.steps, "horizon": horizon.state_dict()}
        recipe = keep_made_steps(context.recipe, end)
        if recipe != context.recipe:
            write_text(context.run_dir / RECIPE_FILE, dump_toml(recipe))
            seal_run(context.run_dir)
        seal_stage(context.run_dir / stage.name)
