"""Builders of the three stages that learn from text: pretrain, midtrain and sft differ in their mixture and targets.

One function builds all three: the sources of the mixture become row sources (sources.py), their rows one stream; the
loss is `next_token`. Evals: bits per byte on held-out documents, chat tasks where the stage has seen
conversations, samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fledgling.config import Recipe, RLConfig, StageConfig
from fledgling.data.shards import TokenShard
from fledgling.data.stream import MixtureStream, RowSource
from fledgling.evals import chat, core_results, samples
from fledgling.evals.bpb import measure_bpb, read_first_rows
from fledgling.evals.core import run_core
from fledgling.evals.likelihood import Scorer
from fledgling.evals.measurement import Measurement
from fledgling.evals.sparsity import measure_activation_sparsity
from fledgling.files import resolve_data_root
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan import memory
from fledgling.plan.horizon import compute_horizon
from fledgling.plan.plan import one_row_step
from fledgling.record import Recorder
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.tasks.core import find_core_bundle, read_core_tasks
from fledgling.text.compression import measure_compressed_bpb
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.loss import next_token_loss
from fledgling.train.prepare import DataPreparer, split_mixture
from fledgling.train.stage import Eval, Stage
from fledgling.train.stage_rows import exam_names, prepare_stage_rows

VALIDATION_ROWS = 512  # of held-out text at the end of a stage; an eighth of it in between
COMPRESSIBLE = 64_000_000  # bytes of training text up to which compressors are run for comparison


@dataclass(frozen=True)
class StageContext:
    """What every builder needs."""

    recipe: Recipe
    run_dir: Path
    world: World
    model: Transformer
    tokenizer: Tokenizer
    engine: Engine
    recorder: Recorder
    preparer: DataPreparer
    setup: DeviceSetup
    load_initial_model: Callable[[], Transformer]  # the model as it was when the stage began
    saved_micro_batch_size: int | None = None  # of the checkpoint that is gone on from


def build_supervised_stage(name: str, context: StageContext) -> Stage:
    """The stage `name` (pretrain, midtrain or sft) as its table in the recipe describes it."""
    table: StageConfig = context.recipe.stage_config(name)
    row = context.recipe.model.context
    horizon = compute_horizon(context.model.config, table.batch_tokens, table.steps)
    rows = horizon.batch_tokens // row
    micro = resolve_micro_batch_size(table, context, rows // context.world.size)
    if rows // context.world.size < micro:
        micro = rows // context.world.size or 1
        context.recorder.log_notice(
            f"{name}: micro-batches of {micro} rows, so that each of {context.world.size} ranks has one; "
            f"set {name}.micro_batch_size={micro} for the same bits on other numbers of ranks"
        )
    pinned = horizon.steps if name == "pretrain" else table.steps  # the others: one pass where it is left open
    mixed = prepare_stage_rows(name, table.mixture, rows, pinned, context.preparer, context.tokenizer)
    stream = MixtureStream(
        mixed.sources,
        rows_per_step=rows,
        micro_batch_size=micro,
        steps=mixed.steps,
        seed=context.recipe.seed,
        rank=context.world.rank,
        world_size=context.world.size,
        train_on=table.train_on,
    )
    measured = build_evals(name, table, context, mixed.validation, micro)
    if name == "pretrain" and first_document_source(table):
        measured += (Eval("compression", 0, partial(_compression, context, first_document_source(table))),)
    measured += build_core_evals(table, context)
    return Stage(
        name=name,
        steps=mixed.steps,
        batches=stream,
        loss=next_token_loss,
        schedule=partial(
            trapezoidal_schedule,
            total_steps=mixed.steps,
            warmup_steps=table.warmup_steps,
            decay_fraction=table.decay_fraction,
            final_lr_fraction=table.final_lr_fraction,
        ),
        evals=measured,
        save_every=table.save_every,
        micro_batch_size=micro,
    )


def resolve_micro_batch_size(
    table: StageConfig | RLConfig, context: StageContext, rows: int = memory.MAX_MICRO_BATCH_ROWS
) -> int:
    """Rows of one forward/backward: the table's, or the planner's proposal for a rank's `rows` a step.

    A run that goes on keeps those it had, or fewer. Raises UserError where not even one row fits.
    """
    wanted = table.micro_batch_size
    if wanted is None and context.saved_micro_batch_size is None:
        wanted = propose_micro_batch_size(context, rows, table.save_every > 0)
    return min(size for size in (wanted, context.saved_micro_batch_size) if size)


def propose_micro_batch_size(context: StageContext, rows: int, saving: bool) -> int:
    """The planner's micro-batch for this machine's memory: the most rows that fit and divide `rows`."""
    setup, config, world = context.setup, context.model.config, context.world
    kind = "cpu" if world.device.type == "cpu" else "cuda"
    step = one_row_step(context.recipe, config, world.size, kind, setup.dtype_name, setup.compiled)
    return memory.choose_micro_batch_size(
        config, max(1, rows), setup.memory_limit, replace(step, saves_checkpoints=saving)
    )


def first_document_source(table: StageConfig) -> str | None:
    """The mixture's first document source, whose held-out part measures bits per byte."""
    return next(iter(split_mixture(table.mixture).documents), None)


def build_evals(
    stage: str, table, context: StageContext, validation: tuple[TokenShard, ...], micro_rows: int
) -> tuple[Eval, ...]:
    """Bits per byte (where held-out documents exist), chat tasks (where the mixture has tasks), and samples."""
    made = []
    if validation:
        rows = RowSource(validation, "crop", context.recipe.model.context, seed=0, bos=context.tokenizer.bos)
        made.append(Eval("bits_per_byte", table.eval_every, partial(_bits, context, rows, micro_rows)))
        if context.model.config.activation == "relu2":
            made.append(Eval("zeros", table.eval_every, partial(_zeros, context, rows, micro_rows)))
    names = exam_names(context.recipe, stage)
    if names:
        made.append(Eval("chat", table.eval_every, partial(_chat, context, names, table.eval_questions)))
    made.append(Eval("samples", table.sample_every, partial(_samples, context, bool(names))))
    return tuple(made)


def build_core_evals(table: StageConfig, context: StageContext) -> tuple[Eval, ...]:
    """CORE where the stage asks for it; without its files, a notice and none."""
    if not table.core_every:
        return ()
    root = resolve_data_root(context.recipe.run.data_dir)
    tasks = read_core_tasks(root) if find_core_bundle(root) else []
    scorer, settings = Scorer(context.engine, context.world), core_results.CoreSettings(table.core_max_per_task)

    def measure(step: int, last: bool) -> list[Measurement]:
        if step == 0:  # an untrained model is not worth the wait
            if not tasks:
                how = "`fledgling data fetch core` brings it there"
                context.recorder.log_notice(f"CORE will not be measured: no bundle under {root}; {how}")
            return []
        if not tasks:
            return []
        results = run_core(scorer, tasks, settings)
        return (
            core_results.list_core_measurements(results, include_mean=True)
            if last
            else [core_results.compute_core(results)]
        )

    return (Eval("core", table.core_every, measure),)


def _bits(context: StageContext, rows: RowSource, micro_rows: int, step: int, last: bool) -> list[Measurement]:
    batches = read_first_rows(rows, VALIDATION_ROWS if last else VALIDATION_ROWS // 8, micro_rows)
    return [measure_bpb(context.model, batches, context.tokenizer.byte_lengths(), world=context.world)]


def _zeros(context: StageContext, rows: RowSource, micro_rows: int, step: int, last: bool) -> list[Measurement]:
    return measure_activation_sparsity(context.model, read_first_rows(rows, micro_rows, micro_rows))


def _compression(context: StageContext, source: str, step: int, last: bool) -> list[Measurement]:
    """What xz and zstd need for the same held-out text when they have seen the training text: the bar for the model."""
    if not (last and context.world.is_main) or context.preparer.documents.is_large(source):
        return []
    train, held_out = context.preparer.documents.read_split(source)
    if not (held_out and sum(d.num_bytes for d in train) < COMPRESSIBLE):
        return []
    context.recorder.log_notice("compressing the held-out text with xz and zstd, for comparison")
    found = measure_compressed_bpb((d.text for d in train), (d.text for d in held_out))
    size = sum(d.num_bytes for d in held_out)
    return [
        Measurement(f"bits_per_byte of {name}", value, n=size)
        for name, value in found.items()
        if isinstance(value, float)
    ]


def _chat(context: StageContext, names: list[str], count: int, step: int, last: bool) -> list[Measurement]:
    practised = tuple(context.recipe.rl.tasks) if "rl" in context.recipe.stages else ()
    papers = chat.build_exams(names, count if last else max(1, count // 4), practised, context.recipe.run.data_dir)
    return chat.run_exams(context.engine, papers, world=context.world)


def _samples(context: StageContext, chats: bool, step: int, last: bool) -> list[Measurement]:
    context.engine.refresh_weights()
    shown = samples.sample_continuations(context.engine) + (
        samples.sample_chat_replies(context.engine) if chats else []
    )
    for prompt, text in shown:
        context.recorder.log_sample(step, prompt, text)
    return []
