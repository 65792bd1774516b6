"""Saving while training goes on: a copy of everything a run needs to continue, handed to a writer.

    loop      --- steps ---| wait, copy |--- steps ----------------------| wait, copy |---
    writer                              |--- write, hash, publish ---|                |---

The one idea: the loop stands still only for the copy, in host memory; the file system is the writer's. The copy's
memory is taken once, before the first step, so that a run whose first step fits does not run out of memory at its first
save. Every rank takes part in the copy, since optimizer state comes from where it is owned; the main rank alone holds
it and writes.

What it is not: the file format and its protocol, which are `fledgling/record/checkpoint.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from fledgling.config import UserError
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import gather_parameters
from fledgling.record import checkpoint
from fledgling.record.writer import BackgroundWriter
from fledgling.runtime.world import World
from fledgling.train.loop import TrainingStopped
from fledgling.train.rl import critic


class CheckpointSaver:
    """Called with a number of finished steps, saves all that is needed to go on after them; on every rank.

    on_the_way: whether it will be called before the last step, so that the copy's memory is taken now.
    directory: of the checkpoints, of which `keep` stay; state(step): state.json, values of its own that nothing changes
    later; files: copied beside it under the names given; say: told of a write that failed while something else did.

    As a context it waits for the last write, at the stage's end, at a stop request and at an error. What a write ran
    into (a full disk) is raised, on every rank, by the save after it or by the end of the context; `failed` tells it
    before.
    """

    def __init__(
        self,
        directory: Path,
        model: Transformer,
        optimizer: Optimizer,
        world: World,
        state: Callable[[int], Mapping[str, Any]],
        files: Mapping[str, Path],
        keep_checkpoints: int,
        saves_during_training: bool,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.directory, self.model, self.optimizer, self.world = directory, model, optimizer, world
        self.state, self.files, self.keep_checkpoints, self.log = state, files, keep_checkpoints, log
        self.writer = BackgroundWriter()
        self.host_copies: dict[str, dict[str, Tensor]] = {}  # group -> name -> the copy, filled anew at each save
        self.unreported_seconds: dict[str, float] = {}
        if saves_during_training:
            self._copy()

    def __call__(self, step: int) -> None:
        began = time.perf_counter()
        self.wait()
        tensors = self._copy()
        if self.world.is_main:
            state = self.state(step)
            self.writer.start(lambda: self._write(step, tensors, state))
        self._add_seconds(save_stall=time.perf_counter() - began)

    @property
    def failed(self) -> bool:
        """Whether a write has failed and the next save, or the end, will say so."""
        return self.writer.failed

    def metrics(self) -> dict[str, float]:
        """What is new since the last call: seconds that the loop stood still (save_stall), and the writer's own
        (save_seconds)."""
        if not self.writer.busy:
            self._collect_write_seconds()
        told, self.unreported_seconds = self.unreported_seconds, {}
        return told

    def _add_seconds(self, **seconds: float) -> None:
        for name, value in seconds.items():
            self.unreported_seconds[name] = self.unreported_seconds.get(name, 0.0) + value

    def wait(self) -> None:
        """Return, on every rank, when the last checkpoint stands; what the writer ran into ends all ranks."""
        with self.world.main_process_first():
            if self.world.is_main:
                self.writer.wait()
                self._collect_write_seconds()

    def _collect_write_seconds(self) -> None:
        """Count the seconds of a write that has ended, once."""
        if self.writer.last_job_seconds:
            self._add_seconds(save_seconds=self.writer.last_job_seconds)
            self.writer.last_job_seconds = 0.0

    def _copy(self) -> dict[str, dict[str, Tensor]]:
        """Everything that is a tensor, copied on the main rank; nothing on the others."""
        moments = self.optimizer.full_state_dict(self.host_copies.get("optimizer", {}))
        before = {**self.host_copies.get("model", {}), **self.host_copies.get(critic.CRITIC, {})}
        weights = gather_parameters(self.model, self.world, before)
        if self.world.is_main:
            groups = critic.split_critic(weights)
            self.host_copies = {
                name: copy_tensors(group, self.host_copies.get(name, {})) for name, group in groups.items()
            }
            self.host_copies["optimizer"] = moments
            self.host_copies["random"] = checkpoint.get_rng_state(self.world.device)
        return dict(self.host_copies)

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        checkpoint.save_checkpoint(self.directory, step, tensors, state, self.files)
        checkpoint.prune_checkpoints(self.directory, self.keep_checkpoints)

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        began = time.perf_counter()
        if error is None or isinstance(error, TrainingStopped):  # all ranks come here together
            self.wait()
            self._add_seconds(save_stall=time.perf_counter() - began)
            return
        try:  # perhaps this rank alone failed: it cannot ask the others
            self.writer.wait()
        except UserError as problem:
            self.log(str(problem))


def copy_tensors(tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of each tensor in host memory: written into the tensor of that name in `into`, or a new one."""
    return {
        name: buffers[name].copy_(tensor) if name in buffers else tensor.detach().to("cpu", copy=True)
        for name, tensor in tensors.items()
    }
