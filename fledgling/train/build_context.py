"""What a stage computes with: tokenizer, model, weights and engine, before its data are read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from fledgling.config import ModelConfig, UserError
from fledgling.files import resolve_data_root
from fledgling.infer.engine import Engine
from fledgling.kernels.frozen_weights import measure_rounding_error
from fledgling.model.tied_initialization import tie_initial_weights
from fledgling.model.transformer import Transformer
from fledgling.optim.sharded import load_parameters
from fledgling.plan.teacher import plan_teacher
from fledgling.record import Recorder, checkpoint
from fledgling.record.checkpoint import Checkpoint
from fledgling.record.parent import choose_named_parent
from fledgling.record.run_lock import RunLock
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.context import StageContext
from fledgling.train.critic import attach_critic
from fledgling.train.data_preparer import DataPreparer
from fledgling.train.distill.teacher import read_teacher_config
from fledgling.train.resume_check import read_rows_per_step
from fledgling.train.source_positions import read_positions
from fledgling.train.stage_origin import StageOrigin, require_initial_weights
from fledgling.train.stage_weights import (
    StageWeights,
    build_stage_model,
    find_stage_weights,
    load_or_init,
    make_initial_model,
    read_trained,
    trains_value_head,
)


def build_context(
    origin: StageOrigin,
    world: World,
    setup: DeviceSetup,
    recorder: Recorder,
    preparer: DataPreparer,
    lock: RunLock | None = None,
) -> tuple[StageContext, Checkpoint | None]:
    """Returns tokenizer, model and engine of a stage, and the checkpoint that it resumes from.

    The weights are those of `origin.saved`, else of `origin.parent`; without both, they are initialized from the seed.

    Args:
        origin: the stage, its recipe, its run directory, and the checkpoints that it starts from.
        world: the ranks.
        setup: dtype and compiler.
        recorder: of the stage.
        preparer: of the run's tokenizer and data.
        lock: of the run directory.
    """
    recipe, name = origin.recipe, origin.name
    tokenizer, saved = load_tokenizer_and_checkpoint(origin, world, preparer)
    start = find_stage_weights(recipe.adapter, name, origin.run_dir, origin.saved, origin.parent)
    config = ModelConfig.from_dict(start.state["model"]) if start else recipe.model.resolve(tokenizer.vocab_size)
    model = build_start_model(origin, config, start, setup, world)
    log_adapter_notices(name, model, start, setup.compiled, recorder)
    if saved:
        load_parameters(model, read_trained(saved, config, start.adapter if start else None), world)
    context = StageContext(
        recipe=recipe,
        run_dir=origin.run_dir,
        world=world,
        model=model,
        tokenizer=tokenizer,
        engine=Engine(
            model, tokenizer, world.device, setup.engine_dtype, device_decode="auto" if setup.compiled else "graphs"
        ),
        recorder=recorder,
        preparer=preparer,
        setup=setup,
        load_initial_model=partial(load_initial_model, origin, model, start, setup, world),
        positions=read_positions(start.state, resumes=saved is not None) if start else {},
        start=replace(start, weights={}) if start else None,  # loaded: their memory is not needed twice
        parent=choose_named_parent(saved.state if saved else {}, origin.parent),
        lock=lock,
        teacher=plan_teacher(recipe, name, read_teacher_config(recipe, name)),
    )
    return (add_saved_sizes(context, name, saved) if saved else context), saved


def log_adapter_notices(
    name: str, model: Transformer, start: StageWeights | None, compiled: bool, recorder: Recorder
) -> None:
    """Logs what an adapter changes of a stage: blocks that are not compiled, and frozen matrices that are rounded.

    Args:
        name: of the stage.
        model: with the adapter attached.
        start: weights that the stage starts from.
        compiled: whether other blocks are.
        recorder: of the stage.
    """
    if compiled and model.blocks[0]._compiled_call_impl is None:
        recorder.log_notice(f"{name}: blocks with this adapter are not compiled here (docs/adapters.md)")
    if start and start.adapter and start.adapter.quantization != "none":
        error, kind = measure_rounding_error(model, start.weights), start.adapter.quantization
        recorder.log_notice(
            f"{name}: the frozen matrices are in {kind}, {error:.2%} of their norm away from the given ones; merged "
            "weights have this error"
        )


def load_tokenizer_and_checkpoint(
    origin: StageOrigin, world: World, preparer: DataPreparer
) -> tuple[Tokenizer, Checkpoint | None]:
    """Returns the tokenizer, trained where the run has none, and the checkpoint that the stage resumes from.

    The preparer then reads the data that the checkpoint has read.
    """
    prepared = preparer.documents.prepared
    may_replace = not (origin.saved or origin.parent or prepared.pinned)
    with world.local_main_process_first():
        tokenizer = preparer.load_or_train_tokenizer(may_replace=may_replace)
    if origin.saved is None:
        return tokenizer, None
    saved = checkpoint.load_checkpoint(origin.saved)
    prepared.pinned = saved.state.get("data", {})
    return tokenizer, saved


def build_start_model(
    origin: StageOrigin, config: ModelConfig, start: StageWeights | None, setup: DeviceSetup, world: World
) -> Transformer:
    """Returns the model of a stage as it is before the first step, with the value head that the stage trains.

    Args:
        origin: the stage, its recipe, its run directory, and the checkpoints that it starts from.
        config: of the model.
        start: weights to start from; None: initialized from the seed.
        setup: dtype and compiler.
        world: the ranks.
    """
    model = build_stage_model(origin.recipe, config, start, setup, world)
    if start is None and origin.name == "pretrain" and origin.recipe.optimizer.tied_updates:
        tie_initial_weights(model)
    if trains_value_head(origin.recipe, origin.name):
        attach_critic(model)
    return model


def load_initial_model(
    origin: StageOrigin, model: Transformer, start: StageWeights | None, setup: DeviceSetup, world: World
) -> Transformer:
    """Returns a frozen copy of the model as it was when the stage began.

    Raises UserError if the stage is resumed and the run no longer has these weights.

    Args:
        origin: the stage, its recipe, its run directory, and the checkpoints that it starts from.
        model: the one that is trained.
        start: weights that the stage began with; None: initialized from the seed.
        setup: dtype and compiler.
        world: the ranks.
    """
    if start and start.adapter:
        return make_initial_model(model, start)
    require_initial_weights(origin)
    initial = Transformer(model.config, setup.dtype).to(world.device).requires_grad_(False)
    initial.logprob_kernels = model.logprob_kernels
    weights = find_stage_weights(origin.recipe.adapter, origin.name, origin.run_dir, None, origin.parent)
    return load_or_init(initial, weights, origin.recipe.seed)


def add_saved_sizes(context: StageContext, name: str, saved: Checkpoint) -> StageContext:
    """Returns the context with the sizes of the checkpoint that the stage resumes from."""
    return replace(
        context,
        saved_micro_batch_size=saved.state.get("micro_batch"),
        saved_rows_per_step=read_rows_per_step(saved.state, context.recipe.stage_config(name)),
        saved_row_weights=saved.state.get("row_weights"),
    )


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
