"""What the values of a checkpoint's state are, before anything relies on them: a manifest can be made to fit any file.

Keys that a version does not write are not missed. Start with `find_state_corruption`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.record.checkpoint import read_checkpoint_state

KINDS: dict[str, tuple[type, str]] = {
    "step": (int, "a number of steps"),
    "ranks": (int, "a number of processes"),
    "micro_batch": (int, "a number of rows"),
    "recipe": (str, "a recipe as text"),
    "model": (dict, "a table"),
    "health": (dict, "a table"),
    "totals": (dict, "a table"),
    "horizon": (dict, "a table"),
    "positions": (dict, "a table"),
    "data": (dict, "a table"),
    "history": (list, "a list"),
}
ENTRY: dict[str, tuple[type, str]] = {
    "after_step": (int, "a number of steps"),
    "recipe": (str, "a recipe as text"),
    "machine": (dict, "a table"),
    "files": (dict, "a table"),
}
SWITCHES = ("compiled", "native")  # of an entry


def find_state_corruption(state: Mapping[str, Any]) -> str:
    """Returns which value of a checkpoint's state is of another kind than this program writes; "" if none is."""
    if corruption := _find_other_kind(state, KINDS, ""):
        return corruption
    for number, entry in enumerate(state.get("history") or ()):
        place = f"history[{number}]"
        if not isinstance(entry, dict) or any(entry.get(key) is None for key in ("after_step", "recipe", "machine")):
            return f"{place} is {_shorten_repr(entry)}, expected after_step, recipe, machine"
        if corruption := _find_other_kind(entry, ENTRY, f"{place}."):
            return corruption
        if wrong := next((key for key in SWITCHES if not isinstance(entry.get(key), bool | None)), None):
            return f"{place}.{wrong} is {_shorten_repr(entry[wrong])}, expected true or false"
        if other := next((value for value in (entry.get("files") or {}).values() if not isinstance(value, str)), None):
            return f"{place}.files has {_shorten_repr(other)}, expected digests"
    for source, facts in (state.get("data") or {}).items():
        kinds: dict[str, tuple[type, str]] = {"digest": (str, "a digest"), "directories": (list, "a list")}
        if not isinstance(facts, dict):
            return f'data["{source[:40]}"] is {_shorten_repr(facts)}, expected a table'
        if corruption := _find_other_kind(facts, kinds, f'data["{source[:40]}"].'):
            return corruption
    return ""


def require_sound_state(path: Path) -> dict[str, Any]:
    """Returns the state of a checkpoint. Raises UserError that names a value of another kind than it can have."""
    state = read_checkpoint_state(path)
    if corruption := find_state_corruption(state):
        raise UserError(f"checkpoint {path} is corrupt: in state.json {corruption}; use another one")
    return state


def _find_other_kind(table: Mapping[str, Any], kinds: Mapping[str, tuple[type, str]], prefix: str) -> str:
    for name, (kind, expected) in kinds.items():
        value = table.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            return f"{prefix}{name} is {_shorten_repr(value)}, expected {expected}"
    return ""


def _shorten_repr(value: Any) -> str:
    return repr(value)[:40]
