"""What a model card says of how the weights were made: teacher, adapter, given weights, and the budget of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledgling.config import STAGES, Recipe, UserError
from fledgling.config.load import parse_recipe
from fledgling.record import checkpoint
from fledgling.record.budget_end import OUTSIDE, has_steps_after_end
from fledgling.record.parent import find_parent, read_newest_state
from fledgling.record.seal import FORECAST

MAX_FORECAST_BYTES = 2**20
MAX_NAME = 80
TEACHER = "distill.teacher"  # of a state's "data": the digest of its weights
DIGEST_LENGTH = 12


def describe_origin(state: Mapping[str, Any], run: Path | None) -> list[tuple[str, str]]:
    """Returns rows of a card on the stages that led to `state`, each by the recipe of its own checkpoint."""
    stages, unknown = ({str(state.get("stage")): state}, []) if run is None else trace_stages(state, run)
    recipes = {name: recipe for name, values in stages.items() if (recipe := _parse_state_recipe(values)) is not None}
    rows: dict[str, list[str]] = {}
    for name in (stage for stage in STAGES if stage in recipes):
        recipe = recipes[name]
        if recipe.has_teacher(name):
            teacher = shorten_place(recipe.distill.teacher) + _digest(stages[name])
            rows.setdefault(f"learned from the teacher {teacher}", []).append(name)
        if name == "dpo" and recipe.dpo.objective == "reward":
            rows.setdefault("trained as a reward model, whose head is not in these files", []).append(name)
        if recipe.adapter.trains_in(name):
            adapter = f"{recipe.adapter.method} of rank {recipe.adapter.rank}"
            on = "" if recipe.adapter.quantization == "none" else f" on {recipe.adapter.quantization} weights"
            rows.setdefault(f"trained an adapter, merged here: {adapter}{on}", []).append(name)
    for name in (stage for stage in STAGES if stage in stages):
        parent = stages[name].get("parent")
        if isinstance(parent, dict) and parent.get("stage") in STAGES and (end := _describe_end(parent)):
            step = parent.get("step")
            what = f"step {step:,}" if type(step) is int else "a step"
            rows.setdefault(f"began from {what} of {parent['stage']}, which had {end}", []).append(name)
    described = [(", ".join(names), what) for what, names in rows.items()]
    if unknown:
        described.insert(0, (", ".join(unknown), "not known: the run no longer has the weights that came of it"))
    given = next((recipe.run.init_from for recipe in recipes.values() if recipe.run.init_from), None)
    if given:
        described.insert(0, ("began from", shorten_place(given)))
    if run is not None and (budget := _read_budget(run)):
        described.append(("budget of the run", budget))
    return described


def _describe_end(parent: Mapping[str, Any]) -> str:
    """Returns how a stage that a later one began from ended, where that began from other weights than its last."""
    if parent.get("unfinished") is True:
        return "not finished"
    last = parent.get("last_step")
    return f"made {last:,}" if type(last) is int else ""


def trace_stages(state: Mapping[str, Any], run: Path) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """Returns the states of the checkpoints that led to `state` by stage, its own too, and the stages that are unknown.

    Each checkpoint names the weights that its stage began from. Where the run no longer has them, since that stage was
    trained again or they were deleted, it and the stages before it are unknown: what is there now led to other weights.
    """
    stage = str(state.get("stage"))
    states = {stage: state}
    while stage in STAGES:
        parent = find_parent(run, state)
        if parent is None and "parent" not in state:  # of an earlier version
            return {**_read_states(run, state), **states}, []
        if parent is None or parent.stage not in STAGES[: STAGES.index(stage)]:
            break
        found = _read_state(parent.path)
        if found is None:
            recipe, known = _parse_state_recipe(state), STAGES[: STAGES.index(parent.stage) + 1]
            return states, [name for name in known if name == parent.stage or (recipe and name in recipe.stages)]
        stage, state = parent.stage, found
        states[stage] = state
    return states, []


def _read_state(path: Path | None) -> dict[str, Any] | None:
    """Returns the state of a checkpoint; None where it is gone or corrupt."""
    try:
        return checkpoint.read_checkpoint_state(path) if path else None
    except UserError:
        return None


def _read_states(run: Path, state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the states of the newest checkpoints of the stages before that of `state` in its recipe."""
    last, recipe = str(state.get("stage")), _parse_state_recipe(state)
    names = [name for name in STAGES[: STAGES.index(last)] if recipe is None or name in recipe.stages]
    return {name: found for name in names if (found := read_newest_state(run, name))}


def _parse_state_recipe(state: Mapping[str, Any]) -> Recipe | None:
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


def shorten_place(place: str | None) -> str:
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
    since = f"; {OUTSIDE}" if has_steps_after_end(run) else ""
    return shorten_place(text) + since if isinstance(text, str) else None
