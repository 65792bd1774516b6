"""`fledgling bench`: speed, each figure beside its limit on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from fledgling.cli.options import Gpus, Json, Overrides
from fledgling.config import load_recipe
from fledgling.launch import launch
from fledgling.world import is_main_process, launched, leave

app = App(name="bench", help="Speed, each figure beside its physical limit on this machine.")


def _on_ranks(verb: str, gpus: int, overrides: tuple[str, ...], as_json: bool, **options: int) -> int:
    """Run `fledgling bench VERB` again as `gpus` ranks; its exit code."""
    words = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    words += [*(["--json"] if as_json else []), *(part for one in overrides for part in ("--set", one))]
    recipe = load_recipe("quickstart", overrides)
    return launch(gpus, recipe.run.device, ["-m", "fledgling", "bench", verb, *words])


@app.command
def train(
    *,
    gpus: Gpus = None,
    depth: int = 4,
    vocab_size: int = 32768,
    context: int = 512,
    batch: int = 8,
    steps: int = 12,
    overrides: Overrides = (),
    as_json: Json = False,
) -> int:
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
        Rows a step, of each rank.
    steps
        Steps timed, after three that are not.
    """
    if gpus is not None and not launched():
        shape = {"depth": depth, "vocab_size": vocab_size, "context": context, "batch": batch, "steps": steps}
        return _on_ranks("train", gpus, overrides, as_json, **shape)
    from fledgling.bench.train import measure, shaped

    result = measure(shaped(load_recipe("quickstart", overrides), depth, vocab_size, context), batch, steps)
    leave()
    if not is_main_process():
        return 0
    if as_json:
        print(json.dumps(result, indent=2))
        return 0
    seconds, gflops = result["seconds"], result["gflops"]
    print(f"{result['parameters']:,} parameters, {result['dtype']}, {'compiled' if result['compiled'] else 'eager'}")
    print(f"{result['tokens_per_second']:,.0f} tokens/s, {seconds['step'] * 1e3:,.0f} ms a step")
    for part in ("forward", "backward", "optimizer"):
        print(f"  {part:9} {seconds[part] * 1e3:7,.0f} ms  {seconds[part] / seconds['step']:4.0%}")
    if result["ranks"] > 1:
        share = seconds["communication"] / seconds["step"]
        print(
            f"{result['ranks']} ranks: {seconds['communication'] * 1e3:,.0f} ms of a step is communication, {share:.1%}"
        )
    print(f"{gflops['achieved']:,.0f} of {gflops['peak']:,.0f} GFLOP/s measured here: {result['share_of_peak']:.1%}")
    print(f"{result['peak_memory'] / 1e9:.2f} GB peak memory")
    if result["kept_for"]:
        print(f"fledgling plan reckons with this share for --gpu {result['kept_for']}")
    return 0


@app.command
def scaling(
    *,
    ranks: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 2),
    depth: int = 4,
    vocab_size: int = 4096,
    context: int = 512,
    batch: int = 8,
    threads: int | None = None,
    steps: int = 12,
    repeats: int = 3,
    overrides: Overrides = (),
    as_json: Json = False,
) -> None:
    """Train the same step on 1, 2, ... ranks in turn: tokens per second, speed-up, share of communication.

    On a CPU rows and threads are dealt to the ranks (strong scaling); on GPUs each rank has all rows (weak scaling).

    Parameters
    ----------
    ranks
        Numbers of ranks to try; the first is what the others are compared to.
    depth
        Layers; width and heads follow.
    vocab_size
        Entries of the tokenizer.
    context
        Tokens a row.
    batch
        Rows a step; on GPUs of each rank.
    threads
        Of all ranks together, on a CPU; default its cores.
    steps
        Steps timed in a turn, after three that are not.
    repeats
        Turns; medians count.
    """
    from fledgling.bench import scaling as bench

    shape = {"depth": depth, "vocab-size": vocab_size, "context": context, "steps": steps}
    options = [part for name, value in shape.items() for part in (f"--{name}", str(value))]
    options += [part for one in overrides for part in ("--set", one)]
    device = load_recipe("quickstart", overrides).run.device
    result = bench.measure(ranks, batch, threads, options, repeats, device)
    print(json.dumps(result, indent=2) if as_json else bench.table(result))


@app.command
def infer(
    *,
    depth: int = 12,
    vocab_size: int = 32768,
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
    depth
        Layers; width and heads follow.
    vocab_size
        Entries of the tokenizer.
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
    from fledgling.bench.train import shaped

    room = max(context, default=0) + tokens + 1
    recipe = shaped(load_recipe("quickstart", overrides), depth, vocab_size, room)
    result = bench.measure(recipe, batch, context, tokens, repeats, peers, bits)
    print(json.dumps(result, indent=2) if as_json else bench.table(result))


@app.command
def comm(
    *,
    ranks: int = 2,
    megabytes: float = 16,
    servers: int | None = None,
    repeats: int = 7,
    as_json: Json = False,
) -> None:
    """Run ring, tree and parameter server in processes on this machine: bytes and seconds beside the planner's.

    Parameters
    ----------
    ranks
        Processes, 2 to 8.
    megabytes
        Gradients of one rank, in 10^6 bytes.
    servers
        Of the sharded parameter server; default half of the ranks. One, and all ranks, are always tried too.
    repeats
        Timed runs of each topology; the median counts.
    """
    from fledgling.bench import comm as bench

    result = bench.measure(ranks, megabytes, servers, repeats)
    print(json.dumps(result, indent=2) if as_json else bench.table(result))


@app.command
def optim(
    *, gpus: Gpus = 2, depth: int = 6, vocab_size: int = 8192, overrides: Overrides = (), as_json: Json = False
) -> int:
    """Memory of a rank in a training step under ZeRO 0 to 3: measured, beside what is expected.

    Parameters
    ----------
    depth
        Layers; width and heads follow.
    vocab_size
        Entries of the tokenizer.
    """
    recipe = load_recipe("quickstart", overrides)
    if gpus is not None and not launched():
        return _on_ranks("optim", gpus, overrides, as_json, depth=depth, vocab_size=vocab_size)
    from fledgling.bench.optim import measure, table
    from fledgling.bench.train import shaped

    found = measure(shaped(recipe, depth, vocab_size, context=16))
    leave()
    if is_main_process():
        print(json.dumps(found, indent=2) if as_json else table(found))
    return 0


@app.command
def memory(*, compiled: bool = False, ranks: bool = True, as_json: Json = False) -> None:
    """The peak of live tensor bytes of real training steps beside the planner's, over a grid of shapes on the CPU.

    Parameters
    ----------
    compiled
        Shapes with compiled blocks too: estimates, and each takes half a minute to compile.
    ranks
        Shapes on two ranks too, under ZeRO-0 to 3.
    """
    from fledgling.bench import memory as bench

    cases = bench.EAGER + (bench.RANKS if ranks else ()) + (bench.COMPILED if compiled else ())
    rows = bench.measure(cases, say=lambda text: print(text, file=sys.stderr))
    print(json.dumps(rows, indent=2) if as_json else bench.table(rows))


@app.command
def save(
    recipe: str = "quickstart",
    /,
    *,
    stage: Literal["pretrain", "midtrain", "sft"] = "pretrain",
    saves: int = 5,
    overrides: Overrides = (),
    as_json: Json = False,
) -> None:
    """Time saving beside training: the stall, the writer's bytes per second beside the disk's, shares of wall time.

    Parameters
    ----------
    recipe
        Whose model, batch and save interval; checkpoints are written where it would write them, and deleted.
    stage
        Whose batch and interval.
    saves
        Checkpoints written; medians count.
    """
    from fledgling.bench.save import measure, table

    result = measure(load_recipe(recipe, overrides), stage, saves)
    print(json.dumps(result, indent=2) if as_json else table(result))


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


@app.command
def core(
    checkpoint: str,
    /,
    *,
    tasks: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    items: int = 32,
    context: int | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
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
    device
        auto, cpu, cuda or mps.
    dtype
        Of the products; auto is bfloat16 where the hardware multiplies it.
    """
    from fledgling.bench.core import measure, widened
    from fledgling.cli.eval_core import opened
    from fledgling.files import data_root
    from fledgling.infer.engine import Engine
    from fledgling.tasks.core import read_tasks
    from fledgling.train.setup import DTYPES, fastest_dtype, keep_freed_memory
    from fledgling.world import World

    chosen = read_tasks(data_root(data_dir), tasks)
    place = World.start(device).device
    keep_freed_memory()
    _, model, tokenizer, _ = opened(checkpoint, place)
    kind = fastest_dtype(place) if dtype == "auto" else DTYPES[dtype]
    result = measure(Engine(widened(model, context), tokenizer, dtype=kind), chosen, items)
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


@app.command
def sparsity(checkpoint: Path | None = None, /, *, repeats: int = 20, as_json: Json = False) -> None:
    """Time ReLU^2's second matrix with its zeros left out, beside the whole product, at one row.

    Parameters
    ----------
    checkpoint
        A run directory: its own rows and matrices, and tokens a second, beside the constructed ones.
    repeats
        Rounds; the figures are medians.
    """
    from fledgling.bench.sparsity import constructed, decoded, line, real, table

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


@app.command
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
    from fledgling.bench.flash_norm import measure, table

    found = measure(dtype, compiled, repeats)
    print(json.dumps(found, indent=2) if as_json else table(found))
