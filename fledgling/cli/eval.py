"""`fledgling eval`: measure a checkpoint, each figure with its 95 % interval."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from cyclopts import App

from fledgling.cli import exams
from fledgling.cli.options import Json

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
    from fledgling.train.checkpoint import load_model

    model, tokenizer, _ = load_model(checkpoint, device=_device(device))
    with TemporaryDirectory() as folder:
        shard = Path(folder) / "text"
        with ShardWriter(shard, tokenizer.vocab_size) as writer:
            tokenize_documents((document.text for document in documents(text)), tokenizer, writer)
        rows = RowSource(TokenShard.open(shard), "crop", model.config.context, seed=0, bos=tokenizer.bos)
        batches = first_rows(rows, len(rows), micro_rows=16)
    exams.show([bits_per_byte(model, batches, tokenizer.byte_lengths())], as_json)


app.command(exams.chat)
app.command(exams.passk)


def _device(wish: str):
    from fledgling.world import World

    return World.start(wish).device
