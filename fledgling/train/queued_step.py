"""A step that the device was given, and the line that is recorded of it once the host reads its result.

On a CPU a result is read at once. On CUDA it is read while the device makes the step after it, so that the device never
waits for the host: a step's kernels are queued before those of the last one have ended.

    host      | queue 1 | queue 2 | read 1, record 1 | queue 3 | read 2, record 2 |
    device              |--------- step 1 --------|--------- step 2 ---------|

Whatever needs the weights of a step, such as an evaluation or a checkpoint, is preceded by reading all that is queued.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from fledgling.data.batch import Batch
from fledgling.runtime.device import SUSPICIOUS_SHARE
from fledgling.train.health import Health
from fledgling.train.totals import Totals

if TYPE_CHECKING:
    from fledgling.record import Recorder
    from fledgling.runtime.world import World

LOSS_SMOOTHING = 0.9  # the weight that a step loses with each later one, on the progress line; metrics.jsonl is raw
PROGRESS_METRICS = ("reward", "length", "kl", "accuracy")  # shown on the progress line; metrics.jsonl has all

# (measured peak, what a step reached), FLOP/s of a rank -> (peak measured again, or 0.0 if that fails; a message)
MeasurePeak = Callable[[float, float], tuple[float, str]]


@dataclass(frozen=True)
class StepResult:
    """What a step has done. loss: nats per target, nan where it is not finite; norm: of the whole gradient."""

    loss: float
    norm: float
    updated: bool  # whether a parameter was updated
    rescaled: bool = False  # whether it only lowered the scale of a float16 loss


@dataclass(frozen=True)
class QueuedStep:
    """A step that the device was given. read: waits until it is made; the rest is what else its line says."""

    number: int  # finished steps once it is made
    started: float  # seconds, of `time.perf_counter`
    read: Callable[[], StepResult]
    batches: list[Batch]  # of this rank
    lr_multiplier: float
    extra: Mapping[str, Any]


FinishedStep = tuple[QueuedStep, StepResult, float]  # and its seconds


def digest_step(batches: list[Batch], world: World) -> str:
    """Returns 16 hexadecimal digits that identify the tokens and targets of a step, in the order of its rows.

    They depend neither on the number of ranks nor on how rows are split into micro-batches.
    """
    by_rank = world.all_gather_object([batch.hash_rows() for batch in batches])
    micro_batches = [rows for group in zip_longest(*by_rank, fillvalue=[]) for rows in group]
    return hashlib.sha256(b"".join(chain(*micro_batches))).hexdigest()[:16]


@dataclass
class SmoothedLoss:
    """The exponential mean of losses. Their weights sum to 1 from the first one on, so that it has no start value."""

    total: float = 0.0
    weight: float = 0.0  # 1 - LOSS_SMOOTHING^n after n losses

    def add(self, loss: float) -> None:
        """Adds a loss; one that is not finite begins the mean again."""
        if math.isfinite(loss):
            self.total = LOSS_SMOOTHING * self.total + (1 - LOSS_SMOOTHING) * loss
            self.weight = LOSS_SMOOTHING * self.weight + (1 - LOSS_SMOOTHING)
        else:
            self.clear()

    def clear(self) -> None:
        """Forgets all losses."""
        self.total = self.weight = 0.0

    @property
    def mean(self) -> float:
        """The mean; NaN of no loss."""
        return self.total / self.weight if self.weight else math.nan


@dataclass
class StepRecord:
    """Records finished steps in their order: metrics, the progress line, the totals.

    peak_flops and the like: as in `LoopContext`.
    """

    world: World
    recorder: Recorder
    health: Health
    totals: Totals
    flops_per_token: float
    head_flops_per_token: float
    peak_flops: float
    datasheet_flops: float
    measure_peak: MeasurePeak
    smoothed_loss: SmoothedLoss = field(default_factory=SmoothedLoss)
    read_time: float = -math.inf  # when the last result was read
    seconds: float | None = None  # of the last step that was recorded
    is_peak_doubted: bool = False  # whether a step was too near to it, and it was measured again: once in a session

    def wait(self, queued: deque[QueuedStep], keep: int = 0) -> list[FinishedStep]:
        """Waits for the oldest steps until `keep` are queued, and takes them out.

        The seconds of a step begin when it was queued, or where those of the step before end, if that is later.
        """
        finished = []
        while len(queued) > keep:
            step = queued.popleft()
            result = step.read()
            began, self.read_time = max(step.started, self.read_time), time.perf_counter()
            finished.append((step, result, self.read_time - began))
        return finished

    def add(self, step: QueuedStep, result: StepResult, seconds: float) -> None:
        """Records a step that changed the weights, or changed nothing without ending the stage. Every rank calls it."""
        world, loss = self.world, result.loss
        tokens = int(world.all_reduce(float(sum(batch.tokens.numel() for batch in step.batches))))
        targets = int(world.all_reduce(float(sum(batch.target_count for batch in step.batches))))
        if not result.updated and math.isfinite(loss) and not result.rescaled:  # without targets there is no loss
            loss = math.nan
        else:
            self.smoothed_loss.add(loss)
        speed = self._measure_speed(tokens, targets, seconds)
        self.recorder.log_metrics(
            step.number,
            loss=loss,
            gradient_norm=result.norm,
            data=digest_step(step.batches, world),
            lr_multiplier=step.lr_multiplier,
            seconds=seconds,
            **speed,
            **step.extra,
            **self.health.metrics(),
            **self.totals.add_step(tokens, targets, seconds),
        )
        progress = {name: step.extra[name] for name in PROGRESS_METRICS if name in step.extra}
        self.recorder.show_progress(step.number, smoothed_loss=self.smoothed_loss.mean, **speed, **progress)
        self.seconds = seconds

    def _measure_speed(self, tokens: int, targets: int, seconds: float) -> dict[str, float]:
        """Returns tokens per second of all ranks, and the shares of a rank's peak: the head counts for targets."""
        speed = {"tokens_per_second": tokens / seconds}
        flops = self.flops_per_token * tokens - self.head_flops_per_token * max(0, tokens - targets)
        flops /= seconds * self.world.size
        if self.datasheet_flops:
            speed["mfu_datasheet"] = flops / self.datasheet_flops
        limit = self.peak_flops * (1.0 if self.is_peak_doubted else SUSPICIOUS_SHARE)
        if self.peak_flops and flops > limit and self.world.is_main:  # whose values are recorded
            self.is_peak_doubted = True
            self.peak_flops, problem = self.measure_peak(self.peak_flops, flops)
            self.recorder.log_notice(problem)
        if self.peak_flops:
            speed |= {"mfu": flops / self.peak_flops, "peak_flops": self.peak_flops}
        return speed
