"""`fledgling bench`: speed, each figure beside its limit on this machine."""

from __future__ import annotations

import json

from cyclopts import App

from fledgling.cli.options import Gpus, Json, Overrides
from fledgling.config import load_recipe
from fledgling.world import is_main_process, launch, launched, leave

app = App(name="bench", help="Speed, each figure beside its physical limit on this machine.")


@app.command
def train(
    *,
    depth: int = 4,
    vocab_size: int = 32768,
    context: int = 512,
    batch: int = 8,
    steps: int = 12,
    overrides: Overrides = (),
    as_json: Json = False,
) -> None:
    """Time training steps: tokens per second, forward, backward and optimizer, memory, share of the measured peak.

    Parameters
    ----------
    depth
        Layers; width and heads follow.
    vocab_size
        Entries of the tokenizer.
    context
        Tokens a row.
    batch
        Rows a step.
    steps
        Steps timed, after three that are not.
    """
    from fledgling.bench.train import measure, shaped

    result = measure(shaped(load_recipe("quickstart", overrides), depth, vocab_size, context), batch, steps)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    seconds, gflops = result["seconds"], result["gflops"]
    print(f"{result['parameters']:,} parameters, {result['dtype']}, {'compiled' if result['compiled'] else 'eager'}")
    print(f"{result['tokens_per_second']:,.0f} tokens/s, {seconds['step'] * 1e3:,.0f} ms a step")
    for part in ("forward", "backward", "optimizer"):
        print(f"  {part:9} {seconds[part] * 1e3:7,.0f} ms  {seconds[part] / seconds['step']:4.0%}")
    print(f"{gflops['achieved']:,.0f} of {gflops['peak']:,.0f} GFLOP/s measured here: {result['share_of_peak']:.1%}")
    print(f"{result['peak_memory'] / 1e9:.2f} GB peak memory")


@app.command
def optim(
    *, gpus: Gpus = 2, depth: int = 6, vocab_size: int = 8192, overrides: Overrides = (), as_json: Json = False
) -> int:
    """Memory of a rank in a training step under ZeRO 0, 1 and 2: measured, beside what the layout says.

    Parameters
    ----------
    depth
        Layers; width and heads follow.
    vocab_size
        Entries of the tokenizer.
    """
    recipe = load_recipe("quickstart", overrides)
    if gpus is not None and not launched():
        again = ["--depth", str(depth), "--vocab-size", str(vocab_size), *(["--json"] if as_json else [])]
        again += [part for one in overrides for part in ("--set", one)]
        return launch(gpus, recipe.run.device, ["-m", "fledgling", "bench", "optim", *again])
    from fledgling.bench.optim import measure, table
    from fledgling.bench.train import shaped

    found = measure(shaped(recipe, depth, vocab_size, context=16))
    leave()
    if is_main_process():
        print(json.dumps(found, indent=2) if as_json else table(found))
    return 0


@app.command
def tokenizer(*, data_dir: str | None = None, vocab_size: int = 32768, as_json: Json = False) -> None:
    """Train on 100 MB of text and encode it, on one thread and on all, beside other libraries.

    Parameters
    ----------
    data_dir
        Where the data sets are; default FLEDGLING_DATA.
    vocab_size
        Entries to train.
    """
    from fledgling.bench import tokenizer as bench

    result = bench.measure(data_dir=data_dir, vocab_size=vocab_size)
    print(json.dumps(result, indent=2) if as_json else bench.table(result))


@app.command
def sandbox(*, data_dir: str | None = None, calls: int = 200, as_json: Json = False) -> None:
    """Time a call of the interpreter and of the process, and HumanEval's reference solutions and broken variants.

    Parameters
    ----------
    data_dir
        Where the data sets are; default FLEDGLING_DATA. Without HumanEval there, only calls are timed.
    calls
        Calls timed, one after another, after one that is not.
    """
    from fledgling.bench import sandbox as bench

    result = bench.measure(data_dir=data_dir, calls=calls)
    print(json.dumps(result, indent=2) if as_json else bench.table(result))
