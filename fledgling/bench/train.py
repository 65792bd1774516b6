"""How fast a training step is: tokens per second, its parts, its memory, its share of this machine's peak.

The step is the real one (`train.loop.update` with the real loss and optimizer), on random rows of tokens:
random, because a benchmark on zeros would flatter every cache. Forward and optimizer are timed from outside,
backward is what is left. With several ranks, what collectives take of all of these is timed too: on a CPU what
computing waits for, on a GPU what it would be if nothing overlapped (the clock waits for the device).
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fledgling.config import Recipe
from fledgling.data.batch import Batch
from fledgling.model.build import build_model
from fledgling.model.config import config_from_table
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan import measured_speed
from fledgling.plan.flops import training_flops_per_token
from fledgling.runtime.device import DeviceSetup, measure_peak_flops, set_up_device
from fledgling.runtime.world import PendingCollective, World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage


class Clock:
    """Adds up the seconds spent inside the functions it wraps."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    def now(self) -> float:
        """Seconds, after everything queued on the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, function: Callable) -> Callable:
        """`function`, timed."""

        def timed(*args, **kwargs):
            began = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += self.now() - began

        return timed


COLLECTIVES = (
    "all_reduce",
    "all_gather_object",
    "all_to_all",
    "reduce_scatter",
    "all_gather",
    "gather_to_main",
)  # of World: what ranks say


@contextmanager
def time_collectives(clock: Clock) -> Iterator[None]:
    """Within it `clock` adds up what starting and awaiting collectives takes."""
    kept = [(owner, name, getattr(owner, name)) for owner, names in ((World, COLLECTIVES), (PendingCollective, ("wait",)))
            for name in names]  # fmt: skip
    for owner, name, function in kept:
        setattr(owner, name, clock.wrap(function))
    try:
        yield
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


class RandomBatches:
    """An endless stream of one random micro-batch: tokens (rows, T) uniform over the vocabulary."""

    def __init__(self, vocab_size: int, rows: int, context: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(vocab_size, (rows, context + 1), generator=generator)
        documents = (torch.arange(context) * 3 // context).int().expand(rows, -1)  # three documents a row
        self.batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), documents.contiguous())

    def next(self) -> list[Batch]:
        """The micro-batches of a step: one."""
        return [self.batch]


def build_training(recipe: Recipe, learning_rate: float = 1.0) -> tuple[World, DeviceSetup, Transformer, Optimizer]:
    """What a training step needs besides data, as the recipe describes it and this machine runs it."""
    world = World.start(recipe.run.device)
    setup = set_up_device(recipe.run, world)
    model = build_model(config_from_table(recipe.model, recipe.tokenizer.vocab_size), setup, world.device)
    model.initialize(recipe.seed)
    return world, setup, model, Optimizer(model, recipe.optimizer, world, learning_rate, setup.compiled, setup.dtype)


def measure_training(recipe: Recipe, rows: int, steps: int = 12, warmup: int = 3) -> dict:
    """Time `steps` training steps of `rows` rows a rank after `warmup`: medians, and the best of two measured peaks.

    Every rank must call it. The share of the peak of a rank alone is kept where `fledgling plan` finds it. Returns
    ranks, threads (of one), tokens_per_second (of all ranks), seconds {step, forward, backward, optimizer,
    communication} of this rank, gflops achieved and peak, share, and peak_memory in bytes (of the process on CPU, of
    the allocator on a GPU).
    """
    world, setup, model, optimizer = build_training(recipe)
    config = model.config
    forward, moving, whole, spoken = clocks = [Clock(world.device) for _ in range(4)]
    optimizer.step = moving.wrap(optimizer.step)  # type: ignore[method-assign]
    loss: Callable[[Transformer, Batch], Tensor] = forward.wrap(next_token_loss)
    stream = RandomBatches(config.vocab_size, rows, config.context, seed=world.rank)
    stage = Stage("bench", steps, stream, loss, partial(trapezoidal_schedule, total_steps=steps))  # type: ignore[arg-type]
    samples: dict[str, list[float]] = {"forward": [], "optimizer": [], "step": [], "communication": []}
    for index in range(warmup + steps):
        for clock in clocks:
            clock.seconds = 0.0
        with time_collectives(spoken):
            whole.wrap(loop.train_step)(stage, model, optimizer, stream.next(), world)
        if world.is_main:
            print(f"\rstep {index + 1}/{warmup + steps}", end="", file=sys.stderr)
        if index >= warmup:
            for name, clock in zip(samples, clocks, strict=True):
                samples[name].append(clock.seconds)
    if world.is_main:
        print(file=sys.stderr)
    seconds = {name: statistics.median(values) for name, values in samples.items()}
    seconds["backward"] = seconds["step"] - seconds["forward"] - seconds["optimizer"]
    peak = max(setup.peak_flops, measure_peak_flops(world.device, setup.dtype))
    tokens = rows * config.context  # of a rank
    achieved = training_flops_per_token(config) * tokens / seconds["step"]
    dtype = str(setup.dtype).removeprefix("torch.")
    card = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
    name = measured_speed.device_name(world.device.type, dtype, card)
    what = f"{config.family} {config.depth} x {config.width}, {rows} x {config.context} tokens"
    if name and world.size == 1:
        day = time.strftime("%Y-%m-%d")
        measured_speed.save_speed(
            measured_speed.MeasuredSpeed(name, achieved / peak, peak, tokens / seconds["step"], what, day)
        )
    return {
        "parameters": model.count_parameters(),
        "dtype": dtype,
        "kept_for": name if world.size == 1 else "",
        "ranks": world.size,
        "threads": torch.get_num_threads(),
        "compiled": setup.compiled,
        "tokens_per_second": world.size * tokens / seconds["step"],
        "seconds": seconds,
        "gflops": {"achieved": achieved / 1e9, "peak": peak / 1e9},
        "share_of_peak": achieved / peak,
        "peak_memory": peak_memory(world.device),
    }


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process (CPU) or the allocator (CUDA) ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    factor = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor


def with_model_size(recipe: Recipe, depth: int, vocab_size: int, context: int) -> Recipe:
    """The recipe with another model: what the benchmark's options ask for."""
    tokenizer = replace(recipe.tokenizer, vocab_size=vocab_size)
    return replace(
        recipe,
        tokenizer=tokenizer,
        model=replace(recipe.model, depth=depth, width=None, heads=None, context=context),
    )
