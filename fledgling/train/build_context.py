"""What a stage computes with: tokenizer, model, weights and engine, before its data are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fledgling.config import ModelConfig, Recipe, UserError
from fledgling.files import resolve_data_root
from fledgling.infer.engine import Engine
from fledgling.model.tied_start import tie_initial_weights
from fledgling.model.transformer import Transformer
from fledgling.optim.sharded import load_parameters
from fledgling.plan.teacher import plan_teacher
from fledgling.record import Recorder, checkpoint
from fledgling.record.checkpoint import Checkpoint
from fledgling.record.parent import describe_parent
from fledgling.record.run_lock import RunLock
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.context import StageContext
from fledgling.train.critic import attach_critic
from fledgling.train.distill.teacher import read_teacher_config
from fledgling.train.positions import read_positions
from fledgling.train.prepare import DataPreparer
from fledgling.train.resume_check import read_rows_per_step
from fledgling.train.stage_weights import (
    build_stage_model,
    find_stage_weights,
    load_or_init,
    make_initial_model,
    read_trained,
    trains_value_head,
)


def build_context(
    recipe: Recipe,
    name: str,
    world: World,
    setup: DeviceSetup,
    recorder: Recorder,
    preparer: DataPreparer,
    saved: Path | None,
    parent: Path | None,
    lock: RunLock | None = None,
) -> tuple[StageContext, Checkpoint | None]:
    """Returns tokenizer, model and engine of a stage, and the checkpoint that it resumes from.

    The weights are those of `saved`, else of `parent`; without both, they are initialized from the seed.
    """
    pinned = preparer.documents.prepared.pinned
    with world.local_main_process_first():
        tokenizer = preparer.load_or_train_tokenizer(may_replace=not (saved or parent or pinned))
    loaded = checkpoint.load_checkpoint(saved) if saved else None
    if loaded:
        preparer.documents.prepared.pinned = loaded.state.get("data", {})
    start = find_stage_weights(recipe, name, Path(recipe.run.out), saved, parent)
    config = ModelConfig.from_dict(start.state["model"]) if start else recipe.model.resolve(tokenizer.vocab_size)
    model = build_stage_model(recipe, config, start, setup, world)
    if start is None and name == "pretrain" and recipe.optimizer.tied_updates:
        tie_initial_weights(model)
    if setup.compiled and model.blocks[0]._compiled_call_impl is None:
        recorder.log_notice(f"{name}: blocks with this adapter are not compiled here (docs/adapters.md)")
    if trains_value_head(recipe, name):
        attach_critic(model)
    adapter = start.adapter if start else None
    if loaded:
        load_parameters(model, read_trained(loaded, config, adapter), world)

    def load_initial_model() -> Transformer:
        if start and adapter:
            return make_initial_model(model, start)
        initial = Transformer(config, setup.dtype).to(world.device).requires_grad_(False)
        return load_or_init(initial, find_stage_weights(recipe, name, context.run_dir, None, parent), recipe.seed)

    context = StageContext(
        recipe=recipe,
        run_dir=Path(recipe.run.out),
        world=world,
        model=model,
        tokenizer=tokenizer,
        engine=Engine(
            model, tokenizer, world.device, setup.dtype, device_decode="auto" if setup.compiled else "graphs"
        ),
        recorder=recorder,
        preparer=preparer,
        setup=setup,
        load_initial_model=load_initial_model,
        positions=read_positions(start.state, resumes=saved is not None) if start else {},
        start=replace(start, weights={}) if start else None,  # loaded: their memory is not needed twice
        saved_micro_batch_size=loaded.state.get("micro_batch") if loaded else None,
        saved_rows_per_step=read_rows_per_step(loaded.state, recipe, name) if loaded else None,
        saved_row_weights=loaded.state.get("row_weights") if loaded else None,
        parent=describe_parent(parent),
        lock=lock,
        teacher=plan_teacher(recipe, name, read_teacher_config(recipe, name)),
    )
    return context, loaded


def require_same_data(world: World, preparer: DataPreparer, tokenizer: Tokenizer) -> None:
    """Raises UserError on every rank unless all ranks read the same data.

    Machines without a shared disk prepare their own.
    """
    for what, local in (("tokenizer", tokenizer.fingerprint()), ("tokenized text", sorted(preparer.shard_digests))):
        digests = world.all_gather_object(local)
        if other := next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None):
            raise UserError(
                f"the {what} of rank {other} is not that of rank 0: its machine has other files under "
                f"{preparer.run_dir} or {resolve_data_root(preparer.data_dir)}; copy rank 0's, or share a disk"
            )
