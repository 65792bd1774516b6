"""`fledgling eval needle`: whether a model finds a number that was stated far before."""

from __future__ import annotations

from fledgling.cli.eval_chat import print_measurements
from fledgling.cli.lists import CountList
from fledgling.cli.options import Device, Json
from fledgling.config import UserError


def needle(
    checkpoint: str,
    /,
    *,
    lengths: CountList = (),
    questions: int = 20,
    text: str | None = None,
    context: int | None = None,
    rope: str = "default",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """A needle in a haystack: a number that was stated once, asked for at the end of a text of given length.

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory, or a Hugging Face directory.
    lengths
        Tokens of the texts; repeat the option. Default: a quarter, a half and all of the context.
    questions
        Texts of each length and of each of five depths.
    text
        A file or folder that the texts are cut from; default the held-out part of the embedded corpus.
    context
        Context in tokens to which the model is lengthened first, without training.
    rope
        How its RoPE reaches there: default, linear, ntk or yarn.
    """
    from fledgling.config.model import ROPE_TYPES
    from fledgling.corpora.document import split_held_out
    from fledgling.corpora.embedded import harvest_embedded
    from fledgling.corpora.readers import read_documents
    from fledgling.evals.needle import DEPTHS, choose_lengths, extend_context, make_needles, measure_needles
    from fledgling.evals.session import load_any_model
    from fledgling.runtime.world import World

    if questions < 1:
        raise UserError(f"--questions is {questions}; expected at least 1")
    if rope not in ROPE_TYPES[:-1]:
        raise UserError(f"--rope {rope}: expected one of {', '.join(ROPE_TYPES[:-1])}")
    world = World.start(device)
    _, model, tokenizer, _ = load_any_model(checkpoint, world.device)
    model = extend_context(model, context, rope)
    chosen = choose_lengths(lengths, model.config.context)
    documents = read_documents(text) if text else split_held_out(harvest_embedded())[1]
    exam = make_needles(tokenizer, (document.text for document in documents), chosen, DEPTHS, questions)
    print_measurements(measure_needles(model, tokenizer, exam), as_json)
    world.close()
