"""One stage of a recipe, put together and run: tokenizer, model, optimizer, stream, checkpoint, loop.

A stage lives in RUN/<stage>. It starts from the last checkpoint of the stage before it (pretraining from the seed),
goes on from its own newest checkpoint, and is left alone once it is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from fledgling.config import STAGES, Recipe, UserError
from fledgling.files import resolve_data_root
from fledgling.infer.engine import Engine
from fledgling.kernels.quantized_model import require_unquantized
from fledgling.model.build import build_model
from fledgling.model.config import ModelConfig, config_from_table
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import load_parameters
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.measured_speed import device_name
from fledgling.plan.plan import make_plan
from fledgling.record import Recorder, checkpoint, collect_environment, write_json
from fledgling.runtime.device import DeviceSetup, set_up_device
from fledgling.runtime.signals import catch_stop_signals
from fledgling.runtime.watchdog import run_watchdog
from fledgling.runtime.world import World, get_restart_count
from fledgling.text.tokenizer import Tokenizer
from fledgling.toml import dump_toml
from fledgling.train import loop, supervised
from fledgling.train.health import Health, Rollback
from fledgling.train.init_from import find_init_checkpoint, recipe_from_checkpoint
from fledgling.train.prepare import DataPreparer
from fledgling.train.rl import build as rl
from fledgling.train.rl import critic, dpo
from fledgling.train.saver import CheckpointSaver
from fledgling.train.stage import Eval, Stage
from fledgling.train.stage_rows import require_data
from fledgling.train.supervised import StageContext

STAGE_BUILDERS = {
    "pretrain": supervised.build_supervised_stage,
    "midtrain": supervised.build_supervised_stage,
    "sft": supervised.build_supervised_stage,
    "dpo": dpo.build_dpo_stage,
    "rl": rl.build_rl_stage,
}


def run_stage(
    recipe: Recipe,
    name: str,
    resume: str = "auto",
    quiet: bool = False,
    select_evals: Callable[[tuple[Eval, ...]], tuple[Eval, ...]] = tuple,
) -> bool:
    """Run stage `name`; returns False if it was already done. Raises loop.Stopped after a signal, once all is saved.

    resume: "auto" goes on from the newest checkpoint, "never" begins the stage anew; choose: the evaluations to take
    of those the stage comes with.
    """
    run_dir, stage_dir = Path(recipe.run.out), Path(recipe.run.out) / name
    resume = "auto" if get_restart_count() else resume
    if resume == "auto" and (stage_dir / "done.json").exists():
        return False
    before = parent_checkpoint(recipe, name, run_dir)
    require_data(recipe, [name])
    world = World.start(recipe.run.device)
    with run_watchdog(world, stage_dir, collective_exceptions=(loop.TrainingStopped,)):
        train_stage(recipe, name, world, before, resume, quiet, select_evals)
    return True


def train_stage(
    recipe: Recipe, name: str, world: World, parent: Path | None, resume: str, quiet: bool, select_evals: Callable
) -> None:
    """What `run_stage` does once the ranks are together; `before` is the checkpoint the stage starts from."""
    run_dir, stage_dir = Path(recipe.run.out), Path(recipe.run.out) / name
    with world.main_process_first():
        begun = find_init_checkpoint(recipe, run_dir)
    parent, recipe = parent or begun, recipe_from_checkpoint(recipe, begun)
    setup = set_up_device(recipe.run, world)
    setup = replace(
        setup, memory_limit=min(world.all_gather_object(setup.memory_limit))
    )  # the same micro-batch on every rank
    with world.main_process_first():
        if world.is_main:
            write_run_files(recipe, run_dir, setup, world)
            if resume == "never":
                shutil.rmtree(stage_dir, ignore_errors=True)
    passed_over: list[str] = []
    saved = (
        checkpoint.find_latest_checkpoint(stage_dir / "checkpoints", warn=passed_over.append)
        if resume == "auto"
        else None
    )
    saved = world.all_gather_object(saved)[
        0
    ]  # what the main rank sees: a shared file system may show others an older state
    with Recorder(stage_dir, name, 0, quiet=quiet, loggers=recipe.run.loggers, enabled=world.is_main) as recorder:
        for line in (*passed_over, f"{name}: {setup.summary}"):
            recorder.log_notice(line)
        preparer = DataPreparer(recipe, run_dir, recorder.log_notice, show_progress=world.is_main and not quiet)
        with world.local_main_process_first():
            tokenizer = preparer.load_or_train_tokenizer()
        source = saved or parent
        loaded = checkpoint.load_checkpoint(source) if source else None
        config = (
            ModelConfig.from_dict(loaded.state["model"])
            if loaded
            else config_from_table(recipe.model, tokenizer.vocab_size)
        )
        sharded = (
            recipe.optimizer.zero_stage == 3 and world.size > 1
        )  # made in the host's memory, and moved block by block
        model = load_or_init(
            build_model(config, setup, torch.device("cpu") if sharded else world.device), loaded, recipe.seed
        )
        if critic.uses_critic(recipe, name):
            critic.attach_critic(model)
        if saved:
            model.load_state_dict({**loaded.tensors["model"], **loaded.tensors.get(critic.CRITIC, {})})

        def beginning() -> Transformer:
            """The model as it was when this stage began, frozen."""
            twin = Transformer(config, setup.dtype).to(world.device).requires_grad_(False)
            return load_or_init(twin, checkpoint.load_checkpoint(parent, ("model",)) if parent else None, recipe.seed)

        engine = Engine(model, tokenizer, world.device, setup.dtype)
        micro_batch = loaded.state.get("micro_batch_size") if saved else None
        context = StageContext(
            recipe, run_dir, world, model, tokenizer, engine, recorder, preparer, setup, beginning, micro_batch
        )
        with world.local_main_process_first():
            stage = STAGE_BUILDERS[name](name, context)
        require_same_data(world, preparer, tokenizer)
        stage = replace(stage, evals=select_evals(stage.evals))
        optimizer = Optimizer(
            model, recipe.optimizer, world, recipe.stage_config(name).learning_rate, setup.compiled, setup.dtype
        )
        start, health = 0, Health()
        torch.manual_seed(recipe.seed)
        if saved:
            start = restore_state(loaded, stage, optimizer, health)
            recorder.log_notice(f"{name}: going on after step {start} of {stage.steps}")
        recorder.rewind(start or -1)
        recorder.total_steps = stage.steps
        save = make_saver(stage, optimizer, context, health)
        told = replace(stage, extra_metrics=lambda: stage.extra_metrics() | save.metrics())
        rollback = Rollback(recipe.run.max_rollbacks, make_rollback(stage, optimizer, context, health, save))
        with catch_stop_signals() as asked, save:
            around = loop.LoopContext(
                world,
                recorder,
                save,
                lambda: asked() or save.failed,
                training_flops_per_token(config),
                setup.peak_flops,
                health,
                rollback,
            )
            try:
                loop.run_loop(told, model, optimizer, around, start)
            finally:
                stage.batches.close()
        tokens = stage.steps * (getattr(recipe.stage_config(name), "batch_tokens", None) or 0)
        recorder.mark_done(tokens=tokens, **save.metrics())


def load_or_init(model: Transformer, loaded: checkpoint.Checkpoint | None, seed: int) -> Transformer:
    """Fill a model with a checkpoint's weights, or with those that the seed gives."""
    if loaded:
        model.load_state_dict(loaded.tensors["model"])
    else:
        model.initialize(seed)
    return model


def require_same_data(world: World, preparer: DataPreparer, tokenizer: Tokenizer) -> None:
    """Raise UserError on every rank unless all read the same bits: machines without a shared disk prepare their own."""
    for what, mine in (("tokenizer", tokenizer.fingerprint()), ("tokenized text", sorted(preparer.shard_digests))):
        found = world.all_gather_object(mine)
        if other := next((rank for rank, one in enumerate(found) if one != found[0]), None):
            raise UserError(
                f"the {what} of rank {other} is not that of rank 0: its machine has other files under "
                f"{preparer.run_dir} or {resolve_data_root(preparer.recipe.run.data_dir)}; copy rank 0's, or share a disk"
            )


def write_run_files(recipe: Recipe, run_dir: Path, setup: DeviceSetup, world: World) -> None:
    """Write the resolved recipe, the environment, and the plan for what it really runs on, into the run directory."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.toml").write_text(dump_toml(recipe), encoding="utf-8")
    write_json(run_dir / "environment.json", collect_environment())
    card = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
    here = replace(
        recipe.run,
        dtype=setup.dtype_name,
        compile="on" if setup.compiled else "off",
        ranks=world.size,
        hardware=device_name(world.device.type, setup.dtype_name, card) or recipe.run.hardware,
    )
    write_json(run_dir / "plan.json", make_plan(replace(recipe, run=here), strict=False))


def parent_checkpoint(recipe: Recipe, name: str, run_dir: Path) -> Path | None:
    """The checkpoint a stage starts from: that of the stage before it in the recipe; None for the first."""
    before = [stage for stage in recipe.stages if STAGES.index(stage) < STAGES.index(name)]
    if name == "pretrain" or not before:
        return None
    found = checkpoint.find_latest_checkpoint(run_dir / before[-1] / "checkpoints")
    if found is None:
        raise UserError(
            f"{name} starts from {before[-1]}, and {run_dir / before[-1]} has no checkpoint: train it first"
        )
    require_unquantized(checkpoint.read_checkpoint_state(found), found, "trained on")
    return found


def restore_state(loaded: checkpoint.Checkpoint, stage: Stage, optimizer: Optimizer, health: Health) -> int:
    """Bring stream, optimizer, counts and random numbers to where the checkpoint was taken; returns its step."""
    health.load_state_dict(loaded.state.get("health", {}))
    optimizer.load_full_state_dict(loaded.tensors["optimizer"])
    stage.batches.load_state_dict(loaded.state["stream"])
    checkpoint.set_rng_state(loaded.tensors["random"])
    return int(loaded.state["step"])


def make_rollback(
    stage: Stage, optimizer: Optimizer, context: StageContext, health: Health, save: CheckpointSaver
) -> Callable[[int], int]:
    """The function that goes back to the last checkpoint's weights, past the batches read since: see health.py."""

    def back(finished: int) -> int:
        save.wait()  # the last checkpoint may still be under way
        loaded, now = latest_healthy_checkpoint(context.run_dir / stage.name / "checkpoints"), replace(health)
        load_parameters(
            context.model, {**loaded.tensors["model"], **loaded.tensors.get(critic.CRITIC, {})}, context.world
        )
        step = restore_state(loaded, stage, optimizer, health)
        stage.batches.skip(finished - step)
        health.load_state_dict({"skipped": now.skipped, "rollbacks": now.rollbacks + 1})
        context.recorder.rewind(step)
        context.recorder.log_notice(
            f"{stage.name}: loss or gradient not finite for {now.bad} steps up to {finished}: back to the weights of "
            f"step {step}, on with the batches after step {finished} (rollback {health.rollbacks})"
        )
        return step

    return back


def latest_healthy_checkpoint(directory: Path) -> checkpoint.Checkpoint:
    """The newest checkpoint that was not saved amid bad steps, as one is where a run was asked to stop there."""
    for path in sorted(directory.glob("step-*"), reverse=True):
        with suppress(UserError):  # a damaged one is passed over
            loaded = checkpoint.load_checkpoint(path)
            if not loaded.state.get("health", {}).get("bad"):
                return loaded
    return checkpoint.load_checkpoint(checkpoint.find_latest_checkpoint(directory))


def make_saver(stage: Stage, optimizer: Optimizer, context: StageContext, health: Health) -> CheckpointSaver:
    """What saves everything needed to go on after so many finished steps; here is what is no tensor."""

    def state(step: int) -> dict:
        return {
            "stage": stage.name,
            "step": step,
            "stream": stage.batches.state_dict(),
            "model": context.model.config.to_dict(),
            "recipe": dump_toml(context.recipe),
            "tokenizer": context.tokenizer.fingerprint(),
            "micro_batch_size": stage.micro_batch_size,
            "health": health.state_dict(),
        }

    return CheckpointSaver(
        context.run_dir / stage.name / "checkpoints",
        context.model,
        optimizer,
        context.world,
        state,
        {"tokenizer.json": context.run_dir / "tokenizer" / "tokenizer.json"},
        context.recipe.stage_config(stage.name).keep_checkpoints,
        saves_during_training=stage.save_every > 0,
        log=context.recorder.log_notice,
    )
