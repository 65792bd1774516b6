"""`fledgling eval`: measure a checkpoint, each figure with its 95 % interval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cyclopts import App

from fledgling.cli.options import Json
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.evals.measurement import Measurement

app = App(name="eval", help="Measure a checkpoint, each figure with its 95 % interval.")


@app.command
def bpb(checkpoint: str, text: str, /, *, device: str = "auto", as_json: Json = False) -> None:
    """Bits per byte of a text under a checkpoint.

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory.
    text
        A file or folder of text.
    device
        auto, cpu, cuda or mps.
    """
    from fledgling.data.shards import ShardWriter, TokenShard, tokenize_documents
    from fledgling.data.sources import documents
    from fledgling.data.stream import RowSource
    from fledgling.evals.bpb import bits_per_byte, first_rows
    from fledgling.infer.load import load_model

    model, tokenizer, _ = load_model(checkpoint, device=_device(device))
    with TemporaryDirectory() as folder:
        shard = Path(folder) / "text"
        with ShardWriter(shard, tokenizer.vocab_size) as writer:
            tokenize_documents((document.text for document in documents(text)), tokenizer, writer)
        rows = RowSource(TokenShard.open(shard), "crop", model.config.context, seed=0, bos=tokenizer.bos)
        batches = first_rows(rows, len(rows), micro_rows=16)
    _show([bits_per_byte(model, batches, tokenizer.byte_lengths())], as_json)


@app.command
def chat(
    checkpoint: str,
    /,
    *,
    tasks: Sequence[str] = (),
    questions: int = 200,
    log: Path | None = None,
    device: str = "auto",
    as_json: Json = False,
) -> None:
    """Score of the project's tasks: held-out words and numbers, known and unseen wordings.

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory.
    tasks
        Which; all where none is named.
    questions
        How many for each.
    log
        A file for every question, answer and score, as JSON lines.
    device
        auto, cpu, cuda or mps.
    """
    from fledgling.evals.chat import exams, take
    from fledgling.infer.engine import Engine
    from fledgling.infer.load import load_model
    from fledgling.tasks import NAMES
    from fledgling.train.setup import fastest_dtype

    if questions < 1:
        raise UserError(f"--questions is {questions}; expected at least 1")
    place = _device(device)
    model, tokenizer, _ = load_model(checkpoint, device=place)
    engine = Engine(model, tokenizer, dtype=fastest_dtype(place))
    lines: list[str] = []
    measured = take(
        engine,
        exams(tasks or NAMES, questions),
        log=lambda q, answer, score: lines.append(
            json.dumps({"task": q.task, "prompt": q.prompt, "expected": q.answer, "answer": answer, "score": score})
        ),
    )
    if log:
        log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _show(measured, as_json)


def _device(wish: str):
    from fledgling.world import World

    return World.start(wish).device


def _show(measured: list[Measurement], as_json: bool) -> None:
    if as_json:
        print(json.dumps([vars(m) for m in measured], indent=2))
        return
    for m in measured:
        best = "" if m.baseline is None else f"   best constant answer {m.baseline:.3f}"
        print(f"{m.name:20} {m.value:.4f}  [{m.low:.4f}, {m.high:.4f}]  n {m.n}{best}")
