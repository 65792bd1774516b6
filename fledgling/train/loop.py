"""The training loop: forward, backward, step, for pretraining, midtraining, fine-tuning, DPO and RL alike.

A stage is batches, a summed loss, a schedule and evals. The loop divides by the number of targets over all ranks and
micro-batches, so the update does not depend on how the batch is split. No other place in this package calls backward; a
test says so. Start with `run_loop`; `queued_step.py` says when
the host reads what a step has done.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from fledgling.config import UserError
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.model.linear import cast_weights, fake_quantize_weights
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import unsharded
from fledgling.record import Recorder
from fledgling.record.jsonl import write_json
from fledgling.record.run_requests import ACTIONS, BATCH, EVALUATE, SAMPLE, STOP, take_actions
from fledgling.runtime.accelerator import PendingRead
from fledgling.runtime.device_memory import measure_peak_memory
from fledgling.runtime.world import World
from fledgling.train.health import Health, Rollback
from fledgling.train.queued_step import FinishedStep, MeasurePeak, QueuedStep, StepRecord, StepResult
from fledgling.train.stage import Eval, Stage
from fledgling.train.stage_horizon import StageHorizon
from fledgling.train.totals import Totals

MEMORY_STEP = 2  # the step of a session, from 0, whose memory is measured: the first two compile
SHOWN_ROWS = 4  # of a batch that a watcher asks for
PRINTED_CHANGE = 0.05  # of a stage's planned steps: a change across a multiple of it is printed, others are recorded


class TrainingStopped(Exception):
    """A stop was requested; everything up to `step` is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


# (horizon, finished steps, seconds of the last step) -> steps of the stage from now on
ChooseSteps = Callable[[StageHorizon, int, float], int]


@dataclass(frozen=True)
class LoopContext:
    """What the loop needs besides the stage: where to record, how to save, when to stop, what full speed is."""

    world: World
    recorder: Recorder
    save: Callable[[int], None]  # called on every rank with the number of finished steps
    should_stop: Callable[[], bool]  # called after every step
    flops_per_token: float = 0.0
    head_flops_per_token: float = 0.0  # of these, the head's, which are counted for positions with a target
    peak_flops: float = 0.0  # measured, of one rank; 0: not measured
    datasheet_flops: float = 0.0  # the vendor's dense peak of a rank, as published MFU is a share of; 0: unknown
    measure_peak: MeasurePeak = lambda peak, reached: (
        0.0,
        "",
    )  # called when a step is too near to the peak
    health: Health = field(default_factory=Health)
    rollback: Rollback = field(default_factory=Rollback)
    totals: Totals = field(default_factory=Totals)
    horizon: StageHorizon | None = None  # None: the stage's steps, unchanged
    choose_steps: ChooseSteps | None = None  # called after every step, on the main rank; None: nothing is changed
    adapt_threads: Callable[[], dict[str, int]] = dict  # called after every step; returns what to record

    def make_record(self) -> StepRecord:
        """Returns what records the steps of the stage."""
        return StepRecord(
            world=self.world,
            recorder=self.recorder,
            health=self.health,
            totals=self.totals,
            flops_per_token=self.flops_per_token,
            head_flops_per_token=self.head_flops_per_token,
            peak_flops=self.peak_flops,
            datasheet_flops=self.datasheet_flops,
            measure_peak=self.measure_peak,
        )


def train_step(
    stage: Stage, model: Transformer, optimizer: Optimizer, batches: list[Batch], world: World
) -> tuple[float, float]:
    """Runs one optimizer step over micro-batches; returns the mean loss (nats per target) and the gradient norm.

    The arguments are those of `queue_step`.
    """
    result = queue_step(stage, model, optimizer, batches, world)()
    return result.loss, result.norm


def queue_step(
    stage: Stage, model: Transformer, optimizer: Optimizer, batches: list[Batch], world: World
) -> Callable[[], StepResult]:
    """Gives the device one optimizer step over micro-batches; returns a function that waits for the step's result.

    A step without targets, over all ranks and micro-batches, divides by one and changes nothing: no weight, no moment,
    no count of updates, and no weight decays. The same holds if the loss or a gradient is not finite. The loss is
    summed without intermediate rounding, so it does not depend on the order.

    Where the optimizer does not decide on the device, the step is finished when this returns.

    Args:
        stage: its loss and its schedule count.
        model: is trained.
        optimizer: of the model's parameters.
        batches: micro-batches of this rank.
        world: the ranks.
    """
    targets = world.all_gather_object([batch.target_count for batch in batches])  # per rank and micro-batch
    target_count, passes = sum(map(sum, targets)), max(map(len, targets))
    optimizer.begin_step(passes)
    if optimizer.needs_equal_passes:
        batches = [*batches, *padding_batches(batches, targets, world)]
    losses = []
    with ExitStack() as casts:
        if not optimizer.needs_equal_passes:  # else the weights are gathered later, block by block
            casts.enter_context(fake_quantize_weights(model))
        if len(batches) > 1 and world.device.type != "cpu" and not optimizer.needs_equal_passes:
            casts.enter_context(cast_weights(model.blocks, model.compute_dtype))
        for batch in batches:
            loss = stage.loss(model, batch.to(world.device)) / max(1, target_count)
            (loss * optimizer.loss_scale.value if optimizer.loss_scale.enabled else loss).backward()
            optimizer.accumulate()
            losses.append(loss.detach())  # read once per step: a read on a GPU waits for all that is queued
    if optimizer.decides_on_device:
        return _queue_update(optimizer, losses, passes, target_count, world)
    all_losses: list[float] = []

    def may_update() -> bool:
        local_losses = torch.stack(losses).tolist() if losses else []
        all_losses.extend(chain(*world.all_gather_object(local_losses)))
        return target_count > 0 and all(map(math.isfinite, all_losses))

    norm = optimizer.step(may_update)
    result = summarize_step(norm, all_losses, target_count, optimizer.loss_scale.lowered)
    return lambda: result


def _queue_update(
    optimizer: Optimizer, losses: list[Tensor], passes: int, target_count: int, world: World
) -> Callable[[], StepResult]:
    """Queues the update that follows the micro-batches, and the copy of its result; returns as `queue_step` does.

    losses: 0-d, of this rank's micro-batches; passes: the most that a rank has.
    """

    def gather_losses() -> Tensor:
        own = torch.zeros(passes, device=world.device)
        if losses:
            own[: len(losses)] = torch.stack(losses)
        return world.all_gather(own).wait()

    pending = PendingRead(optimizer.queue_step(gather_losses, target_count > 0))

    def read() -> StepResult:
        norm, *all_losses = pending.read().tolist()
        return summarize_step(norm, all_losses, target_count)

    return read


def summarize_step(norm: float, losses: list[float], target_count: int, rescaled: bool = False) -> StepResult:
    """Returns the result of a step from the losses of all ranks and micro-batches, summed without rounding between."""
    loss = math.fsum(losses) if all(map(math.isfinite, losses)) else math.nan
    return StepResult(loss, norm, target_count > 0 and math.isfinite(loss) and math.isfinite(norm), rescaled)


def padding_batches(batches: list[Batch], targets: list[list[int]], world: World) -> list[Batch]:
    """Returns micro-batches without targets, so that this rank makes as many passes as the rank with the most.

    They are copies of another rank's batch, whose fields fit the stage's loss. targets: counts per rank and batch.
    """
    passes = max(map(len, targets))
    if all(len(counts) == passes for counts in targets):
        return []
    example = next(chain(*world.all_gather_object(batches[:1])))
    blank = replace(example, targets=torch.full_like(example.targets, IGNORE_INDEX))
    return [blank] * (passes - len(batches))


def run_loop(stage: Stage, model: Transformer, optimizer: Optimizer, context: LoopContext, start_step: int = 0) -> bool:
    """Runs a stage from `start_step` to its end. Raises TrainingStopped after saving, if a stop is requested.

    Returns whether a stop was requested in the last step, or in the evaluations after it.

    Args:
        stage: steps, batches, loss, schedule and evaluations.
        model: is trained.
        optimizer: of the model's parameters.
        context: recorder, saver, ranks and the other effects of the loop.
        start_step: steps that are finished already.
    """
    recorder, world, health, rollback = context.recorder, context.world, context.health, context.rollback
    step, horizon, held_actions = start_step, context.horizon or StageHorizon(stage.steps), frozenset[str]()
    stopping = False
    record = context.make_record()
    queued: deque[QueuedStep] = deque()  # in their order; empty between steps where results are read at once
    if start_step == 0:
        run_evals(stage.evals, model, context, 0, last=False)
    if start_step == 0 and rollback.max_rollbacks:
        context.save(0)
    while step < horizon.steps:
        started = time.perf_counter()
        multiplier = stage.schedule(horizon.progress(step))
        optimizer.set_schedule_multiplier(multiplier)
        with world.progress.track_step():
            try:
                batches = stage.batches.next()
            except UserError:  # such as a custom reward that fails: what is learned so far is saved
                if (restored := record_steps(stage, context, record, record.wait(queued))) is not None:
                    step = restored
                    continue
                if step > start_step:
                    context.save(step)
                raise
            measures_memory = step - start_step == MEMORY_STEP and world.is_main
            with measure_peak_memory(world.device, enabled=measures_memory) as peak:
                read = queue_step(stage, model, optimizer, batches, world)
            step += 1
            extra = stage.extra_metrics() | ({"memory": peak.bytes} if peak.bytes else {}) | context.adapt_threads()
            queued.append(QueuedStep(step, started, read, batches, multiplier, extra))
            last = step == horizon.steps
            due = bool(stage.save_every) and step % stage.save_every == 0
            needs_weights = last or due or any(is_due(entry, step, last) for entry in stage.evals)
            finished = record.wait(queued, keep=int(optimizer.decides_on_device and not needs_weights))
        if (restored := record_steps(stage, context, record, finished)) is not None:
            queued.clear()  # what follows the bad step: its batches are read again
            step = restored
            continue
        change_horizon(context, horizon, step, record.seconds)
        run_evals(stage.evals, model, context, step, last)
        actions = agree_on_actions(context) | held_actions
        finished = record.wait(queued) if actions - {BATCH} else []
        if (restored := record_steps(stage, context, record, finished)) is not None:
            step, held_actions = restored, actions  # they are for the next step that stays
            continue
        stopping, held_actions = STOP in actions, frozenset()
        if BATCH in actions and batches and world.is_main:
            write_rows(batches[0], step, recorder.stage_dir / "batch.json")
        run_evals(stage.evals, model, context, step, last, actions)
        if due and health.bad and rollback.max_rollbacks:
            due = False  # a rollback must find the weights from before the bad steps
        if last or stopping or due:
            context.save(step)
        if stopping and not last:
            raise TrainingStopped(step)
    if health.empty:
        recorder.log_notice(f"{stage.name}: {health.empty} of {horizon.steps} steps had no targets and changed nothing")
    return stopping


def record_steps(stage: Stage, context: LoopContext, record: StepRecord, finished: list[FinishedStep]) -> int | None:
    """Records finished steps; returns the step that a rollback restored, or None.

    Raises:
        UserError: too many steps in a row were not finite.
    """
    health, rollback = context.health, context.rollback
    for step, result, seconds in finished:
        if health.record_step(result.loss, result.norm, result.updated, result.rescaled):
            if health.rollbacks >= rollback.max_rollbacks:
                raise UserError(
                    f"{stage.name}: loss or gradient was not finite for {health.bad} steps up to {step.number}; "
                    "lower the learning rates, or set run.max_rollbacks=3 to leave such batches out"
                )
            record.smoothed_loss.clear()
            return rollback.restore(step.number)
        record.add(step, result, seconds)
    return None


def agree_on_actions(context: LoopContext) -> frozenset[str]:
    """Takes and returns the actions requested of any rank, a stop by a signal among them; the same on all ranks.

    The requests are deleted and a notice names them. One collective: the sum over the ranks has a digit for each
    action, in base ranks + 1.
    """
    world = context.world
    taken = take_actions(context.recorder.stage_dir.parent) if world.is_main else frozenset()
    taken |= frozenset([STOP]) if context.should_stop() else frozenset()
    base = world.size + 1
    counts = int(world.all_reduce(float(sum(base**i for i, name in enumerate(ACTIONS) if name in taken))))
    agreed = frozenset(name for i, name in enumerate(ACTIONS) if counts // base**i % base)
    if agreed - {STOP, BATCH} and world.is_main:
        context.recorder.log_notice(f"a watcher asked to {' and '.join(sorted(agreed - {STOP, BATCH}))}")
    return agreed


def change_horizon(context: LoopContext, horizon: StageHorizon, step: int, seconds: float | None) -> None:
    """Changes the steps of the stage as the main rank chooses, on every rank. One collective, where there is a choice.

    seconds: of the last step whose result was read; None: of none yet.
    """
    if context.choose_steps is None or step >= horizon.steps or seconds is None:
        return
    world, recorder = context.world, context.recorder
    chosen = context.choose_steps(horizon, step, seconds) if world.is_main else 0
    steps = min(max(int(world.all_gather_object(chosen)[0]), step + 1), horizon.limit)
    if steps != horizon.steps:
        text = f"step {step}: {steps:,} steps instead of {horizon.steps:,}, for the time that is left"
        before, now = (round(count / (PRINTED_CHANGE * horizon.planned)) for count in (horizon.steps, steps))
        recorder.log_notice(text, is_printed=now != before, total_steps=steps)
        horizon.change(step, steps)
        recorder.total_steps = steps


def write_rows(batch: Batch, step: int, path: Path) -> None:
    """Writes the first rows of a batch for a watcher: token ids, and which of them were targets of the step."""
    rows = []
    for ids, targets in zip(batch.tokens[:SHOWN_ROWS].tolist(), batch.targets[:SHOWN_ROWS].tolist(), strict=True):
        learned = [False, *(target != IGNORE_INDEX for target in targets)]  # a target is the token after its position
        end = len(ids) + learned[-1]
        rows.append({"ids": [*ids, targets[-1]][:end], "learned": learned[:end]})
    write_json(path, {"step": step, "rows": rows})


def is_due(entry: Eval, step: int, last: bool) -> bool:
    """Returns whether its schedule has an evaluation after `step` steps: at the start, every so often, at the end."""
    return step == 0 or last or (bool(entry.every) and step % entry.every == 0)


def run_evals(
    evals: tuple[Eval, ...],
    model: Transformer,
    context: LoopContext,
    step: int,
    last: bool,
    actions: Collection[str] | None = None,
) -> None:
    """Runs and records the evals that are due after `step` steps. Every rank calls it.

    Args:
        evals: of the stage.
        model: is measured.
        context: the recorder, and the ranks.
        step: number of finished steps.
        last: whether the stage ends with this step.
        actions: what a watcher asks for; then only what they need and what was not due anyhow is run.
    """
    due = [entry for entry in evals if is_due(entry, step, last)]
    if actions is not None:
        wanted = [entry for entry in evals if (SAMPLE if entry.name == "samples" else EVALUATE) in actions]
        due = [entry for entry in wanted if entry not in due]
    if not due:
        return
    with unsharded(model), torch.no_grad():
        for entry in due:
            for m in entry.measure(step, last):
                context.recorder.log_evaluation(step, **asdict(m))
