"""Checkpoints during training: the loop waits for a copy in host memory, and a thread writes it.

    loop      --- steps ---| wait, copy |--- steps ----------------------| wait, copy |---
    writer                              |--- write, hash, publish ---|                |---

The copy's memory is allocated once, before the first step, so that a run whose first step fits does not run out of
memory at its first save. Every rank takes part in the copy, since optimizer state is sharded; the main rank alone keeps
it and writes. The files and how they appear are `fledgling.record.checkpoint`.
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
from fledgling.record.rng_state import get_rng_state
from fledgling.record.writer import BackgroundWriter
from fledgling.runtime.world import World
from fledgling.train.critic import CRITIC, split_critic
from fledgling.train.kept_bases import remove_checkpoint
from fledgling.train.loop import TrainingStopped


class CheckpointSaver:
    """Saves, when called with a number of finished steps, all that is needed to resume after them. Every rank calls it.

    As a context manager it waits for the last write. An error of a write (a full disk) is raised on every rank, by the
    next save or at the end of the context; `failed` is true before.

    Args:
        directory: of the checkpoints, of which the newest `keep_checkpoints` are kept.
        state: maps a step to the values of state.json, which nothing may change later.
        files: copied into the checkpoint, by name.
        saves_during_training: whether it is called before the last step; the copy's memory is then allocated now.
        log: receives the error of a write that failed while another error ends the run.
        flush_record: is called by the writer before a checkpoint appears: its metrics must not be younger on the disk.
        seal_record: is called by the writer once the checkpoint is complete.
        split: makes groups of the model's tensors, by name; what is in none of them is not saved.
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
        flush_record: Callable[[], None] = lambda: None,
        seal_record: Callable[[], None] = lambda: None,
        split: Callable[[dict[str, Tensor]], dict[str, dict[str, Tensor]]] = split_critic,
    ) -> None:
        self.directory, self.model, self.optimizer, self.world = directory, model, optimizer, world
        self.state, self.files, self.keep_checkpoints, self.log = state, files, keep_checkpoints, log
        self.flush_record, self.seal_record, self.split = flush_record, seal_record, split
        self.writer = BackgroundWriter()
        self.host_copies: dict[str, dict[str, Tensor]] = {}  # group -> name -> tensor, overwritten by each save
        self.unreported_seconds: dict[str, float] = {}
        self.newest_step = 0  # of the last checkpoint that is complete, on the main rank
        if saves_during_training:
            self._copy()

    def __call__(self, step: int) -> None:
        start = time.perf_counter()
        self.wait()
        tensors = self._copy()
        if self.world.is_main:
            state = self.state(step)
            self.writer.start(lambda: self._write(step, tensors, state))
        self._add_seconds(save_stall=time.perf_counter() - start)

    @property
    def failed(self) -> bool:
        """Whether a write has failed, which the next save or the end of the context raises."""
        return self.writer.failed

    def metrics(self) -> dict[str, float]:
        """Returns the seconds since the last call: of the loop (save_stall) and of the writer (save_seconds)."""
        if not self.writer.busy:
            self._collect_write_seconds()
        seconds, self.unreported_seconds = self.unreported_seconds, {}
        return seconds

    def _add_seconds(self, **seconds: float) -> None:
        for name, value in seconds.items():
            self.unreported_seconds[name] = self.unreported_seconds.get(name, 0.0) + value

    def wait(self) -> None:
        """Waits on every rank until the last checkpoint is complete. Raises the writer's error on all of them."""
        with self.world.main_process_first():
            if self.world.is_main:
                self.writer.wait()
                self._collect_write_seconds()

    def _collect_write_seconds(self) -> None:
        """Counts the seconds of a write that has ended, once."""
        if self.writer.last_job_seconds:
            self._add_seconds(save_seconds=self.writer.last_job_seconds)
            self.writer.last_job_seconds = 0.0

    def _copy(self) -> dict[str, dict[str, Tensor]]:
        """Copies weights, optimizer and random state to host memory on the main rank; returns {} on the others."""
        optimizer_state = self.optimizer.full_state_dict(self.host_copies.get("optimizer", {}))
        buffers = {**self.host_copies.get("model", {}), **self.host_copies.get(CRITIC, {})}
        weights = gather_parameters(self.model, self.world, buffers) | self.optimizer.gather_exact_parameters()
        if self.world.is_main:
            groups = self.split(weights)
            self.host_copies = {
                name: copy_tensors(group, self.host_copies.get(name, {})) for name, group in groups.items()
            }
            self.host_copies["optimizer"] = optimizer_state
            self.host_copies["random"] = get_rng_state(self.world.device)
        return dict(self.host_copies)

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        self.flush_record()
        checkpoint.save_checkpoint(self.directory, step, tensors, state, self.files)
        checkpoint.prune_checkpoints(self.directory, self.keep_checkpoints, remove_checkpoint)
        self.seal_record()
        self.newest_step = step

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        start = time.perf_counter()
        if error is None or isinstance(error, TrainingStopped):  # all ranks come here together
            self.wait()
            self._add_seconds(save_stall=time.perf_counter() - start)
            return
        try:  # this rank alone may have failed, so it does not wait for the others
            self.writer.wait()
        except UserError as write_error:
            self.log(str(write_error))


def copy_tensors(tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a copy of each tensor in host memory, in the tensor of that name in `buffers` if there is one."""
    return {
        name: buffers[name].copy_(tensor) if name in buffers else tensor.detach().to("cpu", copy=True)
        for name, tensor in tensors.items()
    }
