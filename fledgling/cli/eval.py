"""`fledgling eval`: measure a checkpoint, each figure with its 95 % interval."""

from __future__ import annotations

from collections.abc import Iterator

from cyclopts import App

from fledgling.cli import exams
from fledgling.cli.eval_core import compare, core, lm_eval, opened
from fledgling.cli.options import Device, Gpus, Json, on_ranks

app = App(name="eval", help="Measure a checkpoint, each figure with its 95 % interval.")
app.command(core)
app.command(compare)
app.command(lm_eval, name="lm-eval")


@app.command
def bpb(checkpoint: str, text: str, /, *, gpus: Gpus = None, device: Device = "auto", as_json: Json = False) -> int:
    """Bits per byte of a text under a checkpoint; beside it perplexity, by token and by word.

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory, or a Hugging Face directory.
    text
        A file or folder of text.
    """
    code = on_ranks(gpus, device, "eval", "bpb", checkpoint, text, as_json=as_json)
    if code is not None:
        return code
    from fledgling.corpora.sources import documents
    from fledgling.evals.bpb import perplexities, ratio, sums, text_batches
    from fledgling.runtime.world import World

    world = World.start(device)
    _, model, tokenizer, _ = opened(checkpoint, world.device)
    words = 0

    def texts() -> Iterator[str]:
        nonlocal words
        for document in documents(text):
            words += len(document.text.split())
            yield document.text

    batches = text_batches(texts(), tokenizer, model.config.context)
    found = sums(model, batches, tokenizer.byte_lengths(), world)
    if world.is_main:
        exams.show([ratio("bits_per_byte", found.bits, found.bytes), *perplexities(found, words)], as_json)
    world.close()
    return 0


app.command(exams.chat)
app.command(exams.passk)
