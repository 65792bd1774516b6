"""Measures the memory of a rank in a training step under ZeRO 0, 1, 2 and 3, and compares it with the plan.

The step is that of training (`train.loop.train_step`) on rows so short that activations are negligible. On a CPU live
tensors are counted storage by storage; on a GPU the allocator reports its peak. The expected value is the estimate of
the partition; for ZeRO-3, where gathered parameters count, that of the planner.
"""

from __future__ import annotations

import weakref
from dataclasses import asdict, replace
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fledgling.config import ModelConfig, Recipe
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan.memory import estimate_peak_memory
from fledgling.plan.training_step import TrainingStep
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.random_batches import RandomBatches
from fledgling.train.stage import Stage

CONTEXT = 16  # tokens of the one row
STEPS = 3  # the least of their peaks counts, because gloo's threads free a buffer at varying times


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside the block make, until they are freed; keeps the `peak`.

    Resized storages are counted too, because `fully_shard` fills and empties the same ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # bytes of the storages that are not freed, by identity

    def __enter__(self):
        resize = self._resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int):
            result = resize(storage, size)
            self._count(storage)
            return result

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign,assignment]
        return super().__enter__()

    def __exit__(self, *error):
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        before = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in before:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self._sizes:
            weakref.finalize(storage, self._forget, id(storage))
        self.live += storage.nbytes() - self._sizes.get(id(storage), 0)
        self._sizes[id(storage)] = storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _forget(self, storage: int) -> None:
        self.live -= self._sizes.pop(storage)


def measure_step_peak(step, device: torch.device) -> int:
    """Returns the peak bytes of `step()` beyond those that were in use before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveTensors() as counted:
        step()
    return counted.peak


def measure_optimizer_memory(recipe: Recipe) -> list[dict]:
    """Returns the measured and expected bytes of this rank for ZeRO 0 to 3, in fp32. Every rank must call it.

    Returns:
        For each stage: zero, ranks, measured, expected, and "partition", the expected fp32 values by kind.
    """
    world = World.start(recipe.run.device)
    config = replace(recipe.resolve_model(), context=CONTEXT)
    results = []
    for zero in (0, 1, 2, 3):
        with torch.device(world.device):
            model = Transformer(config)
        model.initialize(recipe.seed)
        optimizer = Optimizer(model, replace(recipe.optimizer, zero_stage=zero), world)
        stream = RandomBatches(config.vocab_size, 1, CONTEXT, seed=world.rank)
        schedule = partial(trapezoidal_schedule, total_steps=STEPS)
        stage = Stage("bench", STEPS, stream, next_token_loss, schedule)  # type: ignore[arg-type]
        step = partial(_step, stage, model, optimizer, world)
        step()
        transient = min(measure_step_peak(step, world.device) for _ in range(STEPS))
        persistent = optimizer.persistent_bytes()
        deterministic = optimizer.deterministic or world.device.type == "cpu"
        estimate = asdict(optimizer.partition.estimate_memory(world.rank, deterministic))
        if zero == 3:
            estimate = _plan_values(config, world, deterministic)
        results.append(
            {"zero": zero, "ranks": world.size, "measured": persistent + transient, "expected": 4 * estimate["total"]}
            | {"partition": estimate}
        )
    return results


def _plan_values(config: ModelConfig, world: World, deterministic: bool) -> dict[str, int]:
    """Returns the planner's peak in fp32 values, by the kinds of `MemoryEstimate`."""
    step = TrainingStep(
        1, CONTEXT, "float32", 1, world.size, 3, world.device.type, compiled=False, deterministic=deterministic
    )
    estimate = estimate_peak_memory(config, step)
    kinds = {"parameters": "parameters", "gradients": "gradients", "optimizer_state": "optimizer"}
    results = {kind: estimate.get(name, 0) // 4 for kind, name in kinds.items()}
    return results | {"communication": estimate.get("communication", 0) // 4, "total": estimate["total"] // 4}


def _step(stage: Stage, model: Transformer, optimizer: Optimizer, world: World) -> None:
    loop.train_step(stage, model, optimizer, stage.batches.next(), world)


def format_optimizer_memory(results: list[dict]) -> str:
    """Returns the result of `measure_optimizer_memory` as a table, in MB."""
    lines = ["ranks  zero  measured MB  expected MB   ratio | parameters  state  gradients  buffers"]
    for one in results:
        estimate = {name: 4 * values / 1e6 for name, values in one["partition"].items()}
        lines.append(
            f"{one['ranks']:5}  {one['zero']:4}  {one['measured'] / 1e6:11.1f}  {one['expected'] / 1e6:11.1f}  "
            f"{one['measured'] / one['expected']:6.3f} | {estimate['parameters']:10.1f}  "
            f"{estimate['optimizer_state']:5.1f}  {estimate['gradients']:9.1f}  {estimate['communication']:7.1f}"
        )
    return "\n".join(lines)
