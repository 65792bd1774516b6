"""What a rank holds during a training step under ZeRO 0, 1, 2 and 3: measured, beside what is expected.

The step is the real one (`train.loop.update` of a real model) on rows so short that activations are nothing. On a CPU
live tensors are counted storage by storage as they come and go; on a GPU the allocator is asked. Expected is what the
layout says; with `zero = 3`, where what is gathered counts, what the planner says.
"""

from __future__ import annotations

import weakref
from dataclasses import asdict, replace
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fledgling.bench.train import RandomBatches
from fledgling.config import ModelConfig, Recipe
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan.memory import TrainingStep, estimate_peak_memory
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage

CONTEXT = 16  # tokens of the one row
STEPS = 3  # the least of their peaks counts: gloo's threads let go of a buffer now earlier, now later


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes within it, while it is held; `peak` is the most.

    Storages that grow and shrink are followed: `fully_shard` fills and empties the same ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # of storages that are alive, by identity

    def __enter__(self):
        resize = self._resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int):
            result = resize(storage, size)
            self._count(storage)
            return result

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *problem):
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        return super().__exit__(*problem)

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


def peak_of_step(step, device: torch.device) -> int:
    """Bytes that `step()` holds at its fullest beyond what was there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveTensors() as counted:
        step()
    return counted.peak


def measure_optimizer_memory(recipe: Recipe) -> list[dict]:
    """For ZeRO 0 to 3: this rank's bytes measured and expected, in fp32.

    Every rank must call it. Returns dicts with zero, ranks, measured, expected, and the counts by kind, in values.
    """
    world = World.start(recipe.run.device)
    config = replace(recipe.resolve_model(), context=CONTEXT)
    found = []
    for zero in (0, 1, 2, 3):
        with torch.device(world.device):
            model = Transformer(config)
        model.initialize(recipe.seed)
        optimizer = Optimizer(model, replace(recipe.optimizer, zero_stage=zero), world)
        stream = RandomBatches(config.vocab_size, 1, CONTEXT, seed=world.rank)
        stage = Stage("bench", STEPS, stream, next_token_loss, partial(trapezoidal_schedule, total_steps=STEPS))  # type: ignore[arg-type]
        step = partial(_step, stage, model, optimizer, world)
        step()
        moving = min(peak_of_step(step, world.device) for _ in range(STEPS))
        standing = optimizer.persistent_bytes()
        exact = optimizer.deterministic or world.device.type == "cpu"
        held = asdict(optimizer.partition.estimate_memory(world.rank, exact))
        if zero == 3:
            held = _planned(config, world, exact)
        found.append(
            {"zero": zero, "ranks": world.size, "measured": standing + moving, "expected": 4 * held["total"]}
            | {"layout": held}
        )
    return found


def _planned(config: ModelConfig, world: World, exact: bool) -> dict[str, int]:
    """The planner's peak in values, by kind as the layout counts them."""
    step = TrainingStep(1, CONTEXT, "float32", 1, world.size, 3, world.device.type, compiled=False, deterministic=exact)
    held = estimate_peak_memory(config, step)
    kinds = {"parameters": "parameters", "gradients": "gradients", "state": "optimizer"}
    found = {kind: held.get(name, 0) // 4 for kind, name in kinds.items()}
    return found | {"communication": held.get("communication", 0) // 4, "total": held["total"] // 4}


def _step(stage: Stage, model: Transformer, optimizer: Optimizer, world: World) -> None:
    loop.train_step(stage, model, optimizer, stage.batches.next(), world)


def format_optimizer_memory(found: list[dict]) -> str:
    """The figures of `measure` as lines of text, in MB."""
    lines = ["ranks  zero  measured MB  expected MB   ratio | parameters  state  gradients  buffers"]
    for one in found:
        held = {name: 4 * values / 1e6 for name, values in one["layout"].items()}
        lines.append(
            f"{one['ranks']:5}  {one['zero']:4}  {one['measured'] / 1e6:11.1f}  {one['expected'] / 1e6:11.1f}  "
            f"{one['measured'] / one['expected']:6.3f} | {held['parameters']:10.1f}  {held['state']:5.1f}  "
            f"{held['gradients']:9.1f}  {held['communication']:7.1f}"
        )
    return "\n".join(lines)
