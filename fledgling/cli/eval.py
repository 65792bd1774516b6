"""`fledgling eval`: measure a checkpoint, each figure with its 95 % interval."""

from __future__ import annotations

from collections.abc import Iterator

from cyclopts import App

from fledgling.cli import eval_chat
from fledgling.cli.eval_core import compare, core, lm_eval, load_any_model
from fledgling.cli.options import Device, Gpus, Json, run_on_ranks

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
    code = run_on_ranks(gpus, device, "eval", "bpb", checkpoint, text, as_json=as_json)
    if code is not None:
        return code
    from fledgling.corpora.readers import read_documents
    from fledgling.evals.bpb import compute_perplexities, make_text_batches, measure_bits, measure_ratio
    from fledgling.runtime.world import World

    world = World.start(device)
    _, model, tokenizer, _ = load_any_model(checkpoint, world.device)
    words = 0

    def texts() -> Iterator[str]:
        nonlocal words
        for document in read_documents(text):
            words += len(document.text.split())
            yield document.text

    batches = make_text_batches(texts(), tokenizer, model.config.context)
    found = measure_bits(model, batches, tokenizer.byte_lengths(), world)
    if world.is_main:
        eval_chat.print_measurements(
            [measure_ratio("bits_per_byte", found.bits, found.bytes), *compute_perplexities(found, words)], as_json
        )
    world.close()
    return 0


app.command(eval_chat.chat)
app.command(eval_chat.passk)
