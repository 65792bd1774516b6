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

from fledgling.config import Recipe, RLTable, StageTable
from fledgling.corpora.split import compressed_bits_per_byte
from fledgling.data.shards import TokenShard
from fledgling.data.stream import MixtureStream, RowSource
from fledgling.evals import chat, core, samples
from fledgling.evals.bpb import bits_per_byte, first_rows
from fledgling.evals.likelihood import Scorer
from fledgling.evals.measurement import Measurement
from fledgling.evals.zeros import zeros
from fledgling.files import data_root
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.optim.schedule import trapezoid
from fledgling.plan import memory
from fledgling.plan.horizon import stretch
from fledgling.plan.plan import first_step
from fledgling.record import Recorder
from fledgling.runtime.world import World
from fledgling.tasks.core import find_bundle, read_tasks
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.loss import next_token
from fledgling.train.prepare import Preparer, parts
from fledgling.train.setup import Setup
from fledgling.train.sources import examined, mix
from fledgling.train.stage import Eval, Stage

VALIDATION_ROWS = 512  # of held-out text at the end of a stage; an eighth of it in between
COMPRESSIBLE = 64_000_000  # bytes of training text up to which compressors are run for comparison


@dataclass(frozen=True)
class Context:
    """What every builder needs."""

    recipe: Recipe
    run_dir: Path
    world: World
    model: Transformer
    tokenizer: Tokenizer
    engine: Engine
    recorder: Recorder
    preparer: Preparer
    setup: Setup
    beginning: Callable[[], Transformer]  # the model as it was when the stage began
    micro_batch: int | None = None  # of the checkpoint that is gone on from


def build(name: str, context: Context) -> Stage:
    """The stage `name` (pretrain, midtrain or sft) as its table in the recipe describes it."""
    table: StageTable = context.recipe.stage(name)
    row = context.recipe.model.context
    horizon = stretch(context.model.config, table.batch_tokens, table.steps)
    rows = horizon.batch_tokens // row
    micro = micro_batch(table, context, rows // context.world.size)
    if rows // context.world.size < micro:
        micro = rows // context.world.size or 1
        context.recorder.notice(
            f"{name}: micro-batches of {micro} rows, so that each of {context.world.size} ranks has one; "
            f"set {name}.micro_batch={micro} for the same bits on other numbers of ranks"
        )
    pinned = horizon.steps if name == "pretrain" else table.steps  # the others: one pass where it is left open
    mixed = mix(name, table.mixture, rows, pinned, context.preparer, context.tokenizer)
    stream = MixtureStream(
        mixed.sources,
        rows_per_step=rows,
        micro_rows=micro,
        steps=mixed.steps,
        seed=context.recipe.seed,
        rank=context.world.rank,
        size=context.world.size,
        supervise=table.target,
    )
    measured = evals(name, table, context, mixed.validation, micro)
    if name == "pretrain" and mixed_with(table):
        measured += (Eval("compression", 0, partial(_compression, context, mixed_with(table))),)
    measured += core_evals(table, context)
    return Stage(
        name=name,
        steps=mixed.steps,
        batches=stream,
        loss=next_token,
        schedule=partial(trapezoid, steps=mixed.steps, warmup=table.warmup, decay=table.decay, final=table.final),
        evals=measured,
        save_every=table.save_every,
        micro_batch=micro,
    )


def micro_batch(table: StageTable | RLTable, context: Context, rows: int = memory.MOST_ROWS) -> int:
    """Rows of one forward/backward: the table's, or the planner's proposal for a rank's `rows` a step.

    A run that goes on keeps those it had, or fewer. Raises UserError where not even one row fits.
    """
    wanted = table.micro_batch
    if wanted is None and context.micro_batch is None:
        wanted = proposed(context, rows, table.save_every > 0)
    return min(size for size in (wanted, context.micro_batch) if size)


def proposed(context: Context, rows: int, saving: bool) -> int:
    """The planner's micro-batch for this machine's memory: the most rows that fit and divide `rows`."""
    setup, config, world = context.setup, context.model.config, context.world
    kind = "cpu" if world.device.type == "cpu" else "cuda"
    step = first_step(context.recipe, config, world.size, kind, setup.dtype_name, setup.compiled)
    return memory.micro_batch(config, max(1, rows), setup.memory, replace(step, saving=saving))


def mixed_with(table: StageTable) -> str | None:
    """The mixture's first document source, whose held-out part measures bits per byte."""
    return next(iter(parts(table.mixture).documents), None)


def evals(stage: str, table, context: Context, validation: tuple[TokenShard, ...], micro_rows: int) -> tuple[Eval, ...]:
    """Bits per byte (where held-out documents exist), chat tasks (where the mixture has tasks), and samples."""
    made = []
    if validation:
        rows = RowSource(validation, "crop", context.recipe.model.context, seed=0, bos=context.tokenizer.bos)
        made.append(Eval("bits_per_byte", table.eval_every, partial(_bits, context, rows, micro_rows)))
        if context.model.config.activation == "relu2":
            made.append(Eval("zeros", table.eval_every, partial(_zeros, context, rows, micro_rows)))
    names = examined(context.recipe, stage)
    if names:
        made.append(Eval("chat", table.eval_every, partial(_chat, context, names, table.eval_questions)))
    made.append(Eval("samples", table.sample_every, partial(_samples, context, bool(names))))
    return tuple(made)


def core_evals(table: StageTable, context: Context) -> tuple[Eval, ...]:
    """CORE where the stage asks for it; without its files, a notice and none."""
    if not table.core_every:
        return ()
    root = data_root(context.recipe.run.data_dir)
    tasks = read_tasks(root) if find_bundle(root) else []
    scorer, settings = Scorer(context.engine, context.world), core.Settings(table.core_max_per_task)

    def measure(step: int, last: bool) -> list[Measurement]:
        if step == 0:  # an untrained model is not worth the wait
            if not tasks:
                how = "`fledgling data fetch core` brings it there"
                context.recorder.notice(f"CORE will not be measured: no bundle under {root}; {how}")
            return []
        if not tasks:
            return []
        results = core.run(scorer, tasks, settings)
        return core.measurements(results, whole=True) if last else [core.core(results)]

    return (Eval("core", table.core_every, measure),)


def _bits(context: Context, rows: RowSource, micro_rows: int, step: int, last: bool) -> list[Measurement]:
    batches = first_rows(rows, VALIDATION_ROWS if last else VALIDATION_ROWS // 8, micro_rows)
    return [bits_per_byte(context.model, batches, context.tokenizer.byte_lengths(), world=context.world)]


def _zeros(context: Context, rows: RowSource, micro_rows: int, step: int, last: bool) -> list[Measurement]:
    return zeros(context.model, first_rows(rows, micro_rows, micro_rows))


def _compression(context: Context, source: str, step: int, last: bool) -> list[Measurement]:
    """What xz and zstd need for the same held-out text when they have seen the training text: the bar for the model."""
    if not (last and context.world.is_main) or context.preparer.is_large(source):
        return []
    train, held_out = context.preparer.texts(source)
    if not (held_out and sum(d.size for d in train) < COMPRESSIBLE):
        return []
    context.recorder.notice("compressing the held-out text with xz and zstd, for comparison")
    found = compressed_bits_per_byte(train, held_out)
    size = sum(d.size for d in held_out)
    return [
        Measurement(f"bits_per_byte of {name}", value, n=size)
        for name, value in found.items()
        if isinstance(value, float)
    ]


def _chat(context: Context, names: list[str], count: int, step: int, last: bool) -> list[Measurement]:
    practised = tuple(context.recipe.rl.tasks) if "rl" in context.recipe.stages else ()
    papers = chat.exams(names, count if last else max(1, count // 4), practised, context.recipe.run.data_dir)
    return chat.take(context.engine, papers, world=context.world)


def _samples(context: Context, chats: bool, step: int, last: bool) -> list[Measurement]:
    context.engine.refresh()
    shown = samples.continuations(context.engine) + (samples.answers(context.engine) if chats else [])
    for prompt, text in shown:
        context.recorder.sample(step, prompt, text)
    return []
