"""Which values of a run's recipe.toml a rule has filled, and no user: RUN/derived.json, by the field's name.

Such a value is no changed setting where a checkpoint was saved before the rule had filled it, and it is open again for
a stage that begins: its settings may be others by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledgling.config import STAGES, Recipe
from fledgling.config.changes import list_fields
from fledgling.plan.derive import list_derived
from fledgling.record import write_json
from fledgling.record.seal import DERIVED


def read_derived_values(run_dir: Path) -> dict[str, Any]:
    """Returns what rules have filled, by name ("sft.learning_rate"); {} for a run of an earlier version."""
    try:
        values = json.loads((run_dir / DERIVED).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def write_derived_values(run_dir: Path, given: Recipe, derived: Recipe) -> None:
    """Adds the fields that are open in `given` and filled in `derived`, the recipe that the run has now.

    A field that has another value by now, or that this start was given, was stated by a user, and is left out.
    """
    now, before = _name_fields(derived), read_derived_values(run_dir)
    kept = {name: value for name, value in before.items() if name in now and now[name] == value}
    kept = {name: value for name, value in kept.items() if name not in derived.stated}
    write_json(run_dir / DERIVED, kept | {entry.name: entry.value for entry in list_derived(given, derived)})


def open_derived_values(recipe: Recipe, values: Mapping[str, Any], tables: Iterable[str]) -> Recipe:
    """Returns the recipe with the values of these tables that rules have filled, and no user stated, open again."""
    for table in tables:
        names = [name for name in vars(getattr(recipe, table)) if f"{table}.{name}" in values.keys() - recipe.stated]
        filled = [name for name in names if getattr(getattr(recipe, table), name) == values[f"{table}.{name}"]]
        changed: dict[str, Any] = {table: replace(getattr(recipe, table), **dict.fromkeys(filled))}
        recipe = replace(recipe, **changed)
    return recipe


def open_unbegun(recipe: Recipe, run_dir: Path, begins: Iterable[str] = ()) -> Recipe:
    """Returns the recipe with what rules have filled open again in stages that have no checkpoints, and in `begins`.

    begins: tables; the optimizer's too where no stage has begun.
    """
    unbegun = [name for name in STAGES if not (run_dir / name / "checkpoints").is_dir()]
    tables = dict.fromkeys([*unbegun, *begins, *(["optimizer"] if len(unbegun) == len(STAGES) else [])])
    return open_derived_values(recipe, read_derived_values(run_dir), tables)


def add_derived_values(saved: Recipe, wanted: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Returns `saved` with the values of `wanted` in fields that it leaves open, where rules have filled them since."""
    before, now = _name_fields(saved), _name_fields(wanted)
    for name, value in values.items():
        table, _, field = name.rpartition(".")
        if before.get(name, 0) is None and now[name] == value:
            changed: dict[str, Any] = {table: replace(getattr(saved, table), **{field: value})}
            saved = replace(saved, **changed)
    return saved


def _name_fields(recipe: Recipe) -> dict[str, Any]:
    """Returns the fields of a recipe's tables by name."""
    return {f"{table}.{field}": value for table, field, value in list_fields(recipe) if table}
