"""Measures what a checkpoint costs training: the stall, the slower steps meanwhile, and the speed of the disk.

A save costs twice: the loop waits for the copy (the stall), and the writer takes processor time and memory bandwidth
from the steps that run meanwhile. Both are measured with training's step and saver on random rows, as shares of the
recipe's save interval. Bytes go to the file system of the run directory and are flushed, by the saver and by the
plain writes that it is compared with; a disk under other load is not measured.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

from fledgling.bench.train import build_training
from fledgling.config import Recipe, StageConfig, UserError
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan.horizon import compute_horizon
from fledgling.record.durable import fsync_path
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.random_batches import RandomBatches
from fledgling.train.saver import CheckpointSaver
from fledgling.train.stage import Stage

WARMUP, REST_STEPS = 3, 10  # steps that are not measured; steps between two saves while nothing is written
CHUNK_BYTES = 1 << 20  # bytes of one plain write


def measure_saving(recipe: Recipe, name: str = "pretrain", saves: int = 5) -> dict[str, Any]:
    """Trains with `saves` saves and returns medians: seconds of step, stall and writer, bytes, bandwidths and shares.

    Returns:
        stall_share: of the wall time of one save interval; slowed: number of the steps that ran during a write, and
        the seconds that they took longer, summed; cost_share: stall and these seconds together.

    Raises:
        UserError: saves is below 1, or the run directory cannot be written.
    """
    if saves < 1:
        raise UserError(f"--saves {saves}: expected at least 1")
    table = cast(StageConfig, recipe.stage_config(name))
    world, setup, model, optimizer = build_training(recipe, table.learning_rate or 1.0)
    horizon = compute_horizon(recipe.resolve_model(), table.batch_tokens, table.steps)
    rows = horizon.batch_tokens // recipe.model.context
    stream = RandomBatches(recipe.tokenizer.vocab_size, rows, recipe.model.context)
    micro_batches = stream.batch.split(table.micro_batch_size or rows)
    steps, interval = horizon.steps, table.save_every or horizon.steps
    stage = Stage(
        name, steps, stream, next_token_loss, partial(trapezoidal_schedule, total_steps=steps), save_every=interval
    )
    usual_steps, slowed_steps, stalls, writers, disk_speeds = [], [], [], [], []

    def step() -> float:
        start = time.perf_counter()
        loop.train_step(stage, model, optimizer, micro_batches, world)
        return time.perf_counter() - start

    with (
        tempfile.TemporaryDirectory(dir=_find_folder(Path(recipe.run.out)), prefix=".bench-save-") as folder,
        CheckpointSaver(
            Path(folder, "checkpoints"), model, optimizer, world, lambda step: {"step": step}, {}, 2, True
        ) as save,
    ):
        for _ in range(WARMUP):
            step()
        for number in range(1, saves + 1):
            save(number)
            seconds = save.metrics()  # those of the writer too, where it has finished already
            stalls.append(seconds["save_stall"])
            slowed = []
            while save.writer.busy:
                slowed.append(step())
            slowed_steps.append(slowed)
            usual_steps += [step() for _ in range(REST_STEPS)]
            save.writer.wait()
            writers.append((seconds | save.metrics())["save_seconds"])
            size = sum(path.stat().st_size for path in Path(folder, "checkpoints", f"step-{number:08d}").iterdir())
            disk_speeds.append(size / _plain_write(Path(folder, "plain"), size))
            print(f"\rsave {number}/{saves}", end="", file=sys.stderr)
    print(file=sys.stderr)
    usual_seconds = statistics.median(usual_steps)
    stall, writer = statistics.median(stalls), statistics.median(writers)
    extra_seconds = statistics.median(sum(slowed) - len(slowed) * usual_seconds for slowed in slowed_steps)
    return {
        "recipe": recipe.name,
        "stage": name,
        "parameters": model.count_parameters(),
        "dtype": setup.dtype_name,
        "bytes": size,
        "interval_steps": interval,
        "step_seconds": usual_seconds,
        "stall_seconds": stall,
        "stall_seconds_most": max(stalls),
        "stall_share": stall / (interval * usual_seconds + stall),
        "writer_seconds": writer,
        "slowed": {"steps": statistics.median(map(len, slowed_steps)), "extra_seconds": extra_seconds},
        "cost_share": (stall + max(0.0, extra_seconds)) / (interval * usual_seconds + stall),
        "bytes_per_second": {"writer": size / writer, "disk": statistics.median(disk_speeds)},
    }


def _find_folder(run_dir: Path) -> Path:
    """Returns the run directory, or its nearest parent that exists."""
    out = run_dir.absolute()
    return next(path for path in (out, *out.parents) if path.is_dir())


def _plain_write(path: Path, size: int) -> float:
    """Returns the seconds to write and flush `size` random bytes to a new file."""
    chunk = os.urandom(min(size, CHUNK_BYTES))
    start = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(-(-size // len(chunk))):
            file.write(chunk)
    fsync_path(path)
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def format_saving(result: dict[str, Any]) -> str:
    """Returns the result of `measure_saving` as lines of text."""
    speed, slowed = result["bytes_per_second"], result["slowed"]
    return "\n".join(
        (
            f"{result['parameters']:,} parameters, {result['bytes'] / 1e6:,.1f} MB a checkpoint; {result['recipe']}, "
            f"{result['stage']}: every {result['interval_steps']:,} steps of {result['step_seconds'] * 1e3:,.0f} ms",
            f"stall   {result['stall_seconds'] * 1e3:8,.1f} ms (most {result['stall_seconds_most'] * 1e3:,.1f}): "
            f"{result['stall_share']:.3%} of wall time",
            f"writer  {result['writer_seconds'] * 1e3:8,.1f} ms: {speed['writer'] / 1e6:,.0f} MB/s with hashing and "
            f"checking; the disk alone {speed['disk'] / 1e6:,.0f} MB/s",
            f"slowed  {slowed['steps']:.0f} steps, {slowed['extra_seconds'] * 1e3:,.1f} ms longer than usual; stall "
            f"and this together {result['cost_share']:.3%} of wall time",
        )
    )
