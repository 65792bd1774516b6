"""What a model card says of how the weights were made: teacher, adapter, given weights, and the budget of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledgling.config import STAGES, Recipe, UserError
from fledgling.config.load import parse_recipe
from fledgling.record import checkpoint
from fledgling.record.seal import FORECAST

MAX_FORECAST_BYTES = 2**20
MAX_NAME = 80
TEACHER = "distill.teacher"  # of a state's "data": the digest of its weights
DIGEST_LENGTH = 12


def describe_origin(state: Mapping[str, Any], run: Path | None) -> list[tuple[str, str]]:
    """Returns rows of a card on the stages up to the one of `state`, each by the recipe of its own checkpoint."""
    stages = {str(state.get("stage")): state}
    if run is not None:
        stages = {**_read_states(run, str(state.get("stage"))), **stages}
    recipes = {name: recipe for name, values in stages.items() if (recipe := _parse(values)) is not None}
    if (last := recipes.get(str(state.get("stage")))) is not None:
        recipes = {name: recipe for name, recipe in recipes.items() if name in last.stages}
    rows: dict[str, list[str]] = {}
    for name in (stage for stage in STAGES if stage in recipes):
        recipe = recipes[name]
        if recipe.has_teacher(name):
            teacher = _shorten(recipe.distill.teacher) + _digest(stages[name])
            rows.setdefault(f"learned from the teacher {teacher}", []).append(name)
        if recipe.adapter.trains_in(name):
            adapter = f"{recipe.adapter.method} of rank {recipe.adapter.rank}"
            on = "" if recipe.adapter.quantization == "none" else f" on {recipe.adapter.quantization} weights"
            rows.setdefault(f"trained an adapter, merged here: {adapter}{on}", []).append(name)
    described = [(", ".join(names), what) for what, names in rows.items()]
    given = next((recipe.run.init_from for recipe in recipes.values() if recipe.run.init_from), None)
    if given:
        described.insert(0, ("began from", _shorten(given)))
    if run is not None and (budget := _read_budget(run)):
        described.append(("budget of the run", budget))
    return described


def _read_states(run: Path, last: str) -> dict[str, Mapping[str, Any]]:
    """Returns the states of the newest checkpoints of the stages before `last`, where they are left."""
    states: dict[str, Mapping[str, Any]] = {}
    for name in STAGES[: STAGES.index(last)] if last in STAGES else ():
        newest = checkpoint.find_latest_checkpoint(
            run / name / "checkpoints", check_hashes=False, warn=lambda text: None
        )
        if newest is not None:
            states[name] = checkpoint.read_checkpoint_state(newest)
    return states


def _parse(state: Mapping[str, Any]) -> Recipe | None:
    try:
        return parse_recipe(str(state["recipe"]))
    except (KeyError, UserError):
        return None


def _digest(state: Mapping[str, Any]) -> str:
    """Returns the beginning of the SHA-256 of the teacher's weights, where the stage has recorded it."""
    data = state.get("data")
    entry = data.get(TEACHER) if isinstance(data, dict) else None
    digest = entry.get("digest") if isinstance(entry, dict) else None
    return f" (weights {digest[:DIGEST_LENGTH]})" if isinstance(digest, str) and digest.isalnum() else ""


def _shorten(place: str | None) -> str:
    """Returns the last parts of a path in one line: a card is published, a machine's directories are not."""
    parts = Path(str(place)).parts
    name = "/".join(parts[-2:]) if Path(str(place)).is_absolute() else str(place)
    return f"`{''.join(c if c.isprintable() and c not in '`|' else '?' for c in name)[:MAX_NAME]}`"


def _read_budget(run: Path) -> str | None:
    """Returns the amount that RUN/forecast.json names; None for a run without a budget."""
    try:
        path = run / FORECAST
        if path.stat().st_size > MAX_FORECAST_BYTES:
            return None
        text = json.loads(path.read_text(encoding="utf-8"))["budget"]["text"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return _shorten(text) if isinstance(text, str) else None
