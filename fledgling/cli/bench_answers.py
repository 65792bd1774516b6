"""`fledgling bench`, its other half: how fast a model answers and is examined, and what both are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fledgling.cli.options import Checkpoint, ComputeDtype, Depth, Device, Json, Overrides, VocabSize
from fledgling.config import load_recipe


def infer(
    *,
    depth: Depth = 12,
    vocab_size: VocabSize = 32768,
    batch: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 8, 32),
    context: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (256, 1024),
    tokens: int = 32,
    repeats: int = 3,
    bits: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (16, 8, 4),
    peers: bool = True,
    overrides: Overrides = (),
    as_json: Json = False,
) -> None:
    """Time answers: first token, tokens per second, shares of measured bandwidth and arithmetic, beside peers.

    Parameters
    ----------
    batch
        Rows answered at once, each with the first of the contexts.
    context
        Tokens of a prompt; the others are tried with one row.
    tokens
        Drawn for each row.
    repeats
        Of everything, in turn; medians count.
    bits
        Of the weights: 16 is the run's dtype, 8 and 4 are quantized.
    peers
        Whether transformers answers beside it, and llama.cpp models of the llama family, where they are installed.
    """
    from fledgling.bench import infer as bench
    from fledgling.bench.train import with_model_size

    room = max(context, default=0) + tokens + 1
    recipe = with_model_size(load_recipe("quickstart", overrides), depth, vocab_size, room)
    result = bench.measure_inference(recipe, batch, context, tokens, repeats, peers, bits)
    print(json.dumps(result, indent=2) if as_json else bench.inference_table(result))


def tokenizer(*, data_dir: str | None = None, vocab_size: int = 32768, as_json: Json = False) -> None:
    """Train on 100 MB of text and encode it, on one thread and on all, beside other libraries.

    Parameters
    ----------
    data_dir
        Where the data sets are; default FLEDGLING_DATA.
    vocab_size
        Entries to train.
    """
    from benchmarks import tokenizer as bench

    result = bench.measure_tokenizers(data_dir=data_dir, vocab_size=vocab_size)
    print(json.dumps(result, indent=2) if as_json else bench.format_tokenizer_table(result))


def sandbox(*, data_dir: str | None = None, calls: int = 200, as_json: Json = False) -> None:
    """Time a call of the interpreter and of the process, and HumanEval's reference solutions and broken variants.

    Parameters
    ----------
    data_dir
        Where the data sets are; default FLEDGLING_DATA. Without HumanEval there, only calls are timed.
    calls
        Calls timed, one after another, after one that is not.
    """
    from benchmarks import sandbox as bench

    result = bench.measure(data_dir=data_dir, calls=calls)
    print(json.dumps(result, indent=2) if as_json else bench.table(result))


def core(
    checkpoint: str,
    /,
    *,
    tasks: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    items: int = 32,
    context: int | None = None,
    data_dir: Path | None = None,
    device: Device = "auto",
    dtype: ComputeDtype = "auto",
    as_json: Json = False,
) -> None:
    """Time CORE as it is scored, each choice from its beginning, the published way, and a bare forward.

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory, or a Hugging Face directory. What its weights say does not matter.
    tasks
        Which of the 22; all where none is named.
    items
        How many of each; the last line reckons what the whole files would take.
    context
        Room for longer rows than the model was trained for.
    data_dir
        Where the CORE bundle lies; else FLEDGLING_DATA.
    """
    from benchmarks.core import extend_context, measure_core_speed
    from fledgling.evals.session import load_any_model
    from fledgling.files import resolve_data_root
    from fledgling.infer.engine import Engine
    from fledgling.runtime.device import DTYPES, choose_dtype, keep_freed_memory
    from fledgling.runtime.world import World
    from fledgling.tasks.core import read_core_tasks

    chosen = read_core_tasks(resolve_data_root(data_dir), tasks)
    place = World.start(device).device
    keep_freed_memory()
    _, model, tokenizer, _ = load_any_model(checkpoint, place)
    kind = choose_dtype(place) if dtype == "auto" else DTYPES[dtype]
    result = measure_core_speed(Engine(extend_context(model, context), tokenizer, dtype=kind), chosen, items)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    head = f"{'tokens':>9} {'computed':>9} {'tokens/s':>9} {'unshared':>9} {'published':>9} {'forward':>8}"
    print(f"{'':32} {head}")
    for name, part in [*result["tasks"].items(), ("whole files", result["all"])]:
        faster = part["faster"]
        print(
            f"{name:32} {part['tokens']:9,} {part['computed']:9,} {part['tokens_per_second']:9,.0f} "
            f"{faster['unshared']:8.1f}x {faster['published']:8.1f}x {part['share_of_forward']:8.0%}"
        )
    print(f"largest difference of a score between the ways: {result['all']['difference']:.1e} nats a token")


def sparsity(checkpoint: Path | None = None, /, *, repeats: int = 20, as_json: Json = False) -> None:
    """Time ReLU^2's second matrix with its zeros left out, beside the whole product, at one row.

    Parameters
    ----------
    checkpoint
        A run directory: its own rows and matrices, and tokens a second, beside the constructed ones.
    repeats
        Rounds; the figures are medians.
    """
    from benchmarks.sparsity import constructed, decoded, line, real, table

    found = {"constructed": constructed(repeats), "decoded": decoded()}
    found["real"] = real(checkpoint, repeats) if checkpoint else None
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(table(found["constructed"]))
    print("\n".join(map(line, found["decoded"])))
    if found["real"]:
        print(table(found["real"]["products"]))
        print(", ".join(f"{name} {share:.1%}" for name, share in found["real"]["zeros"].items()))
        print("\n".join(map(line, found["real"]["decode"])))


def norms(*, dtype: str = "bfloat16", compiled: bool = False, repeats: int = 7, as_json: Json = False) -> None:
    """Time FlashNorm beside plain RMSNorm, in training steps and in decoding.

    Parameters
    ----------
    dtype
        bfloat16 or float32.
    compiled
        Compile the blocks that are trained.
    repeats
        Rounds; the figures are medians.
    """
    from benchmarks.flash_norm import measure, table

    found = measure(dtype, compiled, repeats)
    print(json.dumps(found, indent=2) if as_json else table(found))


def guesses(
    checkpoint: Checkpoint,
    /,
    *,
    ahead: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (3, 7),
    tokens: int = 60,
    repeats: int = 3,
    as_json: Json = False,
) -> None:
    """Time one row with tokens guessed ahead and without, on texts that repeat themselves and on questions.

    Parameters
    ----------
    ahead
        Tokens guessed in a step.
    tokens
        Drawn for each prompt, at most.
    repeats
        Of everything, in turn; the least counts.
    """
    from benchmarks.guesses import measure, table
    from fledgling.evals.session import load_any_model
    from fledgling.runtime.world import World

    _, model, tokenizer, _ = load_any_model(checkpoint, World.start("auto").device)
    found = measure(model, tokenizer, ahead, tokens=tokens, repeats=repeats)
    print(json.dumps(found, indent=2) if as_json else table(found))
