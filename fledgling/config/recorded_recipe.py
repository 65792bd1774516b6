"""Whether the recipe.toml of a run still has all that the run has recorded of it elsewhere: start with `find_lost`.

A run writes every table, and every setting that has a value. A person may edit the file: give a setting another value,
or remove its line, which restores the default. A file that was cut at the end of a line is valid TOML too; it lacks
the last setting, and whole tables.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_STATE_BYTES = 2**26
MAX_LINE_BYTES = 2**20  # of metrics.jsonl


def find_lost(table: Mapping[str, Any], run_dir: Path) -> tuple[str, Path | None]:
    """Returns what the recipe.toml of a run lacks, and the file that has it; "" where it lacks nothing.

    That is whole tables, or the last setting of all, which a cut takes first.

    Args:
        table: the values of recipe.toml.
        run_dir: of the run. What it lacks is not known of a run without a checkpoint and a plan.
    """
    recorded, _ = read_recorded_settings(run_dir)
    tables = [name for name, value in recorded.items() if isinstance(value, dict)]
    lost = [f"[{name}]" for name in tables if not isinstance(table.get(name), dict)]
    if not lost and tables and (last := next(reversed(recorded[tables[-1]]), None)) not in (None, *table[tables[-1]]):
        lost = [f"{tables[-1]}.{last}, its last line"]
    return ", ".join(lost), read_recorded_settings(run_dir, table)[1] if lost else None


def explain_lost(table: Mapping[str, Any], run_dir: Path) -> str:
    """Returns what the recipe.toml of a run lacks and what to do, as the rest of a line; "" where it lacks nothing."""
    lost, place = find_lost(table, run_dir)
    if place is None:
        return ""
    key = "recipe" if place.name == "state.json" else "settings"
    return (
        f'lacks {lost}, so it was cut or lost lines: put it back from "{key}" of {place}; a setting is changed by '
        "another value, not without its table"
    )


def read_recorded_settings(run_dir: Path, left: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Path | None]:
    """Returns the recipe that a run has recorded last, and the file that has it; {} without one.

    That is the last checkpoint of the stage that was trained last by its record (a copy has new times of files), or the
    run's plan.

    Args:
        run_dir: of the run.
        left: what is left of recipe.toml: of the recorded ones that with the fewest other values is chosen.
    """
    stages = {path.parents[2] for path in run_dir.glob("*/checkpoints/step-*/state.json")}
    ended = {stage: _read_end(stage / "metrics.jsonl") for stage in stages}
    paths = [path for stage in stages for path in stage.glob("checkpoints/step-*/state.json")]
    paths.sort(key=lambda path: (ended[path.parents[2]], path.parents[0].name), reverse=True)
    found = ((_read_settings(path), path) for path in (*paths, run_dir / "plan.json"))
    known = ((settings, path) for settings, path in found if settings)
    if left is None:
        return next(known, ({}, None))
    return min(known, key=lambda each: _count_other_values(left, each[0]), default=({}, None))


def _read_settings(path: Path) -> dict[str, Any]:
    """Returns the recipe in a checkpoint's state or in a plan; {} where the file is corrupt."""
    try:
        state = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_STATE_BYTES else {}
        return tomllib.loads(state["recipe" if path.name == "state.json" else "settings"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _count_other_values(left: Mapping[str, Any], recorded: Mapping[str, Any]) -> int:
    """Returns how many settings of `left` have another value in `recorded`, but the run's directory."""
    count = 0
    for name, value in left.items():
        other = recorded.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            count += sum(other.get(key) != each for key, each in value.items() if (name, key) != ("run", "out"))
        else:
            count += value != other
    return count


def _read_end(metrics: Path) -> float:
    """Returns the time of the last step that a stage has recorded; 0 where it is not known."""
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, metrics.stat().st_size - MAX_LINE_BYTES))
            lines = [line for line in file.read().split(b"\n")[:-1] if line.strip()]
        time = json.loads(lines[-1])["time"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 0.0
    return float(time) if isinstance(time, int | float) and not isinstance(time, bool) else 0.0
