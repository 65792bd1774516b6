"""What differs between two recipes, by setting."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from fledgling.config.recipe import Recipe

MAX_SHOWN = 4
MAX_VALUE = 60  # characters of a value in a message

SettingChanges = dict[str, tuple[Any, Any]]


def find_setting_changes(before: Recipe, now: Recipe, ignored: Collection[str] = ()) -> SettingChanges:
    """Returns (value before, value now) of the settings that differ, by "table.key", or "key" outside of tables."""
    values = [_flatten(asdict(recipe)) for recipe in (before, now)]
    names = [name for name in values[1] if name != "stated" and name not in ignored]
    return {name: (values[0][name], values[1][name]) for name in names if values[0][name] != values[1][name]}


def describe_setting_changes(differences: Mapping[str, tuple[Any, Any]], there: str, here: str) -> str:
    """Returns differences in one line, the first ones by name: "seed is 1 of rank 1, 0 of rank 0"."""
    shown = [
        f"{name} is {str(before)[:MAX_VALUE]} {there}, {str(now)[:MAX_VALUE]} {here}"
        for name, (before, now) in list(differences.items())[:MAX_SHOWN]
    ]
    more = len(differences) - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])])


def _flatten(tables: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return flat
