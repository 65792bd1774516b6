"""Measures what another busy process costs: training and decoding with one core taken, as a share of their idle speed.

A worker process trains, or decodes one row, for the number of seconds that it is asked for, and reports its speed. Idle
and busy turns alternate; in a busy turn a process that only counts is pinned to the last core. Speeds are compared
within a round. With "fixed" threads the worker keeps as many as there are cores; "passive" ones sleep while they wait
for each other (OMP_WAIT_POLICY); "adapting" is what runs and servers do (`runtime/core_monitor.py`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from benchmarks.worker import start_worker
from fledgling.config import UserError, load_recipe

KINDS = ("training", "decoding")
MODES = ("fixed", "passive", "adapting")
CHECK_SECONDS = 1.0  # between the worker's measurements of the machine
SETTLE_SECONDS = 4.0  # a change of threads needs two measurements that agree
SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
Work = Callable[[], int]  # does a piece of work; returns its tokens


def measure_cpu_contention(kinds: Sequence[str], modes: Sequence[str], repeats: int, seconds: float) -> dict[str, Any]:
    """Returns a row for each kind and mode: tokens per second idle and busy, and the median of the rounds' ratios.

    Args:
        kinds: of KINDS.
        modes: of MODES.
        repeats: rounds of an idle and a busy turn.
        seconds: of a turn.

    Raises:
        UserError: fewer than two cores, or other kinds or modes.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        raise UserError(f"a core to take: got {len(cores)} cores, expected at least 2 and a system that pins processes")
    if not kinds or not modes or set(kinds) - set(KINDS) or set(modes) - set(MODES) or repeats < 1 or seconds <= 0:
        raise UserError(
            f"--kind {' '.join(kinds)} --mode {' '.join(modes)} --repeats {repeats} --seconds {seconds:g}: "
            f"expected some of {', '.join(KINDS)}, some of {', '.join(MODES)}, at least 1 and more than 0"
        )
    rows = []
    for kind in kinds:
        for mode in modes:
            rounds = []
            with start_kind(kind, mode) as ask:
                for number in range(repeats):
                    print(f"\r{kind}, {mode}: round {number + 1} of {repeats} ", end="", file=sys.stderr, flush=True)
                    idle = ask(seconds)
                    with take_core(cores[-1]):
                        rounds.append((idle, ask(seconds)))
            rows.append(summarize(kind, mode, rounds))
    print(file=sys.stderr)
    return {"cores": len(cores), "seconds": seconds, "rows": rows}


def summarize(kind: str, mode: str, rounds: Sequence[tuple[dict, dict]]) -> dict[str, Any]:
    """Returns the row of one kind and mode. rounds: what the worker reported, idle and busy."""
    ratios = [busy["tokens_per_second"] / idle["tokens_per_second"] for idle, busy in rounds]
    return {
        "kind": kind,
        "mode": mode,
        "idle": statistics.median(idle["tokens_per_second"] for idle, _ in rounds),
        "busy": statistics.median(busy["tokens_per_second"] for _, busy in rounds),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "threads": [sorted({report["threads"] for report in turn}) for turn in zip(*rounds, strict=True)],
    }


@contextmanager
def take_core(core: int) -> Iterator[None]:
    """Keeps a core busy with another process inside the block."""
    process = subprocess.Popen([sys.executable, "-c", SPIN, str(core)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def start_kind(kind: str, mode: str) -> AbstractContextManager[Callable[[object], dict]]:
    """Starts a worker, which works for as many seconds as it is asked for and reports its speed."""
    code = f"from benchmarks.cpu_contention import serve; serve({kind!r}, {mode!r})"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if mode == "passive":
        environment["OMP_WAIT_POLICY"] = "passive"
    return start_worker(["-c", code], environment, kind)


def serve(kind: str, mode: str) -> None:
    """Works as long as each line of stdin asks, and prints the speed, without the time that threads need to adapt."""
    import torch

    adapts = mode == "adapting"
    work = make_training(adapts) if kind == "training" else make_decoding(adapts)
    for line in sys.stdin:
        run_for(SETTLE_SECONDS if adapts else CHECK_SECONDS, work)
        speed = run_for(float(line), work)
        print(json.dumps({"tokens_per_second": speed, "threads": torch.get_num_threads()}), flush=True)


def run_for(seconds: float, work: Work) -> float:
    """Repeats the work until the seconds have passed; returns tokens per second."""
    begin, tokens = time.monotonic(), 0
    while (passed := time.monotonic() - begin) < seconds or not tokens:
        tokens += work()
    return tokens / passed


def make_training(adapts: bool) -> Work:
    """Returns a training step of four layers, compiled for all threads as a run compiles it."""
    from fledgling.bench.sized_recipe import PLAIN, with_model_size
    from fledgling.bench.train import build_training
    from fledgling.infer.step_graphs import print_notice
    from fledgling.optim.schedule import trapezoidal_schedule
    from fledgling.train.free_cores import follow_free_cores
    from fledgling.train.loop import train_step
    from fledgling.train.loss import next_token_loss
    from fledgling.train.random_batches import RandomBatches
    from fledgling.train.stage import Stage

    recipe = with_model_size(load_recipe("quickstart", PLAIN), 4, 8192, 512)
    world, _, model, optimizer = build_training(recipe)
    stream = RandomBatches(model.config.vocab_size, 8, 512, seed=0)
    stage = Stage("busy", 1, stream, next_token_loss, partial(trapezoidal_schedule, total_steps=1))

    def step() -> int:
        train_step(stage, model, optimizer, stream.next(), world)
        return 8 * 512

    for _ in range(3):
        step()
    adapt = follow_free_cores(recipe.run, world, print_notice, seconds=CHECK_SECONDS) if adapts else dict

    def step_and_adapt() -> int:
        adapt()
        return step()

    return step_and_adapt


def make_decoding(adapts: bool) -> Work:
    """Returns the decoding of one token of one row, 12 layers x 768 in bf16."""
    import torch

    from fledgling.bench.infer import NoSpecialTokens, make_random_model
    from fledgling.config import ModelConfig
    from fledgling.infer.engine import Engine
    from fledgling.infer.sampling import SamplingParams
    from fledgling.infer.step_graphs import print_notice
    from fledgling.runtime.core_monitor import CoreMonitor
    from fledgling.runtime.cores import count_cores

    torch.set_num_threads(count_cores())
    config = ModelConfig(
        depth=12, width=768, heads=12, kv_heads=12, vocab_size=32768, context=512, preset="nanochat-2025"
    )
    model = make_random_model(config, torch.bfloat16, torch.device("cpu")).requires_grad_(False)
    engine = Engine(model, NoSpecialTokens())  # type: ignore[arg-type]
    if adapts:
        threads = torch.get_num_threads()
        engine.runner.core_monitor = CoreMonitor(threads, torch.set_num_threads, print_notice, CHECK_SECONDS)
    scheduler = engine.make_scheduler(1)
    sampling = SamplingParams(temperature=0.0, max_new_tokens=128)

    def token() -> int:
        if not scheduler.has_unfinished:
            scheduler.add_request(engine.make_request(list(range(64)), sampling, 0, use_tools=False))
            scheduler.step()
        scheduler.step()
        return 1

    return token


def format_cpu_contention(result: dict[str, Any]) -> str:
    """Returns the result of `measure_cpu_contention` as a table."""
    lines = [
        f"one of {result['cores']} cores taken by another process; turns of {result['seconds']:g} s",
        f"{'':<10}{'threads':<10}{'idle tok/s':>11}{'busy tok/s':>11}{'busy/idle':>11}  (lowest to highest)"
        "  threads when busy",
    ]
    for row in result["rows"]:
        counts = ", ".join(map(str, row["threads"][1]))
        lines.append(
            f"{row['kind']:<10}{row['mode']:<10}{row['idle']:>11,.0f}{row['busy']:>11,.0f}{row['ratio']:>11.0%}"
            f"  {row['low']:>8.0%} to {row['high']:.0%}{counts:>13}"
        )
    return "\n".join(lines)
