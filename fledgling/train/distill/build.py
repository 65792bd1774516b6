"""Makes a text stage learn from a teacher: its batches get the teacher's predictions, its loss compares with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fledgling.config import ModelConfig, Recipe, UserError
from fledgling.data.batch import Batch
from fledgling.data.stream import MixtureStream
from fledgling.train.context import StageContext
from fledgling.train.distill.divergence import choose_divergences
from fledgling.train.distill.loss import distillation_loss
from fledgling.train.distill.spans import SpanAligner
from fledgling.train.distill.stored import PredictionStore
from fledgling.train.distill.teacher import (
    Teacher,
    compile_teacher,
    load_teacher,
    require_context,
    require_same_vocabulary,
)
from fledgling.train.loss import StepMetrics
from fledgling.train.read_files import OtherFileError
from fledgling.train.stage import Stage, Stream
from fledgling.train.wrapped_stream import WrappedStream

SOURCE = "distill.teacher"  # among what a stage's checkpoints record of its data


def require_valid_teaching(recipe: Recipe, stage: str, model: ModelConfig) -> None:
    """Raises UserError for settings of [distill] that do not go together in a stage. model: the one that learns."""
    config = recipe.distill
    if not recipe.has_teacher(stage):
        return
    if config.teacher is None:
        raise UserError('rl.algorithm="distill" needs a teacher: set distill.teacher to a run or a checkpoint')
    if stage == "rl":
        return
    if config.top_k is not None and config.match == "text":
        raise UserError(
            f'distill.top_k is {config.top_k}: with distill.match="text" likelihoods are compared and no tokens; '
            "leave distill.top_k out"
        )
    if config.top_k is not None and config.top_k >= model.vocab_size:
        raise UserError(
            f"distill.top_k is {config.top_k:,}: expected less than the vocabulary's {model.vocab_size:,} entries, "
            "such as 32; none for a live teacher with all of them"
        )


def load_fitting_teacher(context: StageContext, stage: str) -> Teacher:
    """Returns the teacher of a stage, which reads its rows and, unless text is matched, predicts its tokens.

    Raises UserError for a teacher that is missing, that does not fit, or that differs from the one that the stage began
    with.
    """
    recipe, student = context.recipe, context.model.config
    require_valid_teaching(recipe, stage, student)
    spec = str(recipe.distill.teacher)
    teacher = load_teacher(spec, context.world.device, context.setup.dtype)
    teacher.model.logprob_kernels = context.model.logprob_kernels
    require_context(teacher.model.config, student.context, spec)
    if stage == "rl" or recipe.distill.match == "tokens":
        require_same_vocabulary(teacher, context.tokenizer, student, spec)
    require_same_teacher(teacher, spec, context)
    context.recorder.log_notice(f"{stage}: learns from {spec}, {teacher.model.count_parameters():,} parameters")
    return teacher


def distill_stage(stage: Stage, context: StageContext) -> Stage:
    """Returns the stage with loss and batches of [distill]; no more steps, for which no predictions may be stored.

    Raises UserError for a teacher that does not fit.
    """
    config, metrics, setup = context.recipe.distill, StepMetrics(), context.setup
    teacher = load_fitting_teacher(context, stage.name)
    compile_teacher(teacher.model, setup.compiled and config.match == "tokens", context.world.device)
    divergences = choose_divergences(setup.compiled, context.world.device)
    loss = partial(distillation_loss, config=config, metrics=metrics, divergences=divergences)
    add_predictions: Callable[[Batch], Batch] | None = None
    if config.match == "text":
        add_predictions = SpanAligner(teacher, context.tokenizer).add_predictions
    elif config.top_k is not None:
        add_predictions = store_predictions(stage, context, teacher).add_predictions
    else:
        loss = partial(loss, teacher=teacher.model)
    batches = TaughtSteps(stage.batches, add_predictions, partial(config.teaches, steps=stage.steps))

    def extra_metrics() -> dict[str, Any]:
        sums = metrics.pop_sums(context.world)
        targets = max(1.0, sums.pop("targets", 0.0))
        names = {"divergence": "kl", "aligned": "aligned_fraction"}
        return stage.extra_metrics() | {names[name]: value / targets for name, value in sums.items()}

    return replace(stage, batches=batches, loss=loss, extra_metrics=extra_metrics, most_steps=0)


class TaughtSteps(WrappedStream):
    """A stream of which some steps learn from the teacher, by their number, so that resuming and ranks change nothing.

    Args:
        stream: of a stage, whose state has the number of its steps.
        add_predictions: of the teacher, to a batch; None: it is live.
        teaches: number of a step -> whether it learns from the teacher.
    """

    def __init__(
        self, stream: Stream, add_predictions: Callable[[Batch], Batch] | None, teaches: Callable[[int], bool]
    ) -> None:
        super().__init__(stream)
        self.add_predictions, self.teaches = add_predictions or self.change, teaches

    def next(self) -> list[Batch]:
        """Returns this rank's micro-batches of the next step."""
        is_taught = self.teaches(self.state_dict()["step"])
        self.change = self.add_predictions if is_taught else mark_text_only
        return super().next()


def mark_text_only(batch: Batch) -> Batch:
    """Returns the batch as one that learns from the text alone."""
    return replace(batch, text_only=torch.ones_like(batch.targets, dtype=torch.bool))


def store_predictions(stage: Stage, context: StageContext, teacher: Teacher) -> PredictionStore:
    """Returns the stored predictions of all rows of a stage, made first where they are not there."""
    config = context.recipe.distill
    top_k, temperature = config.top_k, config.temperature
    assert top_k is not None and isinstance(stage.batches, MixtureStream)
    prepared = context.preparer.documents.prepared
    vocab_size = context.model.config.vocab_size
    dtype = teacher.model.compute_dtype
    store = PredictionStore(prepared.directory, teacher.identity, dtype, top_k, temperature, vocab_size)
    steps = config.count_taught(stage.steps)
    store.store_steps(stage.batches.builder, steps, teacher.model, context.recorder.log_notice, config.every)
    prepared.used_inputs[SOURCE]["directories"] = [store.directory.name]
    return store


def require_same_teacher(teacher: Teacher, spec: str, context: StageContext) -> None:
    """Records the teacher for the stage's checkpoints. Raises OtherFileError unless a resumed stage began with it."""
    prepared = context.preparer.documents.prepared
    began = prepared.pinned.get(SOURCE, {}).get("digest")
    if began not in (None, teacher.identity):
        raise OtherFileError(
            f"distill.teacher: {spec} has other weights than the teacher with which this stage began: put that one "
            "back, or restart the stage with --resume never"
        )
    prepared.used_inputs[SOURCE] = {"digest": teacher.identity, "directories": []}
