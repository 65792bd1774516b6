"""The contract of the training loop: a stage is a value that `supervised`, `dpo` or `rl` builds and `loop` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from fledgling.data.batch import Batch
from fledgling.evals.measurement import Measurement
from fledgling.model.transformer import Transformer


class Stream(Protocol):
    """A source of batches with a state."""

    def next(self) -> list[Batch]:
        """Returns this rank's micro-batches of the next step."""
        ...

    def state_dict(self) -> dict:
        """Returns JSON values from which `load_state_dict` continues with the same batches; they change no more."""
        ...

    def load_state_dict(self, state: dict) -> None:
        """Continues where `state_dict` was taken."""
        ...

    def skip(self, steps: int) -> None:
        """Skips the next `steps` steps; the stream gives as many more at its end."""
        ...

    def close(self) -> None:
        """Stops threads and processes."""
        ...


@dataclass(frozen=True)
class Eval:
    """A measurement at the start of a stage, every `every` steps (0: never between), and at its end.

    measure(step, last) returns measurements, and records what else it has; `last` asks for the full number of
    questions. Every rank calls it and may do a share of the work; the main rank's measurements are recorded.
    """

    name: str
    every: int
    measure: Callable[[int, bool], list[Measurement]]


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    name: str
    steps: int  # known before the stage starts; a run with a deadline may change them (`fledgling.train.stage_horizon`)
    batches: Stream
    loss: Callable[[Transformer, Batch], Tensor]  # the SUM over the batch's targets
    schedule: Callable[[float], float]  # progress in [0, 1) -> multiplier of every learning rate
    evals: tuple[Eval, ...] = ()
    save_every: int = 0  # steps; 0: only at the end
    micro_batch_size: int = 0  # rows of one batch, kept on resume
    rows_per_step: int = 0  # over all ranks, kept on resume; 0 where rows do not count the batch, as in DPO and RL
    row_weights: dict[str, float] = field(default_factory=dict)  # of the sources of its mixture, kept on resume
    positions: Callable[[], dict[str, Any]] | None = None  # of its sources, for the checkpoint; None: it reads none
    count_reading: Callable[[], list[dict[str, Any]]] = list  # what its sources have given, for done.json
    most_steps: int = 0  # to which a deadline may raise the steps; 0: it may only lower them
    recorded_changes: list[tuple[int, int]] = field(default_factory=list)  # of its steps, where it is replayed
    extra_metrics: Callable[[], dict[str, Any]] = field(default=dict)  # recorded with the loss, such as RL's reward
