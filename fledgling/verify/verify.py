"""Runs all checks of a run within a time. Start with `verify_run`."""

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
from fledgling.record.progress_bar import ProgressBar
from fledgling.report.run_data import read_object
from fledgling.runtime.system_environment import collect_environment
from fledgling.train.history import MACHINE_KEYS
from fledgling.train.read_files import OtherFileError
from fledgling.train.resume_check import read_prepared_data
from fledgling.train.stage_rows import require_data
from fledgling.verify import figures, files, seals, states, steps
from fledgling.verify.check import Check
from fledgling.verify.report_page import check_report
from fledgling.verify.scores import check_scores
from fledgling.verify.segment import find_segment
from fledgling.verify.stage_order import list_outdated

TOLERANCES = {"float32": 1e-3, "bfloat16": 2e-2}  # of another machine, relative, for the few steps after a checkpoint
REPLAYED_STEPS = "steps replayed"
MAX_NAMED = 3  # tensors of a checkpoint, or steps of a stage, that are named
EVALS, EVALS_SHARE = 4, 0.2  # scores of exams that are recomputed, and of the time
REPLAY_SHARE = 0.5  # of the time, for the steps themselves; the rest goes to loading and to the data of all steps


def verify_run(
    run_dir: Path | str,
    count: int = 20,
    seconds: float = 60.0,
    seed: int | None = None,
    show_progress: bool = False,
    evals: int | None = None,
) -> dict[str, Any]:
    """Checks a run and returns {"run", "root", "seed", "machine", "tolerance", "checks": [...], "verdict", "holds"}.

    The verdict is "holds", "FAILS", or "steps not checked" where nothing contradicts and no step could be replayed.

    Args:
        count: steps that are drawn at random.
        seconds: steps are replayed for so long; files are read whole in any case.
        seed: of the draw; None draws one.
        show_progress: whether a progress line is written to stderr.
        evals: scores of exams that are drawn and recomputed; None: EVALS.

    Raises UserError if it is no run.
    """
    run_dir, began = Path(run_dir), time.monotonic()
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} {'is a file' if run_dir.exists() else 'does not exist'}: expected a run directory")
    if not files.list_stages(run_dir):
        raise UserError(
            f"{run_dir} has no stage with a metrics.jsonl: expected a run directory, such as runs/quickstart"
        )
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    bar = ProgressBar("verify") if show_progress else None
    environment, here = read_object(run_dir / "environment.json"), collect_environment()
    other = [key for key in MACHINE_KEYS if environment.get(key) != here[key]]
    done = 0

    def show(what: str) -> None:
        nonlocal done
        done += 1
        if bar:
            bar.update(done, max(done, 40), {}, time.monotonic() - began)

    try:
        checks = [
            files.check_stages(run_dir),
            files.check_checkpoints(run_dir, show),
            files.check_prepared_data(run_dir, show),
            seals.check_seals(run_dir, show, list_outdated(run_dir)),
            figures.check_recorded_settings(run_dir),
            figures.check_sums(run_dir),
            states.check_states(run_dir),
            check_report(run_dir, "fledgling" not in other),
        ]
        tolerance, chance = find_tolerance(run_dir, other), random.Random(seed)
        count_scores, until = EVALS if evals is None else evals, began + EVALS_SHARE * seconds
        scores = check_scores(run_dir, count_scores, until, random.Random(seed), tolerance > 0, show)
        checks += [*check_steps(run_dir, count, began + seconds, chance, tolerance, show), scores]
    finally:
        if bar:
            bar.close()
    fails = any(check.problems for check in checks)
    any_replayed = any(check.checked for check in checks if check.name == REPLAYED_STEPS)
    return {
        "run": str(run_dir),
        "root": seals.compute_root(run_dir),
        "seed": seed,
        "machine": {key: [environment.get(key), here[key]] for key in other},
        "tolerance": tolerance,
        "seconds": time.monotonic() - began,
        "checks": [check.to_json() for check in checks],
        "verdict": "FAILS" if fails else "holds" if any_replayed else "steps not checked",
        "holds": any_replayed and not fails,
    }


def find_tolerance(run_dir: Path, other: list[str]) -> float:
    """Returns the relative difference that is allowed: 0 for a run of one process, on its machine and versions.

    Steps with fewer threads than usual, on a machine that others used too, have sums in another order.
    """
    ranks = {
        checkpoint.read_checkpoint_state(path).get("ranks", 1)
        for stage in files.list_stages(run_dir)
        for path in files.list_stage_checkpoints(run_dir, stage)
        if files.is_usable(path)
    }
    lines = (line for stage in files.list_stages(run_dir) for line in read_jsonl(run_dir / stage / "metrics.jsonl"))
    if not other and ranks <= {1} and not any("threads" in line for line in lines):
        return 0.0
    return max(TOLERANCES.values())


def check_steps(
    run_dir: Path, count: int, deadline: float, chance: random.Random, tolerance: float, show: Callable[[str], None]
) -> list[Check]:
    """Returns the checks that need the data and the model: data of every step, drawn steps, weights, evaluations.

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
    compared: set[tuple[str, int]] = set()
    data.total = replayed.total = sum(len(steps.read_metrics_by_step(run_dir, stage)) for stage in seconds)
    beginnings = [start for start in starts if start.step == 0 and start.stage in steps.DATA_STAGES]
    ends = [start for start in starts if start.path and start.step == start.last]
    others = [start for start in drawn if start not in beginnings]
    chance.shuffle(others)
    left_out: list[str] = []
    for start in [*beginnings, *ends[::-1], *others]:
        distance = max(drawn.get(start, [0]))
        if time.monotonic() > deadline:
            left_out.append(str(start))
            continue
        show(str(start))
        is_beginning, is_end = start in beginnings, start in ends
        if is_beginning:
            distance = max(1, distance)
        try:
            result = steps.replay(run_dir, start, distance, is_beginning, is_end)
        except OtherFileError as error:
            replayed.notes.append(f"not replayed: {start}: {error}")
            continue
        except UserError as error:
            is_known = steps.find_changed_inputs(run_dir, start)  # of an end, which needs no step that reads them
            reason = f"{start} cannot be replayed: {steps.name_run(str(error), run_dir)}"
            (replayed.notes if is_known else replayed.problems).append(reason)
            continue
        machine = find_segment(run_dir, start.stage, start.step).machine
        elsewhere = machine and any(machine.get(key) != here[key] for key in MACHINE_KEYS)
        _compare(run_dir, start, result, max(TOLERANCES.values()) if elsewhere else tolerance, checks)
        if result.saved is not None:
            compared.add((start.stage, int(result.saved.path.name.removeprefix("step-"))))
        if result.evals:
            compared.add((start.stage, start.step))
    unseen = [f"{stage} step {last}" for stage, last in last_steps.items() if (stage, last) not in compared]
    if unseen:
        weights.notes.append(
            f"not compared: {', '.join(unseen)}: no start was taken so far, and no bits per byte were recorded"
        )
    for start, distances in drawn.items():
        if str(start) not in left_out:
            replayed.notes.append(
                f"drawn after {start}: {', '.join(str(start.step + d) for d in sorted({*distances}))}"
            )
    reached = sum(len({*distances}) for start, distances in drawn.items() if str(start) not in left_out)
    if reached < min(count, replayed.total):
        replayed.notes.append(f"{reached} of {count} drawn steps fit into the time: give --seconds more")
    if left_out:
        replayed.notes.append(f"no time left for {', '.join(left_out)}: give --seconds more")
    weights.total, scores.total = weights.checked, scores.checked
    return checks


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
        if not any(line.get("rollbacks") for line in recorded.values()):
            data.problems += states.compare_reading(run_dir, start.stage, result, start.same_until)
        recorded = steps.read_metrics_by_step(run_dir, start.stage)
    is_older = "history" not in read_newest_state(run_dir, start.stage)  # checkpoints of this version have one
    for step, replayed_line in sorted(result.lines.items()):
        replayed.checked += 1
        line = recorded.get(step, {})
        if is_older:
            line, replayed_line = keep_known_metrics(start.stage, recorded.values(), line, replayed_line, replayed)
        differences = steps.compare_lines(line, replayed_line, max(TOLERANCES.values()) if is_older else tolerance)
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
