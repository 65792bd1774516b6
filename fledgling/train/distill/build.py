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
from fledgling.model.transformer import Transformer
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

AddPredictions = Callable[[Batch], Batch]
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


def load_stage_teacher(stage: str, context: StageContext) -> Teacher:
    """Returns the teacher of a text stage, compiled where the model is. Raises as `load_fitting_teacher` does."""
    teacher = load_fitting_teacher(context, stage)
    compiled = context.setup.compiled and context.recipe.distill.match == "tokens"
    compile_teacher(teacher.model, compiled, context.world.device)
    return teacher


def distill_stage(stage: Stage, context: StageContext) -> Stage:
    """Returns the stage with loss and batches of [distill]; no more steps, for which no predictions may be stored.

    Raises UserError for a teacher that does not fit.
    """
    config, metrics, setup = context.recipe.distill, StepMetrics(), context.setup
    teacher = load_stage_teacher(stage.name, context)
    divergences = choose_divergences(setup.compiled, context.world.device)
    loss = partial(distillation_loss, config=config, metrics=metrics, divergences=divergences)
    add_predictions: AddPredictions | None = None
    store_more: Callable[[int], AddPredictions] | None = None
    if config.match == "text":
        add_predictions = SpanAligner(teacher, context.tokenizer).add_predictions
    elif config.top_k is not None:
        add_predictions = store_predictions(stage, context, teacher.identity, lambda: teacher.model)
        store_more = partial(store_more_predictions, stage, context, teacher.identity)
    else:
        loss = partial(loss, teacher=teacher.model)
    batches = TaughtSteps(stage.batches, add_predictions, partial(config.teaches, steps=stage.steps), store_more)

    def extra_metrics() -> dict[str, Any]:
        sums = metrics.pop_sums(context.world)
        targets = max(1.0, sums.pop("targets", 0.0))
        names = {"divergence": "kl", "aligned": "aligned_fraction"}
        return stage.extra_metrics() | {names[name]: value / targets for name, value in sums.items()}

    return replace(stage, batches=batches, loss=loss, extra_metrics=extra_metrics, most_steps=0)


class TaughtSteps(WrappedStream):
    """A stream of which some steps learn from the teacher, by the number of the steps that were made before them.

    So resuming, ranks and the batches that a rollback skips change nothing.

    Args:
        stream: of a stage, whose state has the number of its steps, and how many of them were skipped.
        add_predictions: of the teacher, to a batch; None: it is live.
        teaches: number of steps made -> whether the next one learns from the teacher.
        store_more: number of steps skipped -> adds predictions from then on; None: as before.
    """

    def __init__(
        self,
        stream: Stream,
        add_predictions: AddPredictions | None,
        teaches: Callable[[int], bool],
        store_more: Callable[[int], AddPredictions] | None = None,
    ) -> None:
        super().__init__(stream)
        self.add_predictions, self.teaches = add_predictions or self.change, teaches
        self.store_more, self.skipped = store_more, 0

    def next(self) -> list[Batch]:
        """Returns this rank's micro-batches of the next step."""
        is_taught = self.teaches(self.state_dict()["step"] - self.skipped)
        self.change = self.add_predictions if is_taught else mark_text_only
        return super().next()

    def load_state_dict(self, state: dict) -> None:
        """Continues where `state_dict` was taken. Every rank calls it."""
        super().load_state_dict(state)
        self._count_skipped()

    def skip(self, steps: int) -> None:
        """Skips the stream's next steps. Every rank calls it."""
        super().skip(steps)
        self._count_skipped()

    def _count_skipped(self) -> None:
        before, self.skipped = self.skipped, int(self.state_dict().get("skipped", 0))
        if self.store_more is not None and self.skipped != before:
            self.add_predictions = self.store_more(self.skipped)


def mark_text_only(batch: Batch) -> Batch:
    """Returns the batch as one that learns from the text alone."""
    return replace(batch, text_only=torch.ones_like(batch.targets, dtype=torch.bool))


def store_predictions(
    stage: Stage, context: StageContext, identity: str, load: Callable[[], Transformer], skipped: int = 0
) -> AddPredictions:
    """Returns what adds the stored predictions of a stage's rows, made first where they are not there.

    Args:
        stage: that learns.
        context: what all builders share.
        identity: of the teacher.
        load: returns the teacher; is called where some predictions are missing.
        skipped: steps of the stage's data that rollbacks have left out.
    """
    config, vocab_size = context.recipe.distill, context.model.config.vocab_size
    assert config.top_k is not None and isinstance(stage.batches, MixtureStream)
    prepared, log = context.preparer.documents.prepared, context.recorder.log_notice
    store = PredictionStore(
        prepared.directory, identity, context.setup.dtype, config.top_k, config.temperature, vocab_size
    )
    store.store_steps(stage.batches.builder, config.list_taught(stage.steps, skipped), load, log)
    prepared.used_inputs[SOURCE]["directories"] = [store.directory.name]
    return store.add_predictions


def store_more_predictions(stage: Stage, context: StageContext, identity: str, skipped: int) -> AddPredictions:
    """Returns what `store_predictions` does, for a stage that has skipped steps. Every rank calls it.

    The teacher, which is not in memory any more, is loaded again where predictions are missing. Raises UserError where
    it is gone or has changed.
    """
    with context.world.local_main_process_first():
        return store_predictions(
            stage, context, identity, lambda: load_stage_teacher(stage.name, context).model, skipped
        )


def require_same_teacher(teacher: Teacher, spec: str, context: StageContext) -> None:
    """Records the teacher for the stage's checkpoints. Raises OtherFileError unless a resumed stage began with it."""
    prepared = context.preparer.documents.prepared
    recorded = {**prepared.pinned, **prepared.used_inputs}  # also of one that is loaded again
    began = recorded.get(SOURCE, {}).get("digest")
    if began not in (None, teacher.identity):
        raise OtherFileError(
            f"distill.teacher: {spec} has other weights than the teacher with which this stage began: put that one "
            "back, or restart the stage with --resume never"
        )
    prepared.used_inputs[SOURCE] = {"digest": teacher.identity, "directories": []}
