"""What a checkpoint's state counts, compared with the record, with the stage before it, and with replayed steps.

A manifest can be made to fit a forged state, and a resumed run would continue its counts. Start with `check_states`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fledgling.config import RLConfig, UserError
from fledgling.config.load import parse_recipe
from fledgling.record import checkpoint
from fledgling.record.parent import find_parent, read_newest_state
from fledgling.report.run_data import read_object
from fledgling.train.health import Health
from fledgling.train.rl.collapse import COLLAPSE_SIGNS, CollapseMonitor
from fledgling.train.source_positions import read_positions
from fledgling.train.totals import Totals
from fledgling.verify.check import Check
from fledgling.verify.files import is_usable, list_stage_checkpoints, list_stages
from fledgling.verify.steps import Replay, is_close, read_metrics_by_step

REPLAYED = ("stage", "step", "tokenizer", "micro_batch", "rows_per_step", "row_weights", "positions")
OF_HEALTH = tuple(Health().state_dict())
OF_STREAM = ("step", "kl", "collapse")  # of what the stream keeps: the rest are rollouts
SHOWN = 120  # characters of a value


def check_states(run_dir: Path) -> Check:
    """Compares step, totals, counts and positions of each checkpoint with the record and the stage before it."""
    check = Check("states of checkpoints", "values")
    for stage in list_stages(run_dir):
        lines = read_metrics_by_step(run_dir, stage)
        for path in list_stage_checkpoints(run_dir, stage):
            if is_usable(path):
                state = checkpoint.read_checkpoint_state(path)
                pairs = list_recorded_values(run_dir, path, state, lines)
                check.checked += len(pairs)
                check.problems += [
                    f"{stage}/{path.name}/state.json: {name} is {_show(value)}, {source} {_show(expected)}"
                    for name, value, expected, source in pairs
                    if not _is_same(value, expected)
                ]
    check.total = check.checked
    return check


def list_recorded_values(
    run_dir: Path, path: Path, state: Mapping[str, Any], lines: Mapping[int, Mapping[str, Any]]
) -> list[tuple[str, Any, Any, str]]:
    """Returns (name, value in the state, what it has to be, where that comes from) of what the record decides.

    Args:
        path: of the checkpoint.
        lines: of metrics, by step.
    """
    stage, step, name = path.parents[1].name, state["step"], path.name.removesuffix(".old")
    named = int(name.removeprefix("step-"))
    pairs: list[tuple[str, Any, Any, str]] = [("step", step, named, "the name of the checkpoint says")]
    pairs += [("stage", state["stage"], stage, "it is in")] if "stage" in state else []
    if step and step not in lines:
        return [*pairs, ("step", step, max(lines, default=0), "the record ends at")]
    line, where = lines.get(step, {}), f"the record of step {step} says"
    totals, health = state.get("totals") or {}, state.get("health") or {}
    if not step:
        line = Totals().state_dict()
    summed = [key for key in Totals().state_dict() if key in totals and key in line]
    pairs += [(f"totals.{key}", totals[key], line[key], where) for key in summed]
    counted = [key for key in Health().state_dict() if key in health and key != "bad"]
    pairs += [(f"health.{key}", health[key], line.get(key, 0), where) for key in counted]
    pairs += _list_positions(run_dir, stage, state)
    stream = state.get("stream")
    if not isinstance(stream, dict) or line.get("rollbacks"):  # a rollback skips batches
        return pairs
    pairs += [("stream.step", stream["step"], step, "the checkpoint is of step")] if "step" in stream else []
    if stage == "rl" and len(state.get("history") or ()) == 1:  # a resumed stage may have had other settings
        pairs += _list_counts(stream, state["recipe"], step, lines)
    return pairs


def _list_positions(run_dir: Path, stage: str, state: Mapping[str, Any]) -> list[tuple[str, Any, Any, str]]:
    """Returns where the sources began: where the stage before it ended; RL and DPO read none, and pass them on."""
    positions = state.get("positions")
    if not isinstance(positions, dict) or not {"start", "now"} <= positions.keys():
        return []
    pairs = []
    if stage in ("dpo", "rl"):
        pairs.append(("positions.now", positions["now"], positions["start"], "the stage reads no source and began at"))
    parent = find_parent(run_dir, state)
    path = parent.path if parent is not None else None
    if parent and path and path.name == f"step-{parent.step:08d}" and is_usable(path):  # others may have its weights
        before = read_positions(checkpoint.read_checkpoint_state(path), resumes=False)
        pairs.append(("positions.start", positions["start"], before, f"{parent.stage or 'init'} ended at"))
    elif stage == "pretrain" and state.get("parent", False) is None:
        pairs.append(("positions.start", positions["start"], {}, "a first stage begins at"))
    return pairs


def _list_counts(
    stream: Mapping[str, Any], recipe: str, step: int, lines: Mapping[int, Mapping[str, Any]]
) -> list[tuple[str, Any, Any, str]]:
    """Returns the KL weight and the counts of signs of collapse of RL, which follow from the rounds of the record."""
    pairs, line = [], lines.get(step, {})
    if "kl" in stream and "kl_weight" in line:
        pairs.append(("stream.kl", stream["kl"], line["kl_weight"], f"the record of step {step} says"))
    try:
        expected = count_signs(parse_recipe(recipe).rl, step, lines)
    except UserError:
        expected = None
    if stream.get("collapse") and expected is not None:
        pairs.append(("stream.collapse", stream["collapse"], expected, "the rounds of the record give"))
    return pairs


def count_signs(table: RLConfig, step: int, lines: Mapping[int, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns the state of the monitor of collapse after the rounds up to `step`, whose metrics each line repeats.

    None where a round has a metric that is no number.
    """
    monitor, names = CollapseMonitor(lambda text: None), {name for name, *_ in COLLAPSE_SIGNS.values()}
    for first in range(1, step + 1, table.epochs * table.minibatches):
        metrics = {name: value for name, value in lines.get(first, {}).items() if name in names}
        if not all(isinstance(value, int | float) for value in metrics.values()):
            return None
        monitor.update(metrics)
    return monitor.state_dict()


def compare_states(recorded: Mapping[str, Any], replayed: Mapping[str, Any], tolerance: float) -> list[str]:
    """Returns what differs between the states of a checkpoint of the run and of a replayed one, but clocks."""
    pairs = [(name, recorded[name], replayed[name]) for name in REPLAYED if name in recorded and name in replayed]
    counted = {"totals": ("tokens", "targets"), **({} if tolerance else {"health": OF_HEALTH, "stream": OF_STREAM})}
    for table, names in counted.items():
        before, after = recorded.get(table) or {}, replayed.get(table) or {}
        pairs += [(f"{table}.{name}", before[name], after[name]) for name in names if name in before and name in after]
    return [
        f"state.json: {name} is {_show(before)}, replayed {_show(after)}"
        for name, before, after in pairs
        if not is_close(before, after, tolerance)
    ]


def compare_reading(run_dir: Path, stage: str, result: Replay, last: int | None) -> list[str]:
    """Returns which positions and counts of a stage differ from those that its data give.

    Args:
        run_dir: of the run.
        stage: that did not roll back.
        result: of a replay that has read the data of the whole stage.
        last: the last step with the same settings; None: all have them.
    """
    problems = []
    for path in list_stage_checkpoints(run_dir, stage):
        state = checkpoint.read_checkpoint_state(path) if is_usable(path) else {}
        expected = result.positions.get(state.get("step", -1))
        if expected is None or "positions" not in state or (last is not None and state["step"] > last):
            continue
        if state["positions"] != expected:
            found, given = _show(state["positions"].get("now")), _show(expected.get("now"))
            problems.append(f"{stage}/{path.name}/state.json: positions are {found}, the data give {given}")
    if last is not None:
        return problems
    if read_newest_state(run_dir, stage).get("ranks", 1) == 1:
        found_sizes = find_other_sizes(read_metrics_by_step(run_dir, stage), result.sizes)
        problems += [f"{stage} {line}" for line in found_sizes]
    sources = read_object(run_dir / stage / "done.json").get("sources")
    if sources is not None and result.reading and sources != result.reading:
        problems.append(f"{stage}/done.json: sources are {_show(sources)}, the data give {_show(result.reading)}")
    return problems


def find_other_sizes(lines: Mapping[int, Mapping[str, Any]], sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Returns the first step whose running sums of tokens or targets are not those of the data, as a line.

    Args:
        lines: of metrics, by step.
        sizes: (tokens, targets) of each step.
    """
    sums = [0, 0]
    for step, size in enumerate(sizes, start=1):
        sums = [total + value for total, value in zip(sums, size, strict=True)]
        for name, total in zip(("tokens", "targets"), sums, strict=True):
            if step in lines and name in lines[step] and lines[step][name] != total:
                return [f"step {step}: {name} is {lines[step][name]} in metrics.jsonl, the data give {total}"]
    return []


def _is_same(value: Any, expected: Any) -> bool:
    if isinstance(value, float) and isinstance(expected, float):
        return math.isclose(value, expected, rel_tol=1e-9)
    return bool(value == expected)


def _show(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
