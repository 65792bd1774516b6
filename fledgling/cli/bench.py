"""`fledgling bench`: speed, each figure next to its limit on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from cyclopts import App

from fledgling.cli.learn import learn
from fledgling.cli.lists import NameList, SpacedCountList
from fledgling.cli.options import Depth, Gpus, Json, Overrides, VocabSize, print_to_stderr
from fledgling.config import load_recipe
from fledgling.record.jsonl import format_bytes
from fledgling.runtime.launch import launch_ranks
from fledgling.runtime.world import is_launched_rank, is_main_process, leave_process_group

app = App(name="bench", help="Speed, each figure next to its physical limit on this machine.")
app.command(learn)


def _on_ranks(verb: str, gpus: int, overrides: tuple[str, ...], as_json: bool, **options: int) -> int:
    """Runs `fledgling bench VERB` as `gpus` ranks, and returns the exit code."""
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

    With one rank, the speed is saved, and `fledgling plan` uses it for this device and similar shapes.

    Parameters
    ----------
    context
        Tokens in a row.
    batch
        Rows in a step, on each rank.
    steps
        Timed steps, after three warm-up steps.
    """
    if gpus is not None and not is_launched_rank():
        shape = {"depth": depth, "vocab_size": vocab_size, "context": context, "batch": batch, "steps": steps}
        return _on_ranks("train", gpus, overrides, as_json, **shape)
    from fledgling.bench.sized_recipe import load_sized_recipe
    from fledgling.bench.train import TABLES, measure_training

    result = measure_training(load_sized_recipe(overrides, TABLES, depth, vocab_size, context), batch, steps)
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
    if result["share_of_peak"] is None:
        print(f"{gflops['achieved']:,.1f} GFLOP/s")
    else:
        peak, share = gflops["peak"], result["share_of_peak"]
        print(f"{gflops['achieved']:,.0f} of {peak:,.0f} GFLOP/s, the product measured here: {share:.1%}")
    if result["share_of_datasheet"] is not None:
        print(f"{result['share_of_datasheet']:.1%} MFU of the datasheet's dense peak, as others publish it")
    if result["notice"]:
        print(result["notice"])
    print(f"{format_bytes(result['peak_memory'], binary=True)} peak memory")
    if result["saved_for"]:
        print(
            f"fledgling plan now uses this utilization for --gpu {result['saved_for']} and shapes within twice of this"
        )
    return 0


@app.command
def infer(
    *,
    depth: Depth = 12,
    vocab_size: VocabSize = 32768,
    batch: SpacedCountList = (1, 8, 32),
    context: SpacedCountList = (256, 1024),
    tokens: int = 32,
    repeats: int = 3,
    bits: SpacedCountList = (16, 8, 4),
    peers: bool = True,
    overrides: Overrides = (),
    as_json: Json = False,
) -> None:
    """Time generation: first token, tokens per second, shares of the measured bandwidth and FLOP/s, other libraries.

    Parameters
    ----------
    batch
        Rows generated at once, measured with the first value of --context.
    context
        Prompt tokens; all values after the first are measured with one row.
    tokens
        Generated tokens in each row.
    repeats
        Repetitions of all measurements; the result is the median.
    bits
        Bits of a weight: 16 is the run's dtype, 8 and 4 are quantized.
    peers
        Also measure transformers and, for the llama family, llama.cpp, if they are installed.
    """
    from fledgling.bench import infer as bench
    from fledgling.bench.sized_recipe import load_sized_recipe

    model_context = max(context, default=0) + tokens + 1
    recipe = load_sized_recipe(overrides, bench.TABLES, depth, vocab_size, model_context)
    result = bench.measure_inference(recipe, batch, context, tokens, repeats, peers, bits)
    print(json.dumps(result, indent=2) if as_json else bench.format_inference_table(result))


@app.command
def gpu(*, out: Path, minutes: float = 8, parts: NameList = (), tiny: bool = False, as_json: Json = False) -> int:
    """Check one GPU: tests, kernels, training, memory, decoding and a small run, each part in a separate process.

    Parameters
    ----------
    out
        Directory of results.json, log.txt and the profiles.
    minutes
        Time limit of all parts together.
    parts
        Names of parts, separated by commas; default: all but memory_compiled.
    tiny
        Small shapes, for a machine without a GPU.
    """
    from fledgling.bench.gpu import DEFAULT_PARTS, format_check_table, run_gpu_check
    from fledgling.record.outside import require_no_part_of_run

    require_no_part_of_run(out)
    results = run_gpu_check(out, minutes, parts or DEFAULT_PARTS, tiny, print_to_stderr)
    print(json.dumps(results, indent=2) if as_json else format_check_table(results))
    return 0 if all(one["state"] == "ok" for one in results.values()) else 1
