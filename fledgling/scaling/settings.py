"""The settings that the runs of one folder share, and those of each run: compared by table and key, with defaults.

The same command resumes a folder of runs. `pin_settings` rejects that for another recipe,
`require_same_cell` for a run that has begun as another one, as one that was copied to this name. Does not import torch.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledgling.config import Recipe, UserError, dump_toml
from fledgling.config.load import RECIPE_FILE, parse_recipe
from fledgling.record import write_text
from fledgling.record.seal import DERIVED

CELL = "cell.json"  # of a run: its depth, budget and settings
WITHOUT_EFFECT = ("run.threads", "run.out")  # on what a run learns
OF_ONE_CELL = ("model.depth", "pretrain.steps", "pretrain.warmup_steps", "pretrain.save_every")
HEAD = "its first line"  # in the place of a key
MAX_SHOWN = 3  # settings that a message names

Differences = dict[str, tuple[Any, Any]]  # key -> the values of two settings; None: not set


def dump_settings(recipe: Recipe) -> str:
    """Returns the settings of a recipe as TOML, wherever its run is."""
    return dump_toml(replace(recipe, run=replace(recipe.run, out="")))


def find_changed_settings(there: str, here: str) -> Differences:
    """Returns what differs between two texts of settings, by "table.key".

    Fields that came with a later version have their defaults; those WITHOUT_EFFECT are left out. A text is a recipe, or
    another TOML file; the lines of comment before its first key are a value too.

    Raises UserError for a text that is no TOML.
    """
    try:
        filled = [dump_toml(parse_recipe(text)) for text in (there, here)]
    except UserError:  # settings of another kind, or a key of a later version
        filled = [there, here]
    before, now = (_read_head(text) | _read_values(values) for text, values in zip((there, here), filled, strict=True))
    names = [name for name in (now | before) if name not in WITHOUT_EFFECT]
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


def describe_differences(differences: Differences, there: str = "there", here: str = "now") -> str:
    """Returns differences in one line, the first ones by name: "pretrain.steps is 10 there, 20 now"."""
    shown = [
        f"{name} is {_format_value(before)} {there}, {_format_value(now)} {here}"
        for name, (before, now) in list(differences.items())[:MAX_SHOWN]
    ]
    more = len(differences) - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])])


def pin_settings(path: Path, text: str, kind: str) -> None:
    """Writes settings to a new file, or raises UserError if an existing file has other settings."""
    if not path.exists():
        write_text(path, text)
        return
    try:
        differences = find_changed_settings(path.read_text(encoding="utf-8"), text)
    except (OSError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path} cannot be read ({error}): put it back, or choose another --out") from None
    if differences:
        what = f"{kind} with other settings ({describe_differences(differences)})"
        raise UserError(f"{path.parent} holds {what}; choose another --out")


def require_same_cell(run_dir: Path, facts: Mapping[str, Any]) -> None:
    """Raises UserError where the run of that name has begun as another one: as a copy, or with other settings.

    facts: what is written to the run's cell.json; runs of an earlier version may lack some of them.
    """
    there, here = read_cell(run_dir), json.loads(json.dumps(facts))
    shared = [key for key in here if key in there and key != "settings"]
    differences: Differences = {key: (there[key], here[key]) for key in shared if there[key] != here[key]}
    if "settings" in there and "settings" in here:
        differences |= find_changed_settings(str(there["settings"]), here["settings"])
    if differences:
        raise UserError(
            f"{run_dir} has begun with other settings ({describe_differences(differences)}); choose another --out, or "
            "remove it if it is a copy of another run"
        )


def name_mixed_settings(run_dirs: Sequence[Path]) -> list[str]:
    """Returns a line for each run of a sweep whose recipe.toml differs from the first one's by more than its cell.

    Names, directories, micro-batches and what rules have filled do not count.
    """
    texts = [(path, text) for path in run_dirs if (text := _read_text(path / RECIPE_FILE))]
    lines = []
    for path, text in texts[1:]:
        first, of_first = texts[0]
        filled = {name for each in (first, path) for name in load_json_object(each / DERIVED)}
        differences = _find_own(of_first, text, {*OF_ONE_CELL, *filled, "name", "pretrain.micro_batch_size"})
        if differences:
            what = describe_differences(differences, f"in {first.name}", "here")
            lines.append(f"{path.name} has other settings, so that the runs are not of one rule: {what}")
    return lines


def read_cell(run_dir: Path) -> dict[str, Any]:
    """Returns what a run's cell.json says; {} where there is none that can be read."""
    return load_json_object(run_dir / CELL)


def load_json_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, {} if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _find_own(there: str, here: str, left_out: Collection[str]) -> Differences:
    """Returns the differences of two recipes but those left out; {} where one cannot be read."""
    try:
        found = find_changed_settings(there, here)
    except UserError:
        return {}
    return {name: values for name, values in found.items() if name not in left_out and not name.startswith("run.")}


def _read_head(text: str) -> dict[str, Any]:
    """Returns the lines of comment before the first key: what is no setting of a recipe is written there."""
    lines = text.splitlines()
    head = lines[: next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return {HEAD: "\n".join(head)} if head else {}


def _read_values(text: str) -> dict[str, Any]:
    """Returns the values of a TOML text by "table.key"."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"not TOML: {error}") from None
    values: dict[str, Any] = {}
    for name, value in table.items():
        values |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return values


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _format_value(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False, default=str)
