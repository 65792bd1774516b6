"""Builder of the stages that learn from text: pretrain, midtrain and sft differ in their mixture and targets alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from fledgling.config import StageConfig, UserError
from fledgling.data.multi_token_prediction import MultiTokenTargets
from fledgling.data.stream import MixtureStream
from fledgling.kernels.qat import fake_quantize
from fledgling.plan.horizon import compute_horizon
from fledgling.plan.split import empty_share, require_row_each
from fledgling.plan.stage_length import fixed_rows
from fledgling.train.context import StageContext, make_schedule, resolve_split
from fledgling.train.data_preparer import split_mixture
from fledgling.train.distill.build import distill_stage
from fledgling.train.evals import build_compression_eval, build_core_evals, build_evals
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage
from fledgling.train.stage_rows import StageRows, prepare_stage_rows
from fledgling.train.stage_settings import require_weights_to_round


def build_supervised_stage(name: str, context: StageContext) -> Stage:
    """Returns stage `name` (pretrain, midtrain or sft) as the recipe describes it."""
    config: StageConfig = getattr(context.recipe, name)
    world, model_config, log = context.world, context.model.config, context.recorder.log_notice
    rows = context.saved_rows_per_step or fixed_rows(name, config, model_config)
    steps = config.steps
    if name == "pretrain" and config.num_epochs is None:
        steps = compute_horizon(model_config, config.batch_tokens, steps).steps
    stage_rows = prepare_stage_rows(
        *(name, replace(config, steps=steps), rows, model_config.context, context.preparer, context.tokenizer),
        before=context.positions,
        saved_weights=context.saved_row_weights,
    )
    if config.quantization_aware != "none":
        require_weights_to_round(context.recipe, name)
        fake_quantize(context.model, config.quantization_aware)
        log(f"{name}: matrices and head are rounded to {config.quantization_aware} in every step, not in evaluations")
    rows = stage_rows.rows_per_step
    require_row_each(name, config, rows, world.size)
    split = resolve_split(config, context, rows)
    micro_batch_size = split.rows
    if config.micro_batch_size and micro_batch_size < config.micro_batch_size:
        log(
            f"{name}: micro-batches of {micro_batch_size} rows, so that each of {world.size} ranks has one; "
            f"set {name}.micro_batch_size={micro_batch_size} for the same bits on other numbers of ranks"
        )
    if (empty := empty_share(rows, split)) > 0:
        log(f"{name}: {world.size} ranks do not divide {rows} rows: {empty:.0%} of the work of a step is on no row")
    report_lost_conversations(name, config, stage_rows, log)
    positions = stage_rows.positions
    stream = MixtureStream(
        stage_rows.sources,
        rows_per_step=rows,
        micro_batch_size=micro_batch_size,
        steps=stage_rows.steps,
        seed=context.recipe.seed,
        rank=world.rank,
        world_size=world.size,
        train_on=config.train_on,
        starts=positions.find_starts([source for source, _ in stage_rows.sources]),
        batch_warmup_steps=config.batch_warmup_steps,
        context_warmup_steps=config.context_warmup_steps,
        multi_token=MultiTokenTargets(config.mtp_targets, config.mtp_decay_steps),
    )
    for line in positions.describe(name, stream, stage_rows.steps):
        log(line)
    evals = build_evals(config, context, stage_rows.validation, micro_batch_size)
    documents = split_mixture(config.mixture).documents
    if name == "pretrain" and documents:
        evals += (build_compression_eval(next(iter(documents)), context),)
    evals += build_core_evals(config, context)
    stage = Stage(
        name=name,
        steps=stage_rows.steps,
        batches=stream,
        loss=next_token_loss,
        schedule=make_schedule(context.recipe, name, stage_rows.steps),
        evals=evals,
        save_every=config.save_every,
        micro_batch_size=micro_batch_size,
        rows_per_step=rows,
        row_weights=stage_rows.weights,
        positions=partial(positions.state_dict, stream),
        count_reading=partial(positions.count_reading, name, stream),
        extra_metrics=partial(measure_passes, stream),
    )
    return distill_stage(stage, context) if context.recipe.has_teacher(name) else stage


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
