"""Builders of the three stages that learn from text: pretrain, midtrain and sft differ in their mixture and targets.

One function builds all three: the sources of the mixture become row sources, their rows one stream; the loss is
`next_token`. Evals: bits per byte on held-out documents, chat tasks where the stage has seen conversations, samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fledgling.config import Recipe, RLTable, StageTable, UserError
from fledgling.data.shards import TokenShard
from fledgling.data.split import compressed_bits_per_byte
from fledgling.data.stream import MixtureStream, RowSource
from fledgling.evals import chat, samples
from fledgling.evals.bpb import bits_per_byte, first_rows
from fledgling.evals.measurement import Measurement
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.optim.schedule import trapezoid
from fledgling.plan.horizon import stretch
from fledgling.record import Recorder
from fledgling.tasks import NAMES
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.loss import next_token
from fledgling.train.prepare import Preparer, parts
from fledgling.train.stage import Eval, Stage
from fledgling.world import World

VALIDATION_ROWS = 512  # of held-out text at the end of a stage; an eighth of it in between
MICRO_TOKENS = 8192  # of one forward/backward where the recipe leaves it open
COMPRESSIBLE = 64_000_000  # bytes of training text up to which compressors are run for comparison
SPARE = 1.1  # conversations prepared beyond what the steps read, so that packing never wraps around


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
    micro_batch: int | None = None  # of the checkpoint that is gone on from


def build(name: str, context: Context) -> Stage:
    """The stage `name` (pretrain, midtrain or sft) as its table in the recipe describes it."""
    table: StageTable = context.recipe.stage(name)
    batch_tokens, steps = _length(name, table, context)
    row = context.recipe.model.context
    rows = batch_tokens // row
    micro = micro_batch(table, context)
    if rows // context.world.size < micro:
        micro = rows // context.world.size or 1
        context.recorder.notice(
            f"{name}: micro-batches of {micro} rows, so that each of {context.world.size} ranks has one; "
            f"set {name}.micro_batch={micro} for the same bits on other numbers of ranks"
        )
    sources, validation = _sources(name, table, context, batch_tokens * steps)
    stream = MixtureStream(
        sources,
        rows_per_step=rows,
        micro_rows=micro,
        steps=steps,
        seed=context.recipe.seed,
        rank=context.world.rank,
        size=context.world.size,
        supervise=table.target,
    )
    measured = evals(table, context, validation, micro)
    if name == "pretrain" and mixed_with(table):
        measured += (Eval("compression", 0, partial(_compression, context, mixed_with(table))),)
    return Stage(
        name=name,
        steps=steps,
        batches=stream,
        loss=next_token,
        schedule=partial(trapezoid, steps=steps, warmup=table.warmup, decay=table.decay, final=table.final),
        evals=measured,
        save_every=table.save_every,
        micro_batch=micro,
    )


def micro_batch(table: StageTable | RLTable, context: Context) -> int:
    """Rows of one forward/backward: the table's, or what is usual; a run that goes on keeps those it had, or fewer."""
    wanted = table.micro_batch or max(1, MICRO_TOKENS // context.recipe.model.context)
    return min(wanted, context.micro_batch or wanted)


def mixed_with(table: StageTable) -> str | None:
    """The mixture's first document source, whose held-out part measures bits per byte."""
    return next(iter(parts(table.mixture).documents), None)


def _length(name: str, table: StageTable, context: Context) -> tuple[int, int]:
    """(tokens a step, steps): pinned by the table, or by the dial for pretraining."""
    if name != "pretrain" and table.steps is None:
        raise UserError(f"{name}.steps is not set: expected the number of optimizer steps, such as {name}.steps=300")
    horizon = stretch(context.model.config, table.batch_tokens, table.steps)
    return horizon.batch_tokens, horizon.steps


def _sources(
    name: str, table: StageTable, context: Context, tokens: int
) -> tuple[list[tuple[RowSource, float]], TokenShard | None]:
    """The mixture as row sources with weights, and the held-out documents of its first document source."""
    recipe, tokenizer, preparer = context.recipe, context.tokenizer, context.preparer
    mixed = parts(table.mixture)
    source = partial(
        RowSource,
        context=recipe.model.context,
        seed=recipe.seed,
        bos=tokenizer.bos,
        turn_end=tokenizer.assistant_end,
    )
    total = sum(table.mixture.values())
    sources, validation = [], None
    for path, weight in mixed.documents.items():
        train, held_out = preparer.documents(path, tokenizer)
        validation = validation or held_out
        sources.append((source(train, "crop"), weight))
    if mixed.tasks:
        weight = sum(mixed.tasks.values())
        shard = preparer.conversations(name, mixed.tasks, int(tokens * weight / total * SPARE) + 1, tokenizer)
        sources.append((source(shard, "whole"), weight))
    for path, weight in mixed.chats.items():
        sources.append((source(preparer.chat(path, tokenizer), "whole"), weight))
    return sources, validation


def evals(table, context: Context, validation: TokenShard | None, micro_rows: int) -> tuple[Eval, ...]:
    """Bits per byte (where held-out documents exist), chat tasks (where the mixture has tasks), and samples."""
    made = []
    if validation is not None and len(validation):
        rows = RowSource(validation, "crop", context.recipe.model.context, seed=0, bos=context.tokenizer.bos)
        made.append(Eval("bits_per_byte", table.eval_every, partial(_bits, context, rows, micro_rows)))
    mixture = table.mixture or context.recipe.sft.mixture  # RL has none of its own: it is examined in all of SFT's
    names = [n for n in NAMES if n in mixture]
    if names:
        made.append(Eval("chat", table.eval_every, partial(_chat, context, names, table.eval_questions)))
    made.append(Eval("samples", table.sample_every, partial(_samples, context, bool(names))))
    return tuple(made)


def _bits(context: Context, rows: RowSource, micro_rows: int, step: int, last: bool) -> list[Measurement]:
    batches = first_rows(rows, VALIDATION_ROWS if last else VALIDATION_ROWS // 8, micro_rows)
    return [bits_per_byte(context.model, batches, context.tokenizer.byte_lengths())]


def _compression(context: Context, source: str, step: int, last: bool) -> list[Measurement]:
    """What xz and zstd need for the same held-out text when they have seen the training text: the bar for the model."""
    train, held_out = context.preparer.texts(source)
    if not (last and held_out and sum(d.size for d in train) < COMPRESSIBLE):
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
    return chat.take(context.engine, chat.exams(names, count if last else max(1, count // 4), practised))


def _samples(context: Context, chats: bool, step: int, last: bool) -> list[Measurement]:
    context.engine.refresh()
    shown = samples.continuations(context.engine) + (samples.answers(context.engine) if chats else [])
    for prompt, text in shown:
        context.recorder.sample(step, prompt, text)
    return []
