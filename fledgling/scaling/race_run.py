"""Trains one contestant of a race with one seed for a given time of training steps, and measures it on the way.

The run is an ordinary one of this package's loop. Its learning rates follow the time instead of the steps, so the
schedule's tail is whole however fast the machine is; it stops after the first step that reaches the budget. Only steps
count: neither evaluations nor checkpoints; a step in which torch.compile worked counts as the median of the others.

As a program, `python race_run.py JOB.json` with PYTHONPATH=TREE, it trains with the package of another checkout, so it
uses only what trees from November 2026 on have. Start with `run_contestant`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fledgling
from fledgling.config import Recipe, UserError, load_recipe
from fledgling.data.batch import Batch
from fledgling.evals.bpb import make_text_batches, measure_bpb
from fledgling.model.transformer import Transformer
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan.flops import training_flops_per_token
from fledgling.record.jsonl import JsonlWriter, read_jsonl, write_json
from fledgling.runtime.exit_codes import STOPPED
from fledgling.scaling.sweep import link_shared_data
from fledgling.train.data_preparer import DataPreparer
from fledgling.train.hooks import StageHooks
from fledgling.train.loop import TrainingStopped
from fledgling.train.run import run_stage
from fledgling.train.stage import Eval, Stage
from fledgling.train.wrapped_stream import WrappedStream

RESULT = "race.json"  # of a finished run
POINTS = "points.jsonl"  # of a run: what it reached by when
MAX_STEPS = 100_000_000  # of the stage, which the time ends long before
TYPICAL_STEPS = 64  # the first ones, whose median a step that compiles counts as
SAVE_EVERY = 500  # steps, if the recipe has no interval
TRAIN_TEXT, HELD_OUT_TEXT = "train.jsonl", "held_out.jsonl"


@dataclass(frozen=True)
class Job:
    """One run of a race, as JSON values: it may be done by another process.

    recipe, overrides: of `load_recipe`. seed: added to the recipe's. seconds: of training steps. out: the race's
    directory. run: the run's name in it. points: measurements, at equal distances in time, the last at the end. clock:
    "wall", or "cpu": processor time over the number of threads, for a machine that others use too.
    """

    recipe: str
    overrides: tuple[str, ...]
    seed: int
    seconds: float
    out: str
    run: str
    points: int = 8
    clock: str = "wall"

    @property
    def run_dir(self) -> Path:
        """The run's directory."""
        return Path(self.out) / self.run


@dataclass
class StepClock:
    """Seconds of training steps by `now`; those that compiled count as the median of the others."""

    now: Callable[[], float] = time.perf_counter
    first_seconds: list[float] = field(default_factory=list)  # of the first steps without compilation
    total_seconds: float = 0.0  # of all of them
    steps: int = 0
    compiled_steps: int = 0
    compiled_seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    _start: float = 0.0
    _graphs: int = 0

    @property
    def elapsed(self) -> float:
        """Seconds that count."""
        return self.total_seconds + self.compiled_steps * statistics.median(self.first_seconds or [0.0])

    def start_step(self) -> None:
        """Marks the beginning of a step, before its batch is requested."""
        self._start, self._graphs = self.now(), count_compiled_graphs()

    def end_step(self) -> dict[str, Any]:
        """Marks the end of a step; returns the values that `restore_step` takes."""
        record = {
            "race_seconds": self.now() - self._start,
            "race_compiled": count_compiled_graphs() > self._graphs,
            "race_tokens": self.tokens,
            "race_flops": self.flops,
        }
        self.restore_step(record)
        return record

    def restore_step(self, record: dict[str, Any]) -> None:
        """Counts a step from what `end_step` has returned."""
        self.steps, self.tokens = self.steps + 1, record["race_tokens"]
        self.flops = record["race_flops"]
        if record["race_compiled"]:
            self.compiled_steps += 1
            self.compiled_seconds += record["race_seconds"]
            return
        self.total_seconds += record["race_seconds"]
        if len(self.first_seconds) < TYPICAL_STEPS:
            self.first_seconds.append(record["race_seconds"])


def processor_seconds() -> float:
    """Returns the processor time of this process, over the threads that torch computes with."""
    return time.process_time() / torch.get_num_threads()


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": processor_seconds}


def count_compiled_graphs() -> int:
    """Returns how many graphs torch.compile has compiled in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # importing it takes a second: not in a step that compiles nothing
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


class TimedStage:
    """The stage of one run: its steps are timed, and what it has learned is measured on the held-out documents.

    Args:
        held_out: rows of the documents.
        byte_lengths: (V,), of each token.
    """

    def __init__(
        self, job: Job, recipe: Recipe, held_out: Sequence[Batch], byte_lengths: np.ndarray, log: Callable[[str], None]
    ) -> None:
        self.job, self.recipe, self.held_out, self.byte_lengths, self.log = job, recipe, held_out, byte_lengths, log
        self.clock, self.points = StepClock(CLOCKS[job.clock]), JsonlWriter(job.run_dir / POINTS)
        self.model: Transformer | None = None  # from the first step on

    def is_over(self) -> bool:
        """Returns whether the time is used."""
        return self.clock.elapsed >= self.job.seconds

    def adapt(self, stage: Stage) -> Stage:
        """Returns the stage that runs."""

        def loss(model: Transformer, batch: Batch) -> torch.Tensor:
            self.model = model
            self.clock.tokens += batch.tokens.numel()
            self.clock.flops += batch.tokens.numel() * training_flops_per_token(model.config, batch.tokens.shape[1])
            return stage.loss(model, batch)

        return replace(
            stage,
            batches=WrappedStream(stage.batches, on_step=self.start_step),
            loss=loss,
            schedule=self.schedule,
            extra_metrics=lambda: stage.extra_metrics() | self.clock.end_step(),
        )

    def schedule(self, progress: float) -> float:
        """Returns the recipe's multiplier of the learning rates at the share of the time that is used."""
        self.restore_clock()
        share, steps = min(self.clock.elapsed / self.job.seconds, 1.0), self.clock.steps
        whole = round(steps / share) if share and steps else MAX_STEPS  # steps of the run at the speed so far
        table = self.recipe.pretrain
        return trapezoidal_schedule(
            share, max(1, whole), table.warmup_steps or 0, table.decay_fraction, table.final_lr_fraction
        )

    def start_step(self) -> None:
        """Marks the beginning of a step."""
        self.restore_clock()
        self.clock.start_step()

    def restore_clock(self) -> None:
        """Before the first step of a process, restores the clock and the points from the record."""
        if not self.clock.steps:
            for line in read_jsonl(self.job.run_dir / "pretrain" / "metrics.jsonl"):
                self.clock.restore_step(line)
            kept = [point for point in read_jsonl(self.points.path) if point["steps"] <= self.clock.steps]
            self.points.path.unlink(missing_ok=True)
            for point in kept:
                self.points.append(point)

    def measure(self, step: int, last: bool) -> list:
        """Writes the points that are due after `step` steps; an evaluation of the loop without values of its own."""
        job, clock = self.job, self.clock
        due = min(job.points, int(clock.elapsed / job.seconds * job.points + 1e-9)) if step else 0
        missing = due - len(read_jsonl(self.points.path)) if due else 0
        if missing > 0:
            assert self.model is not None, "a step has run"
            bits = measure_bpb(self.model, self.held_out, self.byte_lengths)
            values = {"steps": step, "seconds": clock.elapsed, "bits": bits.value, "low": bits.low, "high": bits.high}
            for _ in range(missing):  # a step may be longer than the distance of two points
                self.points.append(values | {"tokens": clock.tokens, "flops": clock.flops, "seed": job.seed})
            time_used = f"{clock.elapsed:.0f} of {job.seconds:.0f} s"
            self.log(f"{job.run}: {time_used}, {step:,} steps, {bits.value:.4f} bits per byte")
        return []


def run_contestant(job: Job, log: Callable[[str], None]) -> None:
    """Trains and measures what a job says, and writes RUN/race.json; resumes from the run's checkpoint.

    Raises:
        TrainingStopped: after a signal, once everything is saved.
        UserError: for a recipe that cannot be trained on the race's text.
    """
    recipe = race_recipe(load_recipe(job.recipe, job.overrides), job)
    tables = json.dumps([vars(recipe.tokenizer), fledgling.__file__], default=str)
    shared = Path(job.out) / f"prepared-{sha256(tables.encode()).hexdigest()[:8]}"
    preparer = DataPreparer(recipe, shared / "shared", log)
    tokenizer = preparer.load_or_train_tokenizer()
    for source in recipe.tokenizer.sources:
        preparer.documents.prepare_shards(source, tokenizer)
    link_shared_data(shared, job.run_dir)
    texts = [line["text"] for line in read_jsonl(Path(job.out) / "text" / HELD_OUT_TEXT)]
    held_out, lengths = make_text_batches(texts, tokenizer, recipe.resolve_model().context), tokenizer.byte_lengths()
    timed = TimedStage(job, recipe, held_out, lengths, log)
    try:
        hooks = StageHooks(
            select_evals=lambda evals: (Eval("race", 1, timed.measure),),
            adapt_stage=timed.adapt,
            should_stop=timed.is_over,
        )
        run_stage(recipe, "pretrain", quiet=True, hooks=hooks)
    except TrainingStopped:
        if not timed.is_over():
            raise
    finally:
        torch.compiler.reset()
    assert timed.model is not None, "a run has a step"
    result = {
        "job": asdict(job),
        "parameters": timed.model.count_parameters(),
        "flops_per_token": training_flops_per_token(timed.model.config),
        "tokenizer": tokenizer.fingerprint(),
        "bytes": int(sum(lengths[batch.targets[batch.targets >= 0]].sum() for batch in held_out)),
        "compile_steps": timed.clock.compiled_steps,
        "compile_seconds": timed.clock.compiled_seconds,
        "threads": torch.get_num_threads(),
    }
    write_json(job.run_dir / RESULT, result)


def race_recipe(recipe: Recipe, job: Job) -> Recipe:
    """Returns a recipe that pretrains on the race's text alone, until the time ends it.

    What rules fill in follows from the recipe's own horizon.
    """
    recipe = fill_open_fields(replace(recipe, stages=("pretrain",)))
    text = str(Path(job.out) / "text" / TRAIN_TEXT)
    pretrain = replace(
        recipe.pretrain,
        steps=MAX_STEPS,
        mixture={text: 1.0},
        eval_every=0,
        sample_every=0,
        core_every=0,
        save_every=recipe.pretrain.save_every or SAVE_EVERY,
        keep_checkpoints=1,
    )
    return replace(
        recipe,
        name=job.run,
        seed=recipe.seed + job.seed,
        tokenizer=replace(recipe.tokenizer, sources=(text,)),
        sft=replace(recipe.sft, mixture={}),  # whose skills would be part of the tokenizer's text
        pretrain=pretrain,
        run=replace(recipe.run, out=str(job.run_dir)),
    )


def fill_open_fields(recipe: Recipe) -> Recipe:
    """Returns a recipe whose rates and warm-up are given. A checkout from before the rules has none that are open."""
    if find_spec("fledgling.plan.derive") is None:
        return recipe
    from fledgling.plan.derive import RATES, derive_recipe

    filled = derive_recipe(recipe)
    if any(getattr(filled.optimizer, name) is None for name in ("weight_decay", *(f"{role}_lr" for role in RATES))):
        raise UserError(
            f"pretrain.examples_per_step={recipe.pretrain.examples_per_step}: open rates follow from the batch, which "
            "a race knows only from pretrain.batch_tokens: set that instead"
        )
    return filled


def main() -> int:
    """Runs the job in the file that is named on the command line; returns the exit code."""
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        run_contestant(
            Job(**{**values, "overrides": tuple(values["overrides"])}), lambda text: print(text, file=sys.stderr)
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
