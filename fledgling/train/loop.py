"""The one training loop: forward, backward, step - for pretraining, midtraining, fine-tuning and RL alike.

One idea: a stage hands over batches, a summed loss, a schedule and evals; the loop divides by the number of
targets over all ranks and micro-batches, so the update does not depend on how the batch was split. No other place in
this package calls backward; a test says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import torch

from fledgling.config import UserError
from fledgling.data.batch import Batch
from fledgling.evals.measurement import Measurement
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.record import Recorder
from fledgling.train.health import Health, Rollback
from fledgling.train.peak import watch
from fledgling.train.stage import Eval, Stage
from fledgling.world import World

SMOOTHING = 0.9  # of the loss shown on the progress line; metrics.jsonl has the raw one
MEASURED = 2  # the step of a session, from 0, whose memory is measured: the first two compile
SHOWN = ("reward", "length", "kl", "accuracy")  # of a stage's own figures; metrics.jsonl has all


class Stopped(Exception):
    """The run was asked to stop; everything up to `step` is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass(frozen=True)
class Around:
    """What surrounds a step: where to record, how to save, when to stop, and what counts as full speed."""

    world: World
    recorder: Recorder
    save: Callable[[int], None]  # called on every rank with the number of finished steps
    stop: Callable[[], bool]  # asked after every step
    flops_per_token: float = 0.0
    peak_flops: float = 0.0  # of one rank; 0: not measured
    health: Health = field(default_factory=Health)
    rollback: Rollback = field(default_factory=Rollback)


def update(
    stage: Stage, model: Transformer, optimizer: Optimizer, batches: list[Batch], world: World
) -> tuple[float, float]:
    """One optimizer step over micro-batches: returns the mean loss (nats a target) and the gradient's norm.

    A batch without any target moves nothing by itself and divides by one. The loss is summed without rounding in
    between, so that it is the same in any order. One that is not finite, or a gradient, moves nothing.
    """
    targets = world.gather([batch.target_count for batch in batches])  # of each micro-batch of each rank
    count = max(1, sum(map(sum, targets)))
    optimizer.begin(rounds=max(map(len, targets)))
    losses = []
    for batch in batches:
        loss = stage.loss(model, batch.to(world.device)) / count
        loss.backward()
        optimizer.accumulate()
        losses.append(float(loss.detach()))
    losses = list(chain(*world.gather(losses)))
    loss = math.fsum(losses) if all(map(math.isfinite, losses)) else math.nan
    return loss, optimizer.step(hold=not math.isfinite(loss))


def run(stage: Stage, model: Transformer, optimizer: Optimizer, around: Around, start: int = 0) -> None:
    """Run a stage from step `start` to its end; raises Stopped when asked to stop, after saving."""
    recorder, world, health = around.recorder, around.world, around.health
    shown, step = None, start
    if start == 0 and world.is_main:
        evaluate(stage.evals, recorder, 0, last=False)
    if start == 0 and around.rollback.most:
        around.save(0)
    while step < stage.steps:
        began = time.perf_counter()
        multiplier = stage.schedule(step / stage.steps)
        optimizer.schedule(multiplier)
        with world.pulse.step():
            try:
                batches = stage.batches.next()
            except UserError:  # such as a reward of the user's that fails: what was learned so far is kept
                if step > start:
                    around.save(step)
                raise
            with watch(world.device, active=step - start == MEASURED and world.is_main) as peak:
                loss, norm = update(stage, model, optimizer, batches, world)
        if health.note(loss, norm):
            if health.rollbacks >= around.rollback.most:
                raise UserError(
                    f"{stage.name}: loss or gradient was not finite for {health.bad} steps up to {step + 1}; "
                    "lower the rates, or set run.rollbacks=3 to leave such batches out"
                )
            step, shown = around.rollback.back(step + 1), None
            continue
        seconds = time.perf_counter() - began
        here = int(world.sum(float(sum(batch.tokens.numel() for batch in batches))))
        finished = step + 1
        shown = loss if shown is None or not math.isfinite(loss) else SMOOTHING * shown + (1 - SMOOTHING) * loss
        speed = {"tokens_per_second": here / seconds}
        if around.peak_flops:
            speed["mfu"] = around.flops_per_token * here / seconds / around.peak_flops / world.size
        extra = stage.extra() | ({"memory": peak.bytes} if peak.bytes else {})
        recorder.metric(
            finished,
            loss=loss,
            tokens=finished * here,
            gradient_norm=norm,
            rate=multiplier,
            seconds=seconds,
            **speed,
            **extra,
            **health.figures(),
        )
        recorder.progress(finished, loss=shown, **speed, **{name: extra[name] for name in SHOWN if name in extra})
        last = finished == stage.steps
        if world.is_main:
            evaluate(stage.evals, recorder, finished, last)
        stopping = bool(world.sum(float(around.stop())))
        due = bool(stage.save_every) and finished % stage.save_every == 0
        if last or stopping or (due and not (health.bad and around.rollback.most)):  # go back to before the bad steps
            around.save(finished)
        if stopping and not last:
            raise Stopped(finished)
        step = finished


def evaluate(evals: tuple[Eval, ...], recorder: Recorder, step: int, last: bool) -> None:
    """Measure what is due after `step` steps and record it."""
    for one in evals:
        if not (step == 0 or last or (one.every and step % one.every == 0)):
            continue
        with torch.no_grad():
            measured: list[Measurement] = one.measure(step, last)
        for m in measured:
            recorder.evaluation(step, m.name, m.value, m.low, m.high, m.n, m.baseline)
