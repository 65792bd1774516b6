"""Measures a training step: tokens per second, time of its parts, memory, share of the measured peak FLOP/s.

The step is that of training (`train.loop.train_step` with its loss and optimizer) on random tokens: equal tokens would
be served from the caches. Forward and optimizer are timed by wrapping them; backward is the rest. With several
ranks the collectives are timed too: on a CPU the time that the computation waits for them; on a GPU the time without
overlap, because the clock waits for the device.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from fledgling.config import AdapterConfig, ModelConfig, Recipe, UserError
from fledgling.data.batch import Batch
from fledgling.model.adapter import attach_adapter, initialize_adapter
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan import measured_speed
from fledgling.plan.flops import training_flops_per_token
from fledgling.runtime.accelerator import synchronize
from fledgling.runtime.device import SUSPICIOUS_SHARE, DeviceSetup, measure_peak_flops, set_up_device
from fledgling.runtime.world import PendingCollective, World
from fledgling.train.loop import train_step
from fledgling.train.loss import next_token_loss
from fledgling.train.peak import find_datasheet_peak, name_device, replace_exceeded_peak
from fledgling.train.random_batches import RandomBatches
from fledgling.train.stage import Stage
from fledgling.train.stage_weights import build_adapted_model

TABLES = ("model", "optimizer", "run", "adapter", "seed")  # of a recipe, that the step follows


class Clock:
    """Adds up the seconds spent inside the functions it wraps."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    def now(self) -> float:
        """Returns the time in seconds, after everything queued on the device is done."""
        synchronize(self.device)
        return time.perf_counter()

    def wrap(self, function: Callable) -> Callable:
        """Returns `function` with its time added to `seconds`."""

        def timed(*args, **kwargs):
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += self.now() - start

        return timed


COLLECTIVES = (
    "all_reduce",
    "all_gather_object",
    "all_to_all",
    "reduce_scatter",
    "all_gather",
    "gather_to_main",
)  # methods of World


@contextmanager
def time_collectives(clock: Clock) -> Iterator[None]:
    """Adds to `clock` the time inside the block that is spent starting collectives and waiting for them."""
    owners: dict[type, tuple[str, ...]] = {World: COLLECTIVES, PendingCollective: ("wait",)}
    originals = [(owner, name, getattr(owner, name)) for owner, names in owners.items() for name in names]
    for owner, name, function in originals:
        setattr(owner, name, clock.wrap(function))
    try:
        yield
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def build_training(recipe: Recipe, lr_multiplier: float = 1.0) -> tuple[World, DeviceSetup, Transformer, Optimizer]:
    """Returns what a training step needs besides data, as the recipe describes it. An adapter's blocks may be eager."""
    world = World.start(recipe.run.device)
    setup = set_up_device(recipe.run, world)
    config, adapter = recipe.resolve_model(), read_adapter(recipe.adapter)
    sharding = recipe.optimizer.zero_stage
    model = build_adapted_model(config, adapter, lambda model: model.initialize(recipe.seed), setup, world, sharding)
    if adapter:
        attach_adapter(model, adapter, config)
        initialize_adapter(model, recipe.seed)
    return world, setup, model, Optimizer(model, recipe.optimizer, world, lr_multiplier, setup.compiled, setup.dtype)


def read_adapter(table: AdapterConfig) -> AdapterConfig | None:
    """Returns the adapter that is trained, whatever its stages; None: the weights are."""
    return table if table.method != "none" else None


def measure_training(recipe: Recipe, rows: int, steps: int = 12, warmup: int = 3) -> dict:
    """Times `steps` training steps after `warmup`; with one rank, saves the speed where `fledgling plan` finds it.

    Every rank must call it.

    Args:
        rows: of one rank and step.

    Returns:
        parameters, dtype, ranks, threads (of one rank), tokens_per_second (of all ranks), seconds {step, forward,
        backward, optimizer, communication} as medians of this rank, gflops {achieved, peak}, share_of_peak (both None
        where the step exceeds every measurement of the peak), share_of_datasheet (of the vendor's dense peak, as
        published MFU is; None for a CPU or a GPU that the planner's table lacks), peak_memory in bytes (of the process
        on a CPU, of the allocator on a GPU), saved_for, the device name under which the speed was saved, or "", and
        notice: what was wrong with the peak, and why the speed is not saved, or "".
    """
    if steps < 1 or rows < 1:
        raise UserError(f"--steps {steps}, --batch {rows}: expected at least 1 of each")
    world, setup, model, optimizer = build_training(recipe)
    config = model.config
    forward, optimizer_clock, step_clock, communication = clocks = [Clock(world.device) for _ in range(4)]
    optimizer.step = optimizer_clock.wrap(optimizer.step)  # type: ignore[method-assign]
    loss: Callable[[Transformer, Batch], Tensor] = forward.wrap(next_token_loss)
    stream = RandomBatches(config.vocab_size, rows, config.context, seed=world.rank)
    stage = Stage("bench", steps, stream, loss, partial(trapezoidal_schedule, total_steps=steps))
    samples: dict[str, list[float]] = {"forward": [], "optimizer": [], "step": [], "communication": []}
    for index in range(warmup + steps):
        for clock in clocks:
            clock.seconds = 0.0
        with time_collectives(communication):
            step_clock.wrap(train_step)(stage, model, optimizer, stream.next(), world)
        if world.is_main and sys.stderr.isatty():
            print(f"\rstep {index + 1}/{warmup + steps}", end="", file=sys.stderr)
        if index >= warmup:
            for name, clock in zip(samples, clocks, strict=True):
                samples[name].append(clock.seconds)
    if world.is_main and sys.stderr.isatty():
        print(file=sys.stderr)
    seconds = {name: statistics.median(values) for name, values in samples.items()}
    seconds["backward"] = seconds["step"] - seconds["forward"] - seconds["optimizer"]
    tokens = rows * config.context  # of a rank
    compiled = setup.compiled and recipe.adapter.compiles_blocks(world.device.type, setup.dtype_name)
    per_token = training_flops_per_token(config, adapter=read_adapter(recipe.adapter))
    achieved = per_token * tokens / seconds["step"]
    peak, notice = measure_peak_above(setup, world.device, achieved)
    speed_name = name_device(setup, world.device)
    is_saved = bool(speed_name and world.size == 1 and peak)
    datasheet = find_datasheet_peak(setup, world.device)
    if speed_name and is_saved and peak:
        what = describe_step(config, recipe.adapter, rows, setup.dtype_name, compiled)
        day = time.strftime("%Y-%m-%d")
        failure = measured_speed.save_speed(
            measured_speed.MeasuredSpeed(
                *(speed_name, achieved / peak, peak, tokens / seconds["step"], what, day),
                flops_per_token=per_token,
                micro_batch_tokens=tokens,
                compiled=compiled,
            )
        )
        is_saved, notice = not failure, "; ".join(filter(None, [notice, failure]))
    return {
        "parameters": model.count_parameters(),
        "dtype": setup.dtype_name,
        "saved_for": speed_name if is_saved else "",
        "ranks": world.size,
        "threads": torch.get_num_threads(),
        "compiled": compiled,
        "tokens_per_second": world.size * tokens / seconds["step"],
        "seconds": seconds,
        "gflops": {"achieved": achieved / 1e9, "peak": peak and peak / 1e9},
        "share_of_peak": peak and achieved / peak,
        "share_of_datasheet": achieved / datasheet if datasheet else None,
        "notice": notice,
        "peak_memory": measure_process_peak_memory(world.device),
    }


def describe_step(config: ModelConfig, adapter: AdapterConfig, rows: int, dtype: str, compiled: bool) -> str:
    """Returns what a saved speed is of.

    Args:
        config: of the model.
        adapter: that is trained, if it has a method.
        rows: of a step.
        dtype: of the products.
        compiled: whether the blocks are.
    """
    what = f"{config.family} {config.depth} x {config.width}, {rows} x {config.context} tokens, {dtype}"
    what += f", {adapter.method} of rank {adapter.rank}" if read_adapter(adapter) else ""
    return what if compiled else what + measured_speed.NOT_COMPILED


def measure_peak_above(setup: DeviceSetup, device: torch.device, achieved: float) -> tuple[float | None, str]:
    """Returns the peak in FLOP/s that `achieved` is a share of, and what was wrong with it, or "".

    That is the higher of two measurements, before and after the work; where the work is too near to both or exceeds
    them, the highest of several further ones, and None where it exceeds these too: there is no share then.
    """
    peak = max(setup.peak_flops, measure_peak_flops(device, setup.dtype))
    if achieved <= SUSPICIOUS_SHARE * peak:
        return peak, ""
    again, text = replace_exceeded_peak(setup, device, peak, achieved)
    return again or None, text


def measure_process_peak_memory(device: torch.device) -> int:
    """Returns the most bytes that this process (CPU, Apple GPU) or the allocator (CUDA, Intel) has held."""
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device.type).max_memory_allocated(device)
    factor = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor
