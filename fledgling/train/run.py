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
from fledgling.files import data_root
from fledgling.infer.engine import Engine
from fledgling.kernels.model import refuse
from fledgling.model.config import ModelConfig, from_table
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import fill
from fledgling.plan.flops import per_token
from fledgling.plan.measured import name_of
from fledgling.plan.plan import plan
from fledgling.record import Recorder, checkpoint, environment, write_json
from fledgling.runtime.signals import stop_requests
from fledgling.runtime.watchdog import watched
from fledgling.runtime.world import World, restarts
from fledgling.text.tokenizer import Tokenizer
from fledgling.toml import dump_toml
from fledgling.train import loop, supervised
from fledgling.train.health import Health, Rollback
from fledgling.train.prepare import Preparer
from fledgling.train.rl import build as rl
from fledgling.train.rl import critic, dpo
from fledgling.train.saving import Saver
from fledgling.train.setup import Setup, make_model, set_up
from fledgling.train.sources import check
from fledgling.train.stage import Eval, Stage
from fledgling.train.start import adopted, start_of
from fledgling.train.supervised import Context

BUILDERS = {
    "pretrain": supervised.build,
    "midtrain": supervised.build,
    "sft": supervised.build,
    "dpo": dpo.build,
    "rl": rl.build,
}


def run_stage(
    recipe: Recipe,
    name: str,
    resume: str = "auto",
    quiet: bool = False,
    choose: Callable[[tuple[Eval, ...]], tuple[Eval, ...]] = tuple,
) -> bool:
    """Run stage `name`; returns False if it was already done. Raises loop.Stopped after a signal, once all is saved.

    resume: "auto" goes on from the newest checkpoint, "never" begins the stage anew; choose: the evaluations to take
    of those the stage comes with.
    """
    run_dir, stage_dir = Path(recipe.run.out), Path(recipe.run.out) / name
    resume = "auto" if restarts() else resume
    if resume == "auto" and (stage_dir / "done.json").exists():
        return False
    before = parent(recipe, name, run_dir)
    check(recipe, [name])
    world = World.start(recipe.run.device)
    with watched(world, stage_dir, ends=(loop.Stopped,)):
        work(recipe, name, world, before, resume, quiet, choose)
    return True


def work(
    recipe: Recipe, name: str, world: World, before: Path | None, resume: str, quiet: bool, choose: Callable
) -> None:
    """What `run_stage` does once the ranks are together; `before` is the checkpoint the stage starts from."""
    run_dir, stage_dir = Path(recipe.run.out), Path(recipe.run.out) / name
    with world.main_first():
        begun = start_of(recipe, run_dir)
    before, recipe = before or begun, adopted(recipe, begun)
    setup = set_up(recipe.run, world)
    setup = replace(setup, memory=min(world.gather(setup.memory)))  # the same micro-batch on every rank
    with world.main_first():
        if world.is_main:
            begin_run(recipe, run_dir, setup, world)
            if resume == "never":
                shutil.rmtree(stage_dir, ignore_errors=True)
    passed_over: list[str] = []
    saved = checkpoint.latest(stage_dir / "checkpoints", warn=passed_over.append) if resume == "auto" else None
    saved = world.gather(saved)[0]  # what the main rank sees: a shared file system may show others an older state
    with Recorder(stage_dir, name, 0, quiet=quiet, sinks=recipe.run.sinks, active=world.is_main) as recorder:
        for line in (*passed_over, f"{name}: {setup.sentence}"):
            recorder.notice(line)
        preparer = Preparer(recipe, run_dir, recorder.notice, shown=world.is_main and not quiet)
        with world.each_machine_first():
            tokenizer = preparer.tokenizer()
        source = saved or before
        loaded = checkpoint.load(source) if source else None
        config = (
            ModelConfig.from_dict(loaded.state["model"]) if loaded else from_table(recipe.model, tokenizer.vocab_size)
        )
        sharded = recipe.optimizer.zero == 3 and world.size > 1  # made in the host's memory, and moved block by block
        model = weigh(make_model(config, setup, torch.device("cpu") if sharded else world.device), loaded, recipe.seed)
        if critic.wanted(recipe, name):
            critic.attach(model)
        if saved:
            model.load_state_dict({**loaded.tensors["model"], **loaded.tensors.get(critic.NAME, {})})

        def beginning() -> Transformer:
            """The model as it was when this stage began, frozen."""
            twin = Transformer(config, setup.dtype).to(world.device).requires_grad_(False)
            return weigh(twin, checkpoint.load(before, ("model",)) if before else None, recipe.seed)

        engine = Engine(model, tokenizer, world.device, setup.dtype)
        micro_batch = loaded.state.get("micro_batch") if saved else None
        context = Context(
            recipe, run_dir, world, model, tokenizer, engine, recorder, preparer, setup, beginning, micro_batch
        )
        with world.each_machine_first():
            stage = BUILDERS[name](name, context)
        same_data(world, preparer, tokenizer)
        stage = replace(stage, evals=choose(stage.evals))
        optimizer = Optimizer(model, recipe.optimizer, world, recipe.stage(name).rate, setup.compiled, setup.dtype)
        start, health = 0, Health()
        torch.manual_seed(recipe.seed)
        if saved:
            start = restore(loaded, stage, optimizer, health)
            recorder.notice(f"{name}: going on after step {start} of {stage.steps}")
        recorder.rewind(start or -1)
        recorder.total_steps = stage.steps
        save = saver(stage, optimizer, context, health)
        told = replace(stage, extra=lambda: stage.extra() | save.figures())
        rollback = Rollback(recipe.run.rollbacks, returner(stage, optimizer, context, health, save))
        with stop_requests() as asked, save:
            around = loop.Around(
                world,
                recorder,
                save,
                lambda: asked() or save.failed,
                per_token(config),
                setup.peak_flops,
                health,
                rollback,
            )
            try:
                loop.run(told, model, optimizer, around, start)
            finally:
                stage.batches.close()
        tokens = stage.steps * (getattr(recipe.stage(name), "batch_tokens", None) or 0)
        recorder.done(tokens=tokens, **save.figures())


def weigh(model: Transformer, loaded: checkpoint.Checkpoint | None, seed: int) -> Transformer:
    """Fill a model with a checkpoint's weights, or with those that the seed gives."""
    if loaded:
        model.load_state_dict(loaded.tensors["model"])
    else:
        model.initialize(seed)
    return model


def same_data(world: World, preparer: Preparer, tokenizer: Tokenizer) -> None:
    """Raise UserError on every rank unless all read the same bits: machines without a shared disk prepare their own."""
    for what, mine in (("tokenizer", tokenizer.fingerprint()), ("tokenized text", sorted(preparer.opened))):
        found = world.gather(mine)
        if other := next((rank for rank, one in enumerate(found) if one != found[0]), None):
            raise UserError(
                f"the {what} of rank {other} is not that of rank 0: its machine has other files under "
                f"{preparer.run_dir} or {data_root(preparer.recipe.run.data_dir)}; copy rank 0's, or share a disk"
            )


def begin_run(recipe: Recipe, run_dir: Path, setup: Setup, world: World) -> None:
    """Write the resolved recipe, the environment, and the plan for what it really runs on, into the run directory."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.toml").write_text(dump_toml(recipe), encoding="utf-8")
    write_json(run_dir / "environment.json", environment())
    card = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
    here = replace(
        recipe.run,
        dtype=setup.dtype_name,
        compile="on" if setup.compiled else "off",
        ranks=world.size,
        hardware=name_of(world.device.type, setup.dtype_name, card) or recipe.run.hardware,
    )
    write_json(run_dir / "plan.json", plan(replace(recipe, run=here), strict=False))


def parent(recipe: Recipe, name: str, run_dir: Path) -> Path | None:
    """The checkpoint a stage starts from: that of the stage before it in the recipe; None for the first."""
    before = [stage for stage in recipe.stages if STAGES.index(stage) < STAGES.index(name)]
    if name == "pretrain" or not before:
        return None
    found = checkpoint.latest(run_dir / before[-1] / "checkpoints")
    if found is None:
        raise UserError(
            f"{name} starts from {before[-1]}, and {run_dir / before[-1]} has no checkpoint: train it first"
        )
    refuse(checkpoint.read_state(found), found, "trained on")
    return found


def restore(loaded: checkpoint.Checkpoint, stage: Stage, optimizer: Optimizer, health: Health) -> int:
    """Bring stream, optimizer, counts and random numbers to where the checkpoint was taken; returns its step."""
    health.load_state_dict(loaded.state.get("health", {}))
    optimizer.load_tensors(loaded.tensors["optimizer"])
    stage.batches.load_state_dict(loaded.state["stream"])
    checkpoint.restore_random_state(loaded.tensors["random"])
    return int(loaded.state["step"])


def returner(stage: Stage, optimizer: Optimizer, context: Context, health: Health, save: Saver) -> Callable[[int], int]:
    """The function that goes back to the last checkpoint's weights, past the batches read since: see health.py."""

    def back(finished: int) -> int:
        save.wait()  # the last checkpoint may still be under way
        loaded, now = last_sound(context.run_dir / stage.name / "checkpoints"), replace(health)
        fill(context.model, {**loaded.tensors["model"], **loaded.tensors.get(critic.NAME, {})}, context.world)
        step = restore(loaded, stage, optimizer, health)
        stage.batches.skip(finished - step)
        health.load_state_dict({"skipped": now.skipped, "rollbacks": now.rollbacks + 1})
        context.recorder.rewind(step)
        context.recorder.notice(
            f"{stage.name}: loss or gradient not finite for {now.bad} steps up to {finished}: back to the weights of "
            f"step {step}, on with the batches after step {finished} (rollback {health.rollbacks})"
        )
        return step

    return back


def last_sound(directory: Path) -> checkpoint.Checkpoint:
    """The newest checkpoint that was not saved amid bad steps, as one is where a run was asked to stop there."""
    for path in sorted(directory.glob("step-*"), reverse=True):
        with suppress(UserError):  # a damaged one is passed over
            loaded = checkpoint.load(path)
            if not loaded.state.get("health", {}).get("bad"):
                return loaded
    return checkpoint.load(checkpoint.latest(directory))


def saver(stage: Stage, optimizer: Optimizer, context: Context, health: Health) -> Saver:
    """What saves everything needed to go on after so many finished steps; here is what is no tensor."""

    def state(step: int) -> dict:
        return {
            "stage": stage.name,
            "step": step,
            "stream": stage.batches.state_dict(),
            "model": context.model.config.to_dict(),
            "recipe": dump_toml(context.recipe),
            "tokenizer": context.tokenizer.fingerprint(),
            "micro_batch": stage.micro_batch,
            "health": health.state_dict(),
        }

    return Saver(
        context.run_dir / stage.name / "checkpoints",
        context.model,
        optimizer,
        context.world,
        state,
        {"tokenizer.json": context.run_dir / "tokenizer" / "tokenizer.json"},
        context.recipe.stage(stage.name).keep,
        on_the_way=stage.save_every > 0,
        say=context.recorder.notice,
    )
