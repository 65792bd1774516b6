"""Steps that are replayed, and what they show, as checks. Start with `check_steps`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.record import checkpoint, read_jsonl
from fledgling.record.parent import read_newest_state
from fledgling.runtime.system_environment import collect_environment
from fledgling.train.history import MACHINE_KEYS
from fledgling.train.read_files import OtherFileError
from fledgling.train.resume_check import read_prepared_data
from fledgling.train.stage_rows import require_data
from fledgling.verify import files, states, steps
from fledgling.verify.check import Check
from fledgling.verify.replay_order import MAX_SHARE, Reached, order_starts
from fledgling.verify.segment import find_other_rounding, find_segment

TOLERANCES = {"float32": 1e-3, "bfloat16": 2e-2}  # of another machine, relative, for the few steps after a checkpoint
REPLAYED_STEPS = "steps replayed"
MAX_NAMED = 3  # tensors of a checkpoint, or steps of a stage, that are named
REPLAY_SHARE = 0.5  # of the time, for the steps themselves; the rest goes to loading and to the data of all steps


def check_steps(
    run_dir: Path, count: int, deadline: float, chance: random.Random, tolerance: float, show: Callable[[str], None]
) -> tuple[list[Check], str]:
    """Returns the checks that need the data and the model, and what was not reached, "" if all was.

    They are data of every step, drawn steps, weights, and evaluations.

    Args:
        run_dir: of the run.
        count: steps that are replayed, at most.
        deadline: in seconds of `time.monotonic`.
        chance: draws the steps.
        tolerance: relative difference of repeated values that counts as equal.
        show: receives a line before each part.
    """
    data, replayed = Check("data of every step", "steps"), Check(REPLAYED_STEPS, "steps")
    weights, scores = Check("weights after them", "tensors"), Check("bits per byte recomputed", "values")
    checks = [data, replayed, weights, scores]
    starts, budget = steps.list_starts(run_dir), max(0.0, deadline - time.monotonic())
    here, obstacles = collect_environment(), find_obstacles(run_dir, starts)
    seconds = {stage: steps.measure_step_seconds(run_dir, stage) for stage in files.list_stages(run_dir)}

    def reach(start: steps.Start) -> int:
        """Returns how many steps after a start can be replayed in its part of the time."""
        return int(budget * REPLAY_SHARE / max(1, len(starts)) / max(1e-9, seconds[start.stage]))

    replayed.notes += [f"not replayed: {place}: {reason}" for place, reason in obstacles.items()]
    last_steps = {start.stage: start.last for start in starts}  # the checkpoint of each that is taken further
    starts = [start for start in starts if start.stage not in obstacles and str(start) not in obstacles]
    drawn = steps.draw_distances(starts, count, reach, chance)
    for start in starts:
        if start.last == last_steps[start.stage] and 0 < start.last - start.step <= reach(start):
            drawn.setdefault(start, []).append(start.last - start.step)
    data.total = replayed.total = sum(len(steps.read_metrics_by_step(run_dir, stage)) for stage in seconds)
    reached = Reached(last_steps, {stage for stage in seconds if steps.read_metrics_by_step(run_dir, stage)}, drawn)
    rounded: dict[str, set[str]] = {}  # stages by why their bits are others here
    for start in order_starts(starts, drawn, chance):
        show(str(start))
        began = time.monotonic()
        if not reached.has_time(deadline - began):
            reached.left_out.append(str(start))
            continue
        stop_at = began + (deadline - began) * MAX_SHARE
        result = _replay_start(run_dir, start, drawn.get(start, [0]), stop_at, replayed)
        if result is None:
            continue
        segment = find_segment(run_dir, start.stage, start.step)
        elsewhere = segment.machine and any(segment.machine.get(key) != here[key] for key in MACHINE_KEYS)
        other = find_other_rounding(steps.read_stage_recipe(run_dir, start.stage, start.step).run, segment)
        if other:
            rounded.setdefault(other, set()).add(start.stage)
        allowed = max(TOLERANCES.values()) if elsewhere or other else tolerance
        _compare(run_dir, start, result, allowed, checks)
        reached.add(start, result, time.monotonic() - began)
    replayed.notes += [
        f"{', '.join(stage for stage in seconds if stage in stages)}: {reason}: compared within "
        f"{max(TOLERANCES.values()):g} of their values, not bit by bit"
        for reason, stages in rounded.items()
    ]
    weights.notes += reached.list_unseen()
    replayed.notes += reached.list_notes()
    weights.total, scores.total = weights.checked, scores.checked
    return checks, reached.describe_shortfall()


def _replay_start(
    run_dir: Path, start: steps.Start, distances: Sequence[int], stop_at: float, replayed: Check
) -> steps.Replay | None:
    """Returns the replay of a start as far as the largest of `distances`; None, and why in `replayed`, if it fails."""
    is_end = start.path is not None and start.step == start.last
    reads_data = start.step == 0 and start.stage in steps.DATA_STAGES
    try:
        return steps.replay(run_dir, start, max(*distances, int(reads_data)), reads_data, is_end, stop_at)
    except OtherFileError as error:
        replayed.notes.append(f"not replayed: {start}: {error}")
    except UserError as error:
        is_known = steps.find_changed_inputs(run_dir, start)  # of an end, which needs no step that reads them
        reason = f"{start} cannot be replayed: {steps.name_run(str(error), run_dir)}"
        (replayed.notes if is_known else replayed.problems).append(reason)
    return None


def find_obstacles(run_dir: Path, starts: Sequence[steps.Start]) -> dict[str, str]:
    """Returns why stages or starts cannot be resumed from, by what they are called.

    A source is gone, and its tokens with it, or a file that is read in the steps is gone or was edited.
    """
    found = {}
    for stage in files.list_stages(run_dir):
        try:
            recipe, kept = steps.read_stage_recipe(run_dir, stage), read_prepared_data(run_dir, stage)
            require_data(replace(recipe, run=replace(recipe.run, out=str(run_dir))), [stage], kept)
        except UserError as error:
            found[stage] = str(error)
    for start in (start for start in starts if start.stage not in found):
        try:
            reason = steps.find_obstacle(run_dir, start)
        except UserError as error:
            reason = str(error)
        found |= {str(start): reason} if reason else {}
    return found


def _compare(run_dir: Path, start: steps.Start, result: steps.Replay, tolerance: float, checks: list[Check]) -> None:
    """Adds what a replay shows to the checks."""
    data, replayed, weights, scores = checks
    recorded = steps.read_metrics_by_step(run_dir, start.stage)
    if result.data:
        if start.same_until is not None:
            recorded = {step: line for step, line in recorded.items() if step <= start.same_until}
            data.notes.append(
                f"{start.stage}: was resumed after step {start.same_until} with other settings or elsewhere"
            )
        _compare_data(start.stage, recorded, result, data)
        if not result.has_read_all:
            data.notes.append(f"{start.stage}: no time left after step {len(result.data)}: give --seconds more")
        elif not any(line.get("rollbacks") for line in recorded.values()):
            data.problems += states.compare_reading(run_dir, start.stage, result, start.same_until)
        recorded = steps.read_metrics_by_step(run_dir, start.stage)
    is_older = "history" not in read_newest_state(run_dir, start.stage)  # checkpoints of this version have one
    for step, replayed_line in sorted(result.lines.items()):
        replayed.checked += 1
        line = recorded.get(step, {})
        if is_older:
            line, replayed_line = keep_known_metrics(start.stage, recorded.values(), line, replayed_line, replayed)
        differences = steps.compare_lines(line, replayed_line, max(TOLERANCES.values()) if is_older else tolerance)
        if differences and tolerance and start.stage == "rl" and line.get("data") != replayed_line.get("data"):
            replayed.notes.append(f"rl: rounding makes it sample other answers in step {step}: not compared from there")
            replayed.checked -= 1
            result.saved, result.lines = None, {n: made for n, made in result.lines.items() if n < step}
            break
        if differences:
            what = "weights" if step == start.step + 1 else "moments"
            cause = f"the {what} or the seed {start} began with" if start.step == 0 else f"the {what} of {start}"
            replayed.problems.append(f"{start.stage} step {step}: {'; '.join(differences)} (this line, or {cause})")
            break
    if result.saved is not None:
        path = run_dir / start.stage / "checkpoints" / result.saved.path.name
        if path.is_dir() and checkpoint.inspect_checkpoint(path)["valid"]:
            recorded_state = checkpoint.load_checkpoint(path, check_hashes=False)
            weights.checked += sum(map(len, result.saved.tensors.values()))
            found = steps.compare_checkpoints(
                recorded_state, result.saved, max(TOLERANCES.values()) if is_older else tolerance
            )
            where = f"{start.stage}/{path.name} or {start}, from which it was replayed"
            of_state = states.compare_states(recorded_state.state, result.saved.state, tolerance)
            weights.problems += [f"{where}: {problem}" for problem in (*found[:MAX_NAMED], *of_state)]
            if len(found) > MAX_NAMED:
                weights.problems.append(f"{where}: and {len(found) - MAX_NAMED} more tensors")
    for (name, n), value in result.evals.items():
        lines = read_jsonl(run_dir / start.stage / "evals.jsonl")
        same = [line for line in lines if (line.get("step"), line.get("name"), line.get("n")) == (start.step, name, n)]
        for line in same[-1:]:
            scores.checked += 1
            if not steps.is_close(line.get("value"), value, tolerance):
                scores.problems.append(
                    f"{start.stage} step {start.step}: {name} over {n:,} is {line.get('value')} in evals.jsonl and "
                    f"{value} from the weights of that checkpoint"
                )


def keep_known_metrics(
    stage: str,
    recorded: Iterable[Mapping[str, Any]],
    line: dict[str, Any],
    replayed_line: dict[str, Any],
    replayed: Check,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns two lines of a run that an older version trained without the metrics that one version does not write.

    Args:
        stage: of the lines.
        recorded: all lines of the stage: a metric that one of them has, and this line lacks, stays a difference.
        line: recorded. The loss stays in any case.
        replayed_line: the same step, replayed.
        replayed: receives a note with the names that are left out.
    """
    known = {name for each in recorded for name in each}
    left_out = ((set(replayed_line) - known) | (set(line) - set(replayed_line))) - steps.CLOCK_KEYS - {"loss", "step"}
    names = ", ".join(sorted(left_out))
    note = f"{stage}: trained by an older version, compared within a tolerance"
    note += f" and without {names}, which one of the two versions does not record" if names else ""
    if note not in replayed.notes:
        replayed.notes.append(note)
    kept = [{name: value for name, value in each.items() if name not in left_out} for each in (line, replayed_line)]
    return kept[0], kept[1]


def _compare_data(stage: str, recorded: dict[int, dict[str, Any]], result: steps.Replay, data: Check) -> None:
    """Compares the digest of each step's tokens, and its learning rate, with the record."""
    if any(line.get("rollbacks") for line in recorded.values()):
        data.notes.append(f"{stage}: rolled back, so that its steps do not follow the order of the data")
        return
    wrong: list[str] = []
    for step, line in recorded.items():
        if "data" not in line or not 0 < step <= len(result.data):
            continue
        data.checked += 1
        if line["data"] != result.data[step - 1]:
            wrong.append(f"{stage} step {step} read other tokens than the recipe, its seed and the prepared data give")
        elif line.get("lr_multiplier") != result.multipliers[step - 1]:
            wrong.append(f"{stage} step {step}: lr_multiplier {line.get('lr_multiplier')}, the recipe gives another")
    data.problems += wrong[:MAX_NAMED]
    if len(wrong) > MAX_NAMED:
        data.problems.append(f"and {len(wrong) - MAX_NAMED} more steps of {stage}: another seed, text or tokenizer")
