"""The one training loop: forward, backward, step - for pretraining, midtraining, fine-tuning and RL alike.

One idea: a stage hands over batches, a summed loss, a schedule and evals; the loop divides by the number of
targets over all ranks and micro-batches, so the update does not depend on how the batch was split. No other place in
this package calls backward; a test says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain

import torch

from fledgling.config import UserError
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.evals.measurement import Measurement
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import unsharded
from fledgling.record import Recorder
from fledgling.runtime.memory import measure_peak_memory
from fledgling.runtime.world import World
from fledgling.train.health import Health, Rollback
from fledgling.train.stage import Eval, Stage

LOSS_SMOOTHING = 0.9  # of the loss shown on the progress line; metrics.jsonl has the raw one
MEMORY_STEP = 2  # the step of a session, from 0, whose memory is measured: the first two compile
PROGRESS_METRICS = ("reward", "length", "kl", "accuracy")  # of a stage's own figures; metrics.jsonl has all


class TrainingStopped(Exception):
    """The run was asked to stop; everything up to `step` is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass(frozen=True)
class LoopContext:
    """What surrounds a step: where to record, how to save, when to stop, and what counts as full speed."""

    world: World
    recorder: Recorder
    save: Callable[[int], None]  # called on every rank with the number of finished steps
    should_stop: Callable[[], bool]  # asked after every step
    flops_per_token: float = 0.0
    peak_flops: float = 0.0  # of one rank, as measured; 0: not measured
    health: Health = field(default_factory=Health)
    rollback: Rollback = field(default_factory=Rollback)


def train_step(
    stage: Stage, model: Transformer, optimizer: Optimizer, batches: list[Batch], world: World
) -> tuple[float, float]:
    """One optimizer step over micro-batches: returns the mean loss (nats a target) and the gradient's norm.

    A batch without any target moves nothing by itself and divides by one. The loss is summed without rounding in
    between, so that it is the same in any order. One that is not finite, or a gradient, moves nothing.
    """
    targets = world.all_gather_object([batch.target_count for batch in batches])  # of each micro-batch of each rank
    count, rounds = max(1, sum(map(sum, targets))), max(map(len, targets))
    optimizer.begin_step(rounds)
    if optimizer.needs_equal_passes:
        batches = [*batches, *padding_batches(batches, targets, world)]
    losses = []
    for batch in batches:
        loss = stage.loss(model, batch.to(world.device)) / count
        loss.backward()
        optimizer.accumulate()
        losses.append(loss.detach())  # read once a step: a read on a GPU waits for all that is queued
    everybody: list[float] = []

    def finite() -> bool:
        everybody.extend(chain(*world.all_gather_object(torch.stack(losses).tolist() if losses else [])))
        return all(map(math.isfinite, everybody))

    norm = optimizer.step(finite)
    return math.fsum(everybody) if all(map(math.isfinite, everybody)) else math.nan, norm


def padding_batches(batches: list[Batch], targets: list[list[int]], world: World) -> list[Batch]:
    """Micro-batches without targets, so that a rank makes as many passes as the one with most of them.

    They are copies of another's, because only their fields fit the stage's loss.
    """
    rounds = max(map(len, targets))
    if all(len(one) == rounds for one in targets):
        return []
    lent = next(chain(*world.all_gather_object(batches[:1])))
    blank = replace(lent, targets=torch.full_like(lent.targets, IGNORE_INDEX))
    return [blank] * (rounds - len(batches))


def run_loop(stage: Stage, model: Transformer, optimizer: Optimizer, context: LoopContext, start_step: int = 0) -> None:
    """Run a stage from step `start` to its end; raises Stopped when asked to stop, after saving."""
    recorder, world, health = context.recorder, context.world, context.health
    shown, step, full = None, start_step, context.peak_flops
    if start_step == 0:
        run_evals(stage.evals, model, context, 0, last=False)
    if start_step == 0 and context.rollback.max_rollbacks:
        context.save(0)
    while step < stage.steps:
        began = time.perf_counter()
        multiplier = stage.schedule(step / stage.steps)
        optimizer.set_schedule_multiplier(multiplier)
        with world.progress.track_step():
            try:
                batches = stage.batches.next()
            except UserError:  # such as a reward of the user's that fails: what was learned so far is kept
                if step > start_step:
                    context.save(step)
                raise
            with measure_peak_memory(world.device, enabled=step - start_step == MEMORY_STEP and world.is_main) as peak:
                loss, norm = train_step(stage, model, optimizer, batches, world)
        if health.record_step(loss, norm):
            if health.rollbacks >= context.rollback.max_rollbacks:
                raise UserError(
                    f"{stage.name}: loss or gradient was not finite for {health.bad} steps up to {step + 1}; "
                    "lower the rates, or set run.max_rollbacks=3 to leave such batches out"
                )
            step, shown = context.rollback.restore(step + 1), None
            continue
        seconds = time.perf_counter() - began
        here = int(world.all_reduce(float(sum(batch.tokens.numel() for batch in batches))))
        finished = step + 1
        shown = (
            loss if shown is None or not math.isfinite(loss) else LOSS_SMOOTHING * shown + (1 - LOSS_SMOOTHING) * loss
        )
        speed = {"tokens_per_second": here / seconds}
        if full:
            reached = context.flops_per_token * here / seconds / world.size
            full = max(full, reached)  # a peak that was measured on a busy machine is too low
            speed["mfu"] = reached / full
        extra = stage.extra_metrics() | ({"memory": peak.bytes} if peak.bytes else {})
        recorder.log_metrics(
            finished,
            loss=loss,
            tokens=finished * here,
            gradient_norm=norm,
            rate=multiplier,
            seconds=seconds,
            **speed,
            **extra,
            **health.metrics(),
        )
        recorder.show_progress(
            finished, loss=shown, **speed, **{name: extra[name] for name in PROGRESS_METRICS if name in extra}
        )
        last = finished == stage.steps
        run_evals(stage.evals, model, context, finished, last)
        stopping = bool(world.all_reduce(float(context.should_stop())))
        due = bool(stage.save_every) and finished % stage.save_every == 0
        if (
            last or stopping or (due and not (health.bad and context.rollback.max_rollbacks))
        ):  # go back to before the bad steps
            context.save(finished)
        if stopping and not last:
            raise TrainingStopped(finished)
        step = finished


def run_evals(evals: tuple[Eval, ...], model: Transformer, context: LoopContext, step: int, last: bool) -> None:
    """Measure what is due after `step` steps, on all ranks together, which make the model whole, and record it."""
    due = [one for one in evals if step == 0 or last or (one.every and step % one.every == 0)]
    if not due:
        return
    with unsharded(model), torch.no_grad():
        for one in due:
            measured: list[Measurement] = one.measure(step, last)
            for m in measured:
                context.recorder.log_evaluation(step, m.name, m.value, m.low, m.high, m.n, m.baseline)
