"""The contract of the one loop: a stage is a value, and the four stages are four of them.

Nothing here runs. `loop.py` runs any Stage; `supervised.py` and `rl.py` build them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fledgling.data.batch import Batch
from fledgling.evals.measurement import Measurement
from fledgling.model.transformer import Transformer


class Stream(Protocol):
    """Where batches come from: `next()` gives the micro-batches of one step, for this rank."""

    def next(self) -> list[Batch]:
        """The micro-batches of the next step."""
        ...

    def state_dict(self) -> dict:
        """JSON values from which `load_state_dict` goes on with the very same batches; nothing changes them later."""
        ...

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken."""
        ...

    def skip(self, steps: int) -> None:
        """Leave out the next `steps` steps, and give as many more at the end."""
        ...

    def close(self) -> None:
        """Stop threads."""
        ...


@dataclass(frozen=True)
class Eval:
    """Something measured beside training: at the start, every `every` steps (0: never between), and at the end.

    measure(step, last) gives the measurements and says what else it wants recorded; `last` asks for the full number of
    questions. All ranks call it, so that they can share the work; what the main one returns is recorded.
    """

    name: str
    every: int
    measure: Callable[[int, bool], list[Measurement]]


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    steps: known before it starts. batches: see Stream. loss(model, batch): the SUM over the batch's targets.
    schedule(progress in [0, 1)): multiplier of every rate. micro_batch: rows of one batch, kept on resume.
    extra(): values to record beside the loss (RL's reward).
    """

    name: str
    steps: int
    batches: Stream
    loss: Callable[[Transformer, Batch], Tensor]
    schedule: Callable[[float], float]
    evals: tuple[Eval, ...] = ()
    save_every: int = 0
    micro_batch_size: int = 0
    extra_metrics: Callable[[], dict] = field(default=dict)
