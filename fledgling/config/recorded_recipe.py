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


def find_lost(table: Mapping[str, Any], run_dir: Path) -> tuple[str, Path | None]:
    """Returns what the recipe.toml of a run lacks, and the file that has it; "" where it lacks nothing.

    That is whole tables, or the last setting of all, which a cut takes first.

    Args:
        table: the values of recipe.toml.
        run_dir: of the run. What it lacks is not known of a run without a checkpoint and a plan.
    """
    recorded, place = read_recorded_settings(run_dir)
    tables = [name for name, value in recorded.items() if isinstance(value, dict)]
    lost = [f"[{name}]" for name in tables if not isinstance(table.get(name), dict)]
    if not lost and tables and (last := next(reversed(recorded[tables[-1]]), None)) not in (None, *table[tables[-1]]):
        lost = [f"{tables[-1]}.{last}, its last line"]
    return ", ".join(lost), place if lost else None


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


def read_recorded_settings(run_dir: Path) -> tuple[dict[str, Any], Path | None]:
    """Returns the recipe that the newest checkpoint of a run has, or else its plan, and the file; {} without them."""
    states = [(_read_time(path), path) for path in run_dir.glob("*/checkpoints/step-*/state.json")]
    paths = [path for _, path in sorted(states, reverse=True)]
    for path in (*paths, run_dir / "plan.json"):
        try:
            state = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_STATE_BYTES else {}
            settings = tomllib.loads(state["recipe" if path.name == "state.json" else "settings"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
        return settings, path
    return {}, None


def _read_time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
