"""Builder of the stages that learn from text: pretrain, midtrain and sft differ in their mixture and targets alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fledgling.config import StageConfig, UserError
from fledgling.data.multi_token_prediction import MultiTokenTargets
from fledgling.data.stream import MixtureStream
from fledgling.kernels.qat import fake_quantize
from fledgling.plan.split import empty_share, explain_empty_slots, require_row_each
from fledgling.plan.stage_length import fixed_rows
from fledgling.train.context import StageContext, make_schedule, resolve_split
from fledgling.train.data_preparer import split_mixture
from fledgling.train.distill.build import distill_stage
from fledgling.train.evals import build_compression_eval, build_core_evals, build_evals
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Eval, Stage
from fledgling.train.stage_horizon import grow_steps
from fledgling.train.stage_rows import RowsRequest, StageRows, prepare_stage_rows
from fledgling.train.stage_settings import require_weights_to_round


def build_supervised_stage(name: str, context: StageContext) -> Stage:
    """Returns stage `name` (pretrain, midtrain or sft) as the recipe describes it."""
    config: StageConfig = getattr(context.recipe, name)
    stage_rows = prepare_rows(name, config, context)
    quantize_in_training(name, config, context)
    micro_batch_size = choose_micro_batch(name, config, context, stage_rows.rows_per_step)
    report_lost_conversations(name, config, stage_rows, context.recorder.log_notice)
    stream = open_stream(config, context, stage_rows, micro_batch_size)
    positions = stage_rows.positions
    for line in positions.describe(name, stream, stage_rows.steps):
        context.recorder.log_notice(line)
    stage = Stage(
        name=name,
        steps=stage_rows.steps,
        most_steps=grow_steps(stage_rows.steps),
        batches=stream,
        loss=next_token_loss,
        schedule=make_schedule(context.recipe, name, stage_rows.steps),
        evals=list_evals(name, config, context, stage_rows, micro_batch_size),
        save_every=config.save_every,
        micro_batch_size=micro_batch_size,
        rows_per_step=stage_rows.rows_per_step,
        row_weights=stage_rows.weights,
        positions=partial(positions.state_dict, stream),
        count_reading=partial(positions.count_reading, name, stream),
        extra_metrics=partial(measure_passes, stream),
    )
    return distill_stage(stage, context) if context.recipe.has_teacher(name) else stage


def prepare_rows(name: str, config: StageConfig, context: StageContext) -> StageRows:
    """Returns the data of a stage, which a resumed stage reads in the rows and by the weights that it had."""
    model_config = context.model.config
    request = RowsRequest(
        stage=name,
        table=config,
        config=model_config,
        rows_per_step=context.saved_rows_per_step or fixed_rows(name, config, model_config),
        positions=context.positions,
        weights=context.saved_row_weights,
    )
    return prepare_stage_rows(request, context.preparer, context.tokenizer)


def quantize_in_training(name: str, config: StageConfig, context: StageContext) -> None:
    """Rounds the matrices of the model in every step, if the stage's table says so."""
    if config.quantization_aware == "none":
        return
    require_weights_to_round(context.recipe, name)
    fake_quantize(context.model, config.quantization_aware)
    context.recorder.log_notice(
        f"{name}: matrices and head are rounded to {config.quantization_aware} in every step, not in evaluations"
    )


def choose_micro_batch(name: str, config: StageConfig, context: StageContext, rows: int) -> int:
    """Returns the rows of a micro-batch for `rows` rows of a step; logs where it is not as the recipe says.

    Raises UserError if a rank would have no row, or if not even one row fits.
    """
    ranks, log = context.world.size, context.recorder.log_notice
    require_row_each(name, config, rows, ranks)
    split = resolve_split(config, context, rows)
    size = split.rows
    if config.micro_batch_size and size < config.micro_batch_size:
        log(
            f"{name}: micro-batches of {size} rows, so that each of {ranks} ranks has one; "
            f"set {name}.micro_batch_size={size} for the same bits on other numbers of ranks"
        )
    if (empty := empty_share(rows, split)) > 0:
        log(f"{name}: {explain_empty_slots(rows, size, ranks)}: {empty:.0%} of the work of a step is on no row")
    return size


def open_stream(
    config: StageConfig, context: StageContext, stage_rows: StageRows, micro_batch_size: int
) -> MixtureStream:
    """Returns the batches of this rank, each source from where earlier stages stopped reading it."""
    return MixtureStream(
        stage_rows.sources,
        rows_per_step=stage_rows.rows_per_step,
        micro_batch_size=micro_batch_size,
        steps=grow_steps(stage_rows.steps),
        seed=context.recipe.seed,
        rank=context.world.rank,
        world_size=context.world.size,
        train_on=config.train_on,
        starts=stage_rows.positions.find_starts([source for source, _ in stage_rows.sources]),
        batch_warmup_steps=config.batch_warmup_steps,
        context_warmup_steps=config.context_warmup_steps,
        multi_token=MultiTokenTargets(config.mtp_targets, config.mtp_decay_steps),
    )


def list_evals(
    name: str, config: StageConfig, context: StageContext, stage_rows: StageRows, micro_batch_size: int
) -> tuple[Eval, ...]:
    """Returns the evaluations of a stage: pretraining also compares with programs that compress text.

    Args:
        name: of the stage.
        config: of the stage.
        context: what all builders share.
        stage_rows: of the stage, with its held-out rows.
        micro_batch_size: rows of a batch of bits per byte.
    """
    evals = build_evals(config, context, stage_rows.validation, micro_batch_size)
    documents = split_mixture(config.mixture).documents
    if name == "pretrain" and documents:
        evals += (build_compression_eval(next(iter(documents)), context),)
    return evals + build_core_evals(config, context)


def measure_passes(stream: MixtureStream) -> dict[str, float]:
    """Returns how often the source that is read most has been read so far, in all stages together."""
    passes = [row / len(source) for row, source in zip(stream.source_rows(), stream.builder.sources, strict=True)]
    return {"passes": round(max(passes), 4)}


def report_lost_conversations(
    stage: str, config: StageConfig, stage_rows: StageRows, log: Callable[[str], None]
) -> None:
    """Logs how many conversations do not fit in a row. Raises UserError for a source that then teaches nothing."""
    for index, (source, _) in enumerate(stage_rows.sources):
        if not source.num_truncated:
            continue
        name, count = stage_rows.positions.name_of(index, stage), source.num_documents
        lost = source.num_without_targets
        if config.train_on == "assistant" and lost == count:
            raise UserError(
                f"{stage}: {name}: the prompts of all {count:,} conversations fill model.context, {source.context} "
                "tokens, so nothing can be learned from them; raise model.context or shorten the prompts"
            )
        log(
            f"{stage}: {name}: {source.num_truncated:,} of {count:,} conversations are longer than a row of "
            f"{source.context:,} tokens: {source.num_truncated - lost:,} are cut after the last turn that fits, or in "
            f"their first answer; of {lost:,} only a part of the prompt is left"
        )
