"""`fledgling bench`: speed, each figure beside its limit on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from fledgling.cli.bench_answers import core, guesses, infer, norms, sandbox, sparsity, tokenizer
from fledgling.cli.options import Depth, Gpus, Json, Overrides, VocabSize
from fledgling.config import load_recipe
from fledgling.runtime.launch import launch_ranks
from fledgling.runtime.world import is_launched_rank, is_main_process, leave_process_group

app = App(name="bench", help="Speed, each figure beside its physical limit on this machine.")
for verb in (infer, core, guesses, norms, sandbox, sparsity, tokenizer):
    app.command(verb)


def _on_ranks(verb: str, gpus: int, overrides: tuple[str, ...], as_json: bool, **options: int) -> int:
    """Run `fledgling bench VERB` again as `gpus` ranks; its exit code."""
    words = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    words += [*(["--json"] if as_json else []), *(part for one in overrides for part in ("--set", one))]
    recipe = load_recipe("quickstart", overrides)
    return launch_ranks(gpus, recipe.run.device, ["-m", "fledgling", "bench", verb, *words])


@app.command
def train(
    *,
    gpus: Gpus = None,
    depth: Depth = 4,
    vocab_size: VocabSize = 32768,
    context: int = 512,
    batch: int = 8,
    steps: int = 12,
    overrides: Overrides = (),
    as_json: Json = False,
) -> int:
    """Time training steps: tokens per second, forward, backward and optimizer, memory, share of the measured peak.

    Parameters
    ----------
    context
        Tokens a row.
    batch
        Rows a step, of each rank.
    steps
        Steps timed, after three that are not.
    """
    if gpus is not None and not is_launched_rank():
        shape = {"depth": depth, "vocab_size": vocab_size, "context": context, "batch": batch, "steps": steps}
        return _on_ranks("train", gpus, overrides, as_json, **shape)
    from fledgling.bench.train import measure_training, with_model_size

    result = measure_training(
        with_model_size(load_recipe("quickstart", overrides), depth, vocab_size, context), batch, steps
    )
    leave_process_group()
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
    depth: Depth = 4,
    vocab_size: VocabSize = 4096,
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
    from benchmarks import scaling as bench

    shape = {"depth": depth, "vocab-size": vocab_size, "context": context, "steps": steps}
    options = [part for name, value in shape.items() for part in (f"--{name}", str(value))]
    options += [part for one in overrides for part in ("--set", one)]
    device = load_recipe("quickstart", overrides).run.device
    result = bench.measure(ranks, batch, threads, options, repeats, device)
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
    from benchmarks import comm as bench

    result = bench.measure(ranks, megabytes, servers, repeats)
    print(json.dumps(result, indent=2) if as_json else bench.table(result))


@app.command
def optim(
    *, gpus: Gpus = 2, depth: Depth = 6, vocab_size: VocabSize = 8192, overrides: Overrides = (), as_json: Json = False
) -> int:
    """Memory of a rank in a training step under ZeRO 0 to 3: measured, beside what is expected."""
    recipe = load_recipe("quickstart", overrides)
    if gpus is not None and not is_launched_rank():
        return _on_ranks("optim", gpus, overrides, as_json, depth=depth, vocab_size=vocab_size)
    from benchmarks.optim import measure, table
    from fledgling.bench.train import with_model_size

    found = measure(with_model_size(recipe, depth, vocab_size, context=16))
    leave_process_group()
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
    from benchmarks import memory as bench

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
    from benchmarks.save import measure, table

    result = measure(load_recipe(recipe, overrides), stage, saves)
    print(json.dumps(result, indent=2) if as_json else table(result))


@app.command
def rollouts(run: Path, /, *, rounds: int = 10, overrides: Overrides = (), as_json: Json = False) -> None:
    """Time the rollouts of reinforcement learning beside plain answers of the same engine.

    Parameters
    ----------
    run
        A run directory that has been through sft: its recipe and its weights.
    rounds
        Rounds of prompts; medians count.
    """
    from fledgling.bench.rollouts import measure, table

    result = measure(load_recipe(str(run), overrides), run / "sft", rounds)
    print(json.dumps(result, indent=2) if as_json else table(result))


@app.command
def gpu(*, out: Path, minutes: float = 8, parts: str = "", tiny: bool = False, as_json: Json = False) -> int:
    """Check one GPU: tests, kernels, training, memory, decoding and a small run, each part in a process of its own.

    Parameters
    ----------
    out
        Directory of results.json, log.txt and the profiles.
    minutes
        The most that all parts together take.
    parts
        Parts by name, with commas between; default all but memory_compiled.
    tiny
        Small shapes, for a machine without a GPU.
    """
    from fledgling.bench.gpu import DEFAULT, run_check, table

    chosen = tuple(parts.split(",")) if parts else DEFAULT
    results = run_check(out, minutes, chosen, tiny, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(results, indent=2) if as_json else table(results))
    return 0 if all(one["state"] == "ok" for one in results.values()) else 1
