"""Replayed steps: a stage is resumed from one of its checkpoints in a scratch copy of the run, and is compared.

A start is the beginning of a stage (its parent's weights, or the seed) or a checkpoint. The first step after it depends
on all of its weights, the second on all of its moments. `fledgling.train.run` makes them, as it makes every step.
"""

from __future__ import annotations

import math
import random
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fledgling.config import STAGES, Recipe, load_recipe
from fledgling.config.load import parse_recipe
from fledgling.corpora.prepared_data import digest_read_files
from fledgling.files.columns import split_columns
from fledgling.record import checkpoint, read_jsonl
from fledgling.record.checkpoint import BASES_DIR
from fledgling.record.parent import read_newest_state
from fledgling.report.run_data import finite_number
from fledgling.runtime.world import World
from fledgling.tasks import ENVIRONMENT_PREFIX
from fledgling.train.hooks import StageHooks
from fledgling.train.init_from import INIT_DIR
from fledgling.train.loop import TrainingStopped
from fledgling.train.queued_step import digest_step
from fledgling.train.read_files import list_read_files
from fledgling.train.resume_check import read_prepared_data
from fledgling.train.rl.model_reward import MODEL_PREFIX
from fledgling.train.run import run_stage
from fledgling.train.stage import Eval, Stage
from fledgling.train.stage_horizon import StageHorizon, read_changes
from fledgling.train.stage_weights import INIT_ADAPTER_DIR
from fledgling.verify.files import is_usable, list_stage_checkpoints, list_stages
from fledgling.verify.segment import choose_replayed_run, find_segment
from fledgling.verify.stage_order import (
    explain_lost_parent,
    find_stage_parent,
    leave_out_parents,
    list_outdated,
    needs_parent,
)

CLOCK_KEYS = {"time", "elapsed", "seconds", "training_seconds", "tokens_per_second", "mfu", "peak_flops", "memory"}
CLOCK_KEYS |= {"save_stall", "save_seconds", "rollout_tokens_per_second", "mfu_datasheet", "threads"}
CLOCK_KEYS |= {"share_rollouts", "share_scoring", "share_update"}
SCRATCH_PREFIX = "fledgling-verify-"
MIN_DISTANCE = 2  # a changed moment shows in the second step
GROUPS = ("model", "adapter_model", "critic", "optimizer", "random")
WEIGHT_GROUPS = ("model", "adapter_model", "critic")  # which a tolerance allows to differ a little
OF_NORM, OF_VALUE = 7.5, 17.5  # times the tolerance: of a tensor and of one value; .061 and .136 were seen at .02
READ_AS_THEY_ARE = ("dpo.pairs", "rl.tasks", "rl.rewards")  # `fledgling.train.read_files`
DATA_STAGES = ("pretrain", "midtrain", "sft")  # what their steps read is known without a model


@dataclass(frozen=True)
class Start:
    """Where steps can be replayed from. path: the checkpoint; None: the beginning of the stage."""

    stage: str
    step: int
    path: Path | None
    last: int  # the next checkpoint's step, the last recorded one, or the last with the same settings
    same_until: int | None = None  # the last step with the same settings and machine; None: all are

    def __str__(self) -> str:
        return f"{self.stage} step {self.step}"


@dataclass
class Replay:
    """What a start gave: lines by step, the checkpoint at its end, digests of all data, evaluations of the weights."""

    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    saved: checkpoint.Checkpoint | None = None
    data: list[str] = field(default_factory=list)
    multipliers: list[float] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (tokens, targets) of each step
    positions: dict[int, dict[str, Any]] = field(default_factory=dict)  # of the sources after each step
    reading: list[dict[str, Any]] = field(default_factory=list)  # what all steps have read, as done.json has it
    evals: dict[tuple[str, int], float] = field(default_factory=dict)
    has_read_all: bool = True  # whether `data` is of all steps


def read_metrics_by_step(run_dir: Path, stage: str) -> dict[int, dict[str, Any]]:
    """Returns the recorded metrics by step."""
    lines = read_jsonl(run_dir / stage / "metrics.jsonl")
    return {line["step"]: line for line in lines if isinstance(line.get("step"), int)}


def list_starts(run_dir: Path) -> list[Start]:
    """Returns the beginnings and the valid checkpoints of all stages, the last checkpoint of each too."""
    starts = []
    for stage in list_stages(run_dir):
        lines = read_metrics_by_step(run_dir, stage)
        paths = [path for path in list_stage_checkpoints(run_dir, stage) if is_usable(path)]
        by_step = {int(checkpoint.read_checkpoint_state(path)["step"]): path for path in paths}
        steps = sorted({0, *by_step})
        for step, following in zip(steps, [*steps[1:], max([0, *lines])], strict=True):
            segment = find_segment(run_dir, stage, step)
            following = following if segment.last is None else min(following, segment.last)
            starts.append(Start(stage, step, by_step.get(step), max(step, following), segment.last))
    return starts


def measure_step_seconds(run_dir: Path, stage: str) -> float:
    """Returns the median of the recorded seconds of a step."""
    return median(
        [finite_number(line.get("seconds")) or 0.0 for line in read_metrics_by_step(run_dir, stage).values()] or [0.0]
    )


def draw_distances(
    starts: Sequence[Start], count: int, reach: Callable[[Start], int], chance: random.Random
) -> dict[Start, list[int]]:
    """Draws `count` steps at random among those that can be reached; returns their distances from each start.

    Every start that is not the last of its stage gets one of the first MIN_DISTANCE steps at least, as far as `count`
    goes; starts are drawn first, distances then, so that a start far from the next one does not take all.
    """
    possible = [start for start in starts if start.last > start.step]
    chance.shuffle(possible)
    drawn: dict[Start, list[int]] = {}
    for number in range(count if possible else 0):
        start = possible[number] if number < len(possible) else chance.choice(possible)
        limit = max(MIN_DISTANCE, reach(start)) if number >= len(possible) else MIN_DISTANCE
        drawn.setdefault(start, []).append(chance.randint(1, min(limit, start.last - start.step)))
    return drawn


# ---- replaying them ------------------------------------------------------------------------------


def read_stage_recipe(run_dir: Path, stage: str, step: int = 0) -> Recipe:
    """Returns the recipe that the step of a stage after `step` ran with."""
    for path in list_stage_checkpoints(run_dir, stage)[::-1]:
        if is_usable(path):
            state = checkpoint.read_checkpoint_state(path)
            recipe = parse_recipe(find_segment(run_dir, stage, step).recipe or state["recipe"])
            table = recipe.stage_config(stage)
            if table.micro_batch_size is None and state.get("micro_batch"):
                changed: dict[str, Any] = {stage: replace(table, micro_batch_size=state["micro_batch"])}
                recipe = replace(recipe, **changed)
            return recipe
    return load_recipe(str(run_dir))


def read_horizon_changes(run_dir: Path, stage: str, planned: int) -> list[tuple[int, int]]:
    """Returns how a stage changed its steps while it ran, when `planned` were planned: from its newest checkpoint."""
    for path in list_stage_checkpoints(run_dir, stage)[::-1]:
        if is_usable(path):
            return read_changes(checkpoint.read_checkpoint_state(path).get("horizon", {}).get(str(planned), []))
    return []


def find_obstacle(run_dir: Path, start: Start) -> str:
    """Returns why `start` cannot be resumed from, "" if it can.

    A stage needs the weights that it was started with, and steps need the files that they have read. Raises UserError
    for a device, or a package for it, that this machine lacks.
    """
    recipe = read_stage_recipe(run_dir, start.stage, start.step)
    lost = explain_missing_parent(run_dir, start.stage)
    if lost and (start.path is None or needs_parent(recipe, start.stage)):
        return lost
    choose_replayed_run(recipe.run, find_segment(run_dir, start.stage, start.step))
    if missing := find_missing_inputs(recipe, start.stage):
        return "; ".join(missing)
    return "; ".join(find_changed_inputs(run_dir, start) if start.last > start.step else ())


def resumes_alone(run_dir: Path, start: Start) -> bool:
    """Returns whether a start is a checkpoint whose stage began from weights that the run no longer has."""
    return start.path is not None and bool(explain_missing_parent(run_dir, start.stage))


def explain_missing_parent(run_dir: Path, stage: str) -> str:
    """Returns why an honest run does not have what a stage began from; "" where it has it, or nothing explains it."""
    parent = find_stage_parent(run_dir, stage)
    if parent is not None:
        return explain_lost_parent(run_dir, stage, parent) if parent.path is None else ""
    before = [name for name in list_stages(run_dir) if STAGES.index(name) < STAGES.index(stage)]
    if not before or "parent" in read_newest_state(run_dir, stage):
        return ""
    is_there = checkpoint.find_latest_checkpoint(run_dir / before[-1] / "checkpoints", check_hashes=False)
    return "" if is_there else f"the checkpoints of {before[-1]} were deleted"


def find_missing_inputs(recipe: Recipe, stage: str) -> list[str]:
    """Returns one line for each file outside the run, other than text, that a stage reads in its steps and is not here.

    Texts are not among them: a run keeps their tokens.
    """
    named: list[tuple[str, str]] = []
    if recipe.has_teacher(stage):
        named.append(("distill.teacher", str(recipe.distill.teacher)))
    if stage == "dpo" and recipe.dpo.pairs:
        named.append(("dpo.pairs", split_columns(recipe.dpo.pairs)[0]))
    if stage == "rl":
        rewards = [name for name in recipe.rl.rewards if ".py:" in name or name.startswith(MODEL_PREFIX)]
        paths = [name.removeprefix(MODEL_PREFIX) if ".py:" not in name else name.rpartition(":")[0] for name in rewards]
        named += [("rl.rewards", path) for path in paths]
        classes = [name.removeprefix(ENVIRONMENT_PREFIX) for name in recipe.rl.tasks if ".py:" in name]
        named += [("rl.tasks", name.rpartition(":")[0]) for name in classes]
    return [f"{key}: {path} is not here" for key, path in named if not Path(path).exists()]


def find_changed_inputs(run_dir: Path, start: Start) -> list[str]:
    """Returns one line for each file that a stage reads as it is, and that the steps after `start` had otherwise.

    Raises UserError for a task or a reward model that is not here.
    """
    recorded = find_segment(run_dir, start.stage, start.step).files
    read = list_read_files(read_stage_recipe(run_dir, start.stage, start.step), start.stage)
    gone = [source for source in recorded if source not in read and source.partition(" ")[0] in READ_AS_THEY_ARE]
    return [f"{source}: its file is not here" for source in gone] + [
        f"{source}: {', '.join(map(str, paths))} is not what was trained on, but another file or edited since"
        for source, paths in read.items()
        if source in recorded and digest_read_files(paths) != recorded[source]
    ]


def name_run(message: str, run_dir: Path) -> str:
    """Returns a message about a scratch run with the path of the run that it is a copy of."""
    return re.sub(rf"\S*/{SCRATCH_PREFIX}[^/\s]*/run", lambda _: str(run_dir), message)


@contextmanager
def scratch_run(run_dir: Path, start: Start) -> Iterator[Path]:
    """Yields a run directory with what a stage needs to resume from `start`; no write in it reaches the original."""
    with TemporaryDirectory(prefix=SCRATCH_PREFIX) as folder:
        scratch = Path(folder) / "run"
        (scratch / "data").mkdir(parents=True)
        # An outdated stage takes the tokenizer of the checkpoint that it is resumed from: the run's may be another by
        # now.
        if (run_dir / "tokenizer").is_dir() and start.stage not in list_outdated(run_dir):
            shutil.copytree(run_dir / "tokenizer", scratch / "tokenizer")
        for path in (run_dir / "data").iterdir() if (run_dir / "data").is_dir() else ():
            _link(path, scratch / "data" / path.name)
        kept = [f"{BASES_DIR}/{stage}" for stage in STAGES]
        given = [] if resumes_alone(run_dir, start) else [INIT_DIR]
        for folder in (*given, INIT_ADAPTER_DIR, *kept):
            for path in (run_dir / folder).iterdir() if (run_dir / folder).is_dir() else ():
                (scratch / folder).mkdir(exist_ok=True, parents=True)
                _link(path, scratch / folder / path.name)
        parent = find_stage_parent(run_dir, start.stage)
        for stage in list_stages(run_dir):
            named = {path.name: path for path in list_stage_checkpoints(run_dir, stage)}
            if stage == start.stage:
                named = {start.path.name: start.path} if start.path else {}
            elif parent is not None and parent.path is not None and stage == parent.stage:
                named = {f"step-{parent.step:08d}": parent.path}  # the stage starts from the newest that is there
            (scratch / stage / "checkpoints").mkdir(parents=True)
            for name, path in named.items():
                _link(path, scratch / stage / "checkpoints" / name)
            if stage == start.stage:
                break
            if (run_dir / stage / "done.json").is_file():
                shutil.copyfile(run_dir / stage / "done.json", scratch / stage / "done.json")
        yield scratch


def _link(path: Path, target: Path) -> None:
    """Links a directory and copies a file: a file that is replaced or appended to is the scratch run's own."""
    if path.is_dir():
        target.symlink_to(path.resolve(), target_is_directory=True)
    else:
        shutil.copyfile(path, target)


def replay(
    run_dir: Path, start: Start, distance: int, reads_data: bool, measures: bool, stop_at: float = math.inf
) -> Replay:
    """Replays the `distance` steps after `start`.

    Args:
        reads_data: whether the data of all steps of the stage are read.
        measures: whether the weights of `start` are evaluated on held-out text.
        stop_at: seconds of `time.monotonic` after which no further step is made than the first; nor are data read.

    Raises: UserError as training does.
    """
    result, made = Replay(), 0

    def should_stop() -> bool:
        nonlocal made
        made += 1
        return made >= distance or time.monotonic() > stop_at

    def adapt(stage: Stage) -> Stage:
        changes = read_horizon_changes(run_dir, start.stage, stage.steps)
        if reads_data:
            before, horizon = stage.batches.state_dict(), StageHorizon(stage.steps, changes)
            for step in range(horizon.steps):
                if time.monotonic() > stop_at:
                    result.has_read_all = False
                    break
                batches = stage.batches.next()
                result.data.append(digest_step(batches, World.start(recipe.run.device)))
                result.multipliers.append(stage.schedule(horizon.progress(step)))
                tokens, targets = (sum(batch.tokens.numel() for batch in batches), sum(b.target_count for b in batches))
                result.sizes.append((tokens, targets))
                if stage.positions is not None:
                    result.positions[step + 1] = stage.positions()
            result.reading = stage.count_reading()
            stage.batches.load_state_dict(before)
        if not distance:
            return replace(stage, steps=start.step)
        return replace(stage, save_every=0, recorded_changes=changes)

    def measure(evals: tuple[Eval, ...]) -> tuple[Eval, ...]:
        for entry in evals:
            if measures and entry.name == "bits_per_byte":
                with torch.no_grad():
                    result.evals |= {(m.name, m.n or 0): m.value for m in entry.measure(start.step, True)}
        return ()

    with scratch_run(run_dir, start) as scratch:
        recipe = read_stage_recipe(run_dir, start.stage, start.step)
        run = choose_replayed_run(recipe.run, find_segment(run_dir, start.stage, start.step))
        recipe = replace(recipe, run=replace(run, out=str(scratch), loggers=()))
        if resumes_alone(run_dir, start):
            recipe = leave_out_parents(recipe, start.stage)
        stopped = False
        prepared = read_prepared_data(run_dir, start.stage)
        hooks = StageHooks(
            select_evals=measure,
            adapt_stage=adapt,
            should_stop=should_stop,
            adapt_threads=dict,  # as many as the run had, though others compute here now: fewer add in another order
            prepared=prepared,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of corrupt checkpoints, which another check names
                run_stage(recipe, start.stage, quiet=True, hooks=hooks)
        except TrainingStopped:
            stopped = True
        result.lines = read_metrics_by_step(scratch, start.stage)
        newest = checkpoint.find_latest_checkpoint(scratch / start.stage / "checkpoints", check_hashes=False)
        if distance and newest is not None and (stopped or result.lines):
            result.saved = checkpoint.load_checkpoint(newest, check_hashes=False)
    return result


# ---- comparing -----------------------------------------------------------------------------------


def compare_lines(recorded: dict[str, Any], replayed: dict[str, Any], tolerance: float) -> list[str]:
    """Returns what differs between two lines of metrics; tolerance: relative, 0 for bits. Clocks are left out."""
    names = sorted(({*recorded, *replayed} - CLOCK_KEYS) - {"step"})
    return [
        f"{name} {recorded.get(name)} recorded, {replayed.get(name)} replayed"
        for name in names
        if not is_close(recorded.get(name), replayed.get(name), tolerance)
    ]


def is_close(recorded: Any, replayed: Any, tolerance: float) -> bool:
    """Returns whether two JSON values are equal, or numbers whose relative difference is at most `tolerance`."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (recorded, replayed))
    if tolerance and numbers:
        return math.isclose(recorded, replayed, rel_tol=tolerance, abs_tol=tolerance)
    return bool(recorded == replayed)


def compare_checkpoints(
    recorded: checkpoint.Checkpoint, replayed: checkpoint.Checkpoint, tolerance: float
) -> list[str]:
    """Returns the tensors that differ between a checkpoint of the run and a replayed one."""
    problems = []
    for group in GROUPS:
        before, after = recorded.tensors.get(group, {}), replayed.tensors.get(group, {})
        for name in sorted({*before, *after}):
            one, other = before.get(name), after.get(name)
            if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
                problems.append(f"{group} {name} is only in one")
            elif not tolerance and not torch.equal(one, other):
                count = int((one != other).sum())
                problems.append(f"{group} {name}: {count:,} of {one.numel():,} values differ")
            elif tolerance and group in WEIGHT_GROUPS:
                difference, norm, value = one.double() - other.double(), OF_NORM * tolerance, OF_VALUE * tolerance
                if float(difference.norm() / one.double().norm().clamp_min(1e-30)) > norm:
                    problems.append(f"{group} {name} differs by more than {norm:g} of its norm")
                elif float(difference.abs().max() / one.double().abs().max().clamp_min(1e-30)) > value:
                    problems.append(f"{group} {name} differs by more than {value:g} of its largest value")
    return problems
