"""One step of a stage on random rows: traced without data on the meta device, or really made on an accelerator.

`trace_step` runs the loop's own step with tensors that have shapes and no values, so a shape, a dtype or an operation
that does not go together fails before anything is prepared or paid for. `make_trial_step` makes the step at its full
size, writes a checkpoint of it, and returns its memory and time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fledgling.config import DPOConfig, ModelConfig, Recipe, RLConfig, StageConfig
from fledgling.config.distill import TEXT_STAGES
from fledgling.data.batch import Batch
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.kernels.qat import fake_quantize
from fledgling.model.adapter import attach_adapter, initialize_adapter
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.plan.teacher import STORED
from fledgling.plan.training_step import TrainingStep
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.device_memory import measure_peak_memory
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.critic import attach_critic
from fledgling.train.distill.divergence import choose_divergences
from fledgling.train.distill.loss import distillation_loss
from fledgling.train.distill.teacher import compile_teacher, hold_matrices
from fledgling.train.loop import train_step
from fledgling.train.loss import StepMetrics, next_token_loss
from fledgling.train.preference_loss import preference_batch_loss
from fledgling.train.random_batches import RandomBatches, add_predictions, add_stage_fields
from fledgling.train.rl.algorithm import make_algorithm
from fledgling.train.saver import CheckpointSaver
from fledgling.train.stage import Stage
from fledgling.train.stage_weights import build_adapted_model, split_trained, trains_value_head

HOST_READS = {"_local_scalar_dense", "item", "is_nonzero", "equal"}


@dataclass(frozen=True)
class TrialStep:
    """A step that was made: seconds of the second of two steps, bytes at the peak, bytes of its checkpoint."""

    seconds: float
    peak_bytes: int
    checkpoint_bytes: int
    rollout_seconds: float = 0.0  # of a round of RL


class _AnswerHostReads(TorchDispatchMode):
    """Answers what the host reads from meta tensors with ones and zeros: they have no values."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.__name__.split(".")[0]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.device.type == "meta" for tensor in given):
            if name in HOST_READS:
                return 1.0
            if name == "_to_copy" and kwargs.get("device") == torch.device("cpu"):
                return torch.zeros(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        return function(*args, **kwargs)


def stage_loss(recipe: Recipe, name: str, teacher: Transformer | None = None) -> Callable[[Transformer, Batch], Tensor]:
    """Returns the loss of a stage, which its builder gives to the loop too."""
    table = recipe.stage_config(name)
    if isinstance(table, DPOConfig):
        return partial(preference_batch_loss, config=table, metrics=StepMetrics())
    if isinstance(table, RLConfig):
        return partial(make_algorithm(table).loss, kl_weight=table.kl_weight, metrics=StepMetrics())
    if recipe.has_teacher(name):
        return partial(distillation_loss, config=recipe.distill, teacher=teacher, metrics=StepMetrics())
    return next_token_loss


def make_random_stage(
    recipe: Recipe, name: str, config: ModelConfig, rows: int, passes: int, teacher: Transformer | None = None
) -> Stage:
    """Returns a stage of one step: `passes` micro-batches of `rows` random rows, with its own loss.

    Args:
        name: of the stage.
        config: of the model.
        rows: of a micro-batch.
        passes: micro-batches.
        teacher: that the stage learns from, if it is live.
    """
    stream = RandomBatches(config.vocab_size, rows, config.context, recipe.seed, passes)
    stream.batch = add_stage_fields(stream.batch, recipe.stage_config(name))
    if recipe.has_teacher(name) and name != "rl":
        stream.batch = add_predictions(stream.batch, recipe.distill)
    return Stage(name, 1, stream, stage_loss(recipe, name, teacher), lambda progress: 1.0)


def compile_teaching(
    stage: Stage, recipe: Recipe, teacher: Transformer | None, compiled: bool, device: torch.device
) -> Stage:
    """Returns the stage with teacher and divergences compiled as in a run; the same where it learns from no teacher.

    Args:
        stage: with its loss.
        recipe: of the stage.
        teacher: a live one; None: there is none, or its predictions are stored.
        compiled: whether a run compiles them.
        device: of the teacher.
    """
    if stage.name not in TEXT_STAGES or not recipe.has_teacher(stage.name):
        return stage
    if teacher is not None:
        compile_teacher(teacher, compiled and recipe.distill.match == "tokens", device)
    loss: Callable[..., Tensor] = stage.loss
    return replace(stage, loss=partial(loss, divergences=choose_divergences(compiled, device)))


def _prepare_training(model: Transformer, recipe: Recipe, name: str) -> None:
    """Adds the adapter and the critic that the stage trains, and rounds the weights that it rounds."""
    if recipe.adapter.trains_in(name):
        attach_adapter(model, recipe.adapter, model.config)
    if trains_value_head(recipe, name):
        attach_critic(model)
    table = recipe.stage_config(name)
    if isinstance(table, StageConfig) and table.quantization_aware != "none":
        fake_quantize(model, table.quantization_aware)


def trace_step(
    recipe: Recipe, name: str, config: ModelConfig, dtype: torch.dtype, teacher: ModelConfig | None = None
) -> None:
    """Runs forward, backward and update of a stage on one row, with meta tensors. Raises what a real step would.

    Args:
        name: of the stage.
        config: of the model.
        dtype: of the products.
        teacher: of a live teacher; None: there is none.
    """
    device = torch.device("meta")
    world = World(0, 1, 0, device)
    with device:
        teaching = Transformer(teacher, dtype).requires_grad_(False) if teacher else None
    stage = make_random_stage(recipe, name, config, 1, 1, teaching)
    batches = [batch.to(device) for batch in stage.batches.next()]
    # torch.compile leaves a function for ever uncompiled that it first meets under a dispatch mode.
    with torch.compiler.set_stance("force_eager"), _AnswerHostReads():
        with device:
            model = Transformer(config, dtype)
            _prepare_training(model, recipe, name)
            optimizer = Optimizer(model, recipe.optimizer, world, 1.0, False, dtype)
        train_step(stage, model, optimizer, batches, world)


def make_trial_step(
    recipe: Recipe,
    name: str,
    config: ModelConfig,
    setup: DeviceSetup,
    world: World,
    split: TrainingStep,
    directory: Path,
    tokenizer: Tokenizer | None = None,
) -> TrialStep:
    """Makes two steps of a stage at full size, and a checkpoint of them. Every rank calls it.

    Args:
        split: rows of a micro-batch and passes of a rank.
        directory: where the checkpoint is written; it is deleted again.
        tokenizer: with it, RL also generates a round of answers to random prompts; None: it does not.
    """
    adapter = recipe.adapter if recipe.adapter.trains_in(name) else None
    fill = partial(Transformer.initialize, seed=recipe.seed)
    model = build_adapted_model(config, adapter, fill, setup, world, recipe.optimizer.zero_stage)
    model.recompute = split.recompute
    _prepare_training(model, recipe, name)
    if adapter:
        initialize_adapter(model, recipe.seed)
    optimizer = Optimizer(model, recipe.optimizer, world, 1.0, setup.compiled, setup.dtype)
    teacher = None
    if split.teacher is not None and split.teacher.role != STORED:
        teacher = hold_matrices(Transformer(split.teacher.config), setup.dtype).to(world.device)
        teacher.logprob_kernels = model.logprob_kernels
    stage = make_random_stage(recipe, name, config, split.rows, split.micro_batches, teacher)
    stage = compile_teaching(stage, recipe, teacher, setup.compiled, world.device)
    reference = None
    if split.has_reference_model:
        reference = Transformer(config, setup.dtype).to(world.device).requires_grad_(False)  # only its memory counts
        reference.logprob_kernels = model.logprob_kernels
    rollout_seconds = 0.0
    with measure_peak_memory(world.device) as peak:
        if name == "rl" and tokenizer is not None:
            rollout_seconds = _time_rollouts(
                recipe.rl, Engine(model, tokenizer, world.device, setup.engine_dtype), world
            )
        for _ in range(2):  # the first compiles
            start = time.perf_counter()
            train_step(stage, model, optimizer, stage.batches.next(), world)
            seconds = time.perf_counter() - start
    del reference
    with TemporaryDirectory(dir=directory, ignore_cleanup_errors=True) as folder:
        state = {"stage": name, "step": 1, "model": config.to_dict()}
        split_tensors = split_trained(model, adapter)
        saver = CheckpointSaver(
            Path(folder),
            model,
            optimizer,
            world,
            lambda step: state | {"step": step},
            {},
            1,
            saves_during_training=False,
            split=split_tensors,
        )
        with saver:
            saver(1)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return TrialStep(seconds, peak.bytes, size, rollout_seconds)


def _time_rollouts(table: RLConfig, engine: Engine, world: World) -> float:
    """Returns the seconds of one round of this rank's answers, of full length, to random prompts."""
    prompts = -(-table.prompts_per_round // world.size)
    length = max(1, engine.context - table.max_new_tokens)
    generator = torch.Generator().manual_seed(world.rank)
    ids = torch.randint(engine.tokenizer.vocab_size, (prompts, length), generator=generator).tolist()
    sampling = SamplingParams(temperature=table.temperature, max_new_tokens=table.max_new_tokens, seed=0)
    start = time.perf_counter()
    requests = [prompt for prompt in ids for _ in range(table.group_size)]
    engine.generate(requests, sampling, max_batch_size=len(requests))
    return time.perf_counter() - start
