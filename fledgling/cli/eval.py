"""`fledgling eval`: measures a checkpoint, each value with its 95 % interval."""

from __future__ import annotations

from collections.abc import Iterator

from cyclopts import App

from fledgling.cli.eval_chat import chat, passk, print_measurements
from fledgling.cli.eval_core import compare, core, lm_eval
from fledgling.cli.eval_needle import needle
from fledgling.cli.options import Device, Gpus, Json, run_on_ranks

app = App(name="eval", help="Measure a checkpoint, each value with its 95 % interval.")
app.command(core)
app.command(compare)
app.command(lm_eval, name="lm-eval")


@app.command
def bpb(checkpoint: str, text: str, /, *, gpus: Gpus = None, device: Device = "auto", as_json: Json = False) -> int:
    """Bits per byte of a text under a checkpoint, and perplexity by token and by word.

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
    from fledgling.evals.session import load_any_model
    from fledgling.runtime.world import World

    world = World.start(device)
    _, model, tokenizer, _ = load_any_model(checkpoint, world.device)
    words = 0

    def read_texts() -> Iterator[str]:
        nonlocal words
        for document in read_documents(text):
            words += len(document.text.split())
            yield document.text

    batches = make_text_batches(read_texts(), tokenizer, model.config.context)
    text_bits = measure_bits(model, batches, tokenizer.byte_lengths(), world)
    if world.is_main:
        bits_per_byte = measure_ratio("bits_per_byte", text_bits, text_bits.bits, text_bits.bytes)
        print_measurements([bits_per_byte, *compute_perplexities(text_bits, words)], as_json)
    world.close()
    return 0


app.command(chat)
app.command(passk)
app.command(needle)
