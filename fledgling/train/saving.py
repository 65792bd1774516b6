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
from fledgling.optim.sharded import gathered
from fledgling.record import checkpoint
from fledgling.record.writer import Writer
from fledgling.runtime.world import World
from fledgling.train.loop import Stopped
from fledgling.train.rl import critic


class Saver:
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
        keep: int,
        on_the_way: bool,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.directory, self.model, self.optimizer, self.world = directory, model, optimizer, world
        self.state, self.files, self.keep, self.say = state, files, keep, say
        self.writer = Writer()
        self.copies: dict[str, dict[str, Tensor]] = {}  # group -> name -> the copy, filled anew at each save
        self.untold: dict[str, float] = {}
        if on_the_way:
            self._copy()

    def __call__(self, step: int) -> None:
        began = time.perf_counter()
        self.wait()
        tensors = self._copy()
        if self.world.is_main:
            state = self.state(step)
            self.writer.start(lambda: self._write(step, tensors, state))
        self._count(save_stall=time.perf_counter() - began)

    @property
    def failed(self) -> bool:
        """Whether a write has failed and the next save, or the end, will say so."""
        return self.writer.failed

    def figures(self) -> dict[str, float]:
        """What is new since the last call: seconds that the loop stood still (save_stall), and the writer's own
        (save_seconds)."""
        if not self.writer.busy:
            self._note()
        told, self.untold = self.untold, {}
        return told

    def _count(self, **seconds: float) -> None:
        for name, value in seconds.items():
            self.untold[name] = self.untold.get(name, 0.0) + value

    def wait(self) -> None:
        """Return, on every rank, when the last checkpoint stands; what the writer ran into ends all ranks."""
        with self.world.main_first():
            if self.world.is_main:
                self.writer.wait()
                self._note()

    def _note(self) -> None:
        """Count the seconds of a write that has ended, once."""
        if self.writer.seconds:
            self._count(save_seconds=self.writer.seconds)
            self.writer.seconds = 0.0

    def _copy(self) -> dict[str, dict[str, Tensor]]:
        """Everything that is a tensor, copied on the main rank; nothing on the others."""
        moments = self.optimizer.tensors(self.copies.get("optimizer", {}))
        before = {**self.copies.get("model", {}), **self.copies.get(critic.NAME, {})}
        weights = gathered(self.model, self.world, before)
        if self.world.is_main:
            groups = critic.apart(weights)
            self.copies = {name: copied(group, self.copies.get(name, {})) for name, group in groups.items()}
            self.copies["optimizer"] = moments
            self.copies["random"] = checkpoint.random_state(self.world.device)
        return dict(self.copies)

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        checkpoint.save(self.directory, step, tensors, state, self.files)
        checkpoint.retain(self.directory, self.keep)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        began = time.perf_counter()
        if error is None or isinstance(error, Stopped):  # all ranks come here together
            self.wait()
            self._count(save_stall=time.perf_counter() - began)
            return
        try:  # perhaps this rank alone failed: it cannot ask the others
            self.writer.wait()
        except UserError as problem:
            self.say(str(problem))


def copied(tensors: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of each tensor in host memory: written into the tensor of that name in `into`, or a new one."""
    return {
        name: into[name].copy_(tensor) if name in into else tensor.detach().to("cpu", copy=True)
        for name, tensor in tensors.items()
    }
