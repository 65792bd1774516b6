"""Compares the speed of this checkout with that of another: training steps and answers, in blocks that take turns.

A process of each checkout does the same work on one thread, a block at a time. What counts are CPU seconds: where other
programs use the machine, the wall time of a block varies several times, and its CPU seconds by a percent. Two processes
of one checkout differ by 1 to 2 % as long as they run, so several pairs of processes are compared.

The worker is this file, run by itself with the other checkout in front of the path: it uses only names of `fledgling`
that both have.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

KINDS = ("training", "answers")
HERE = Path(__file__).resolve().parents[1]
STEPS = {  # what is timed: depth, vocabulary, context, rows, and the steps of a block
    "step, 2 x 128, 8 rows of 256": (2, 4096, 256, 8, 2),
    "step, 1 x 64, 4 rows of 64": (1, 1024, 64, 4, 20),  # most of its time is not in products
}
LR_MULTIPLIER = 0.01  # at full rates steps on random tokens diverge, and a step that is not finite updates nothing
ROWS, PROMPT_TOKENS, NEW_TOKENS = (1, 8), 16, 32
Work = Callable[[], object]


def compare_checkouts(before: Path, kinds: Sequence[str], pairs: int, blocks: int) -> dict[str, Any]:
    """Returns a row for each piece of work: CPU seconds of both checkouts, and how many times as fast this one is.

    Args:
        before: the other checkout.
        kinds: of KINDS.
        pairs: of processes, one after the other.
        blocks: of each process, which alternate with those of the other.

    Raises:
        UserError: no checkout, other kinds, or numbers below 1.
    """
    from fledgling.config import UserError

    if not (before / "fledgling" / "__init__.py").is_file():
        raise UserError(f"{before} is no checkout of fledgling: it has no fledgling/__init__.py")
    if not kinds or set(kinds) - set(KINDS) or pairs < 1 or blocks < 1:
        raise UserError(
            f"--kind {' '.join(kinds)} --pairs {pairs} --blocks {blocks}: expected some of {', '.join(KINDS)}, and "
            "at least 1"
        )
    rows = []
    for kind in kinds:
        measured = []
        for pair in range(pairs):
            with start_checkout(before, kind) as ask_before, start_checkout(HERE, kind) as ask_now:
                for block in range(blocks):
                    print(
                        f"\r{kind}: pair {pair + 1} of {pairs}, block {block + 1} of {blocks} ",
                        end="",
                        file=sys.stderr,
                        flush=True,
                    )
                    measured.append((pair, *alternate(block, ask_before, ask_now)))
        rows += summarize(measured)
    print(file=sys.stderr)
    return {"before": str(before), "pairs": pairs, "blocks": blocks, "rows": rows}


def alternate(block: int, ask_before: Callable, ask_now: Callable) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the seconds of one block of both; every second block begins with the other one."""
    if block % 2:
        now = ask_now(block)
        return ask_before(block), now
    return ask_before(block), ask_now(block)


def summarize(measured: Sequence[tuple[int, dict[str, float], dict[str, float]]]) -> list[dict[str, Any]]:
    """Returns a row for each piece of work. measured: of each block its pair, and seconds before and now by work."""
    rows = []
    for name in measured[0][1]:
        ratios: dict[int, list[float]] = {}
        for pair, before, now in measured:
            ratios.setdefault(pair, []).append(before[name] / now[name])
        by_pair = [statistics.median(values) for values in ratios.values()]
        rows.append(
            {
                "work": name,
                "before": statistics.median(before[name] for _, before, _ in measured),
                "now": statistics.median(now[name] for *_, now in measured),
                "speed": statistics.median(by_pair),
                "low": min(by_pair),
                "high": max(by_pair),
            }
        )
    return rows


def start_checkout(checkout: Path, kind: str) -> AbstractContextManager[Callable[[object], dict[str, Any]]]:
    """Starts a worker of a checkout; for each line it does a block of each piece of work."""
    from benchmarks.worker import start_worker

    # -P: without this folder in the path, whose modules have names of libraries
    return start_worker(
        ["-P", __file__, kind], {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}, kind
    )


def serve(kind: str) -> None:
    """Does a block of each piece of work for each line of stdin, and prints the CPU seconds of each."""
    works = make_steps() if kind == "training" else make_answers()
    for _ in sys.stdin:
        print(json.dumps({name: time_work(work, times) for name, (work, times) in works.items()}), flush=True)


def time_work(work: Work, times: int) -> float:
    """Returns the CPU seconds of one piece of work, after one that fills the caches."""
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def make_steps() -> dict[str, tuple[Work, int]]:
    """Returns training steps by name, with the number of steps of a block."""
    return {name: (make_step(*sizes), times) for name, (*sizes, times) in STEPS.items()}


def make_step(depth: int, vocab_size: int, context: int, rows: int) -> Work:
    """Returns a training step of the quickstart's recipe in another size, compiled."""
    from fledgling.bench.sized_recipe import with_model_size
    from fledgling.bench.train import build_training
    from fledgling.config import ModelConfig, load_recipe
    from fledgling.optim.schedule import trapezoidal_schedule
    from fledgling.train.loop import train_step
    from fledgling.train.loss import next_token_loss
    from fledgling.train.random_batches import RandomBatches
    from fledgling.train.stage import Stage

    names = {entry.name for entry in fields(ModelConfig)}  # of either checkout: the older may have no presets
    plain = ("model.preset=nanochat-2025",) if "preset" in names else ()
    recipe = with_model_size(load_recipe("quickstart", ("run.threads=1", *plain)), depth, vocab_size, context)
    world, _, model, optimizer = build_training(recipe)
    optimizer.set_schedule_multiplier(LR_MULTIPLIER)
    stream = RandomBatches(vocab_size, rows, context)
    stage = Stage("compared", 1, stream, next_token_loss, partial(trapezoidal_schedule, total_steps=1))

    def step() -> None:
        train_step(stage, model, optimizer, stream.next(), world)

    for _ in range(3):
        step()
    return step


def make_answers() -> dict[str, tuple[Work, int]]:
    """Returns the answers to 1 and 8 prompts by name: 6 layers of 256, in the dtype of the machine, 8 and 4 bits."""
    import torch

    from fledgling.bench.backends import EngineBackend
    from fledgling.bench.infer import NoSpecialTokens, make_random_model
    from fledgling.config import ModelConfig
    from fledgling.infer.engine import Engine
    from fledgling.kernels.format import DEFAULT_GROUP_SIZES
    from fledgling.kernels.quantized_model import load_quantized_model, quantize_state_dict
    from fledgling.runtime.device import choose_dtype

    torch.set_num_threads(1)
    cpu, vocab_size = torch.device("cpu"), 4096
    dtype = choose_dtype(cpu)
    context = PROMPT_TOKENS + NEW_TOKENS + 1
    sizes = {"depth": 6, "width": 256, "heads": 2, "kv_heads": 2, "vocab_size": vocab_size, "context": context}
    config = ModelConfig.from_dict({**sizes, "family": "fledgling"})  # without optional features, in either checkout
    model = make_random_model(config, dtype, cpu)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocab_size, (max(ROWS), PROMPT_TOKENS), generator=generator).tolist()
    works: dict[str, tuple[Work, int]] = {}
    for bits in (8 * dtype.itemsize, 8, 4):
        kept = model
        if bits <= 8:
            packed = quantize_state_dict(config, model.state_dict(), bits, DEFAULT_GROUP_SIZES[bits])
            kept = load_quantized_model(config, packed, {"bits": bits}, cpu, dtype)
        backend = EngineBackend(Engine(kept, NoSpecialTokens()))  # type: ignore[arg-type]
        for rows in ROWS:
            name = f"{NEW_TOKENS} tokens after {PROMPT_TOKENS}, {bits} bits, {rows} row{'s' * (rows > 1)}"
            works[name] = partial(backend.generate, prompts[:rows], NEW_TOKENS), 1
    return works


def format_checkouts(result: dict[str, Any]) -> str:
    """Returns the result of `compare_checkouts` as a table."""
    lines = [
        f"{result['pairs']} pairs of processes, {result['blocks']} blocks each, one thread; before: {result['before']}",
        f"{'CPU ms':<40}{'before':>9}{'now':>9}{'speed now':>11}  (pairs: lowest to highest)",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['work']:<40}{row['before'] * 1e3:>9.2f}{row['now'] * 1e3:>9.2f}{row['speed']:>10.3f}x"
            f"  {row['low']:.3f} to {row['high']:.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    serve(sys.argv[1])
