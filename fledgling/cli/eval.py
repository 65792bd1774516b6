"""`fledgling eval`: measures a checkpoint, each value with its 95 % interval."""

from __future__ import annotations

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
    from fledgling.evals.bpb import measure_text
    from fledgling.evals.session import load_any_model
    from fledgling.runtime.world import World

    world = World.start(device)
    _, model, tokenizer, _ = load_any_model(checkpoint, world.device)
    measurements = measure_text(model, tokenizer, (document.text for document in read_documents(text)), world)
    if world.is_main:
        print_measurements(measurements, as_json)
    world.close()
    return 0


app.command(chat)
app.command(passk)
app.command(needle)
