"""Whether a start continues the run with a budget that its directory has, and with which settings.

A recipe can be mended in its directory: before the first step all of it, later tables of stages that have not begun.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledgling.config import STAGES, Recipe, UserError, load_recipe
from fledgling.config.differences import describe_setting_changes, find_setting_changes
from fledgling.config.load import RECIPE_FILE, parse_recipe
from fledgling.plan.amount import Budget
from fledgling.plan.budgeted_run import BudgetedRun, dump_without_place

SIZES = ("depth", "width", "heads", "kv_heads")  # of a model, which a budget chooses where they are not given
SIZE_NAMES = tuple(f"model.{key}" for key in SIZES)
DECIDED_BY_BUDGET = ("steps", "num_epochs", "batch_tokens", "examples_per_step", "batch_size", "warmup_steps")


def continue_run(
    known: BudgetedRun | None,
    recipe: Recipe,
    budget: Budget | None,
    run_dir: Path,
    log: Callable[[str], None],
    is_pinned: bool = False,
) -> tuple[BudgetedRun | None, dict[str, Any]]:
    """Returns the run of a directory, and the settings of it that are mended now; None where it is planned again.

    A run that has made no step is planned again. Later, the tables of stages that have not begun may be mended, except
    for their length and batch, which the budget has decided.

    Args:
        known: what the directory says; None: it has begun no run with a budget.
        recipe: that is asked for.
        budget: that is asked for; None: that of the run.
        run_dir: of the run.
        log: receives a line where something is planned again or mended.
        is_pinned: whether the recipe's size is the user's, which another recipe of the same text leaves open.

    Raises UserError where the directory's run is not the one that is asked for.
    """
    elsewhere = "choose another directory with --set run.out=DIR"
    begun = [stage for stage in STAGES if (run_dir / stage / "metrics.jsonl").exists()]
    if known is None:
        if begun:
            text = budget.text if budget else "a budget"
            raise UserError(f"{run_dir} has begun without a budget: leave {text} out to resume it, or {elsewhere}")
        return None, {}
    names = (known.given, dump_without_place(known.recipe), dump_without_place(read_adjusted_recipe(known, run_dir)))
    is_same_budget = budget is None or math.isclose(budget.seconds, known.budget.seconds, rel_tol=1e-6)
    given = dump_without_place(recipe)
    is_pinned = is_pinned and recipe.run.init_from is None  # given weights decide the size
    sizes = _find_other_sizes(known.recipe, recipe) if is_pinned else {}
    if given in names and is_same_budget and not sizes:
        return known, {}
    if not begun and budget is not None:
        log(f"{run_dir} has made no step of what was planned within {known.budget.text}: it is planned again")
        return None, {}
    if given not in names or sizes:
        differing = find_setting_changes(parse_recipe(known.given), recipe, ("run.out",))
        if is_pinned:  # what the user gives now may be what the budget has chosen
            differing = {name: change for name, change in differing.items() if name not in SIZE_NAMES} | sizes
        if is_same_budget and not differing:
            return known, {}
    else:
        differing = {}
    if differing:
        fixed = [name for name in differing if not _may_be_mended(name, begun)]
        if fixed or not is_same_budget:
            what = describe_setting_changes({name: differing[name] for name in fixed or differing}, "there", "now")
            begun_within = f"{run_dir} has begun within {known.budget.text} with other settings"
            raise UserError(f"{begun_within}: {what}; give those, or {elsewhere}")
        log(f"{run_dir}: taken for stages that have not begun: {describe_setting_changes(differing, 'before', 'now')}")
        changed = {name: now for name, (_, now) in differing.items()}
        return replace(known, given=given, recipe=change_settings(known.recipe, changed)), changed
    assert budget is not None
    raise UserError(
        f"{run_dir} has begun within {known.budget.text}, and {budget.text} is given: leave it out to resume, or "
        f"{elsewhere}"
    )


def _find_other_sizes(made: Recipe, wanted: Recipe) -> dict[str, tuple[Any, Any]]:
    """Returns the sizes of a model that a user gives now and that the run has not, by name: (there, now)."""
    pairs = {key: (getattr(made.resolve_model(), key), getattr(wanted.resolve_model(), key)) for key in SIZES}
    return {f"model.{key}": pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _may_be_mended(name: str, begun: Sequence[str]) -> bool:
    table, _, key = name.partition(".")
    return table in STAGES and table not in begun and key not in DECIDED_BY_BUDGET


def change_settings(recipe: Recipe, changed: Mapping[str, Any]) -> Recipe:
    """Returns a recipe with other values of "table.key"."""
    for name, value in changed.items():
        table, _, key = name.partition(".")
        tables: dict[str, Any] = {table: replace(getattr(recipe, table), **{key: value})}
        recipe = replace(recipe, **tables)
    return recipe


def read_adjusted_recipe(run: BudgetedRun, run_dir: Path) -> Recipe:
    """Returns the recipe of a run with the steps that its stages have been given since."""
    has_begun = any((run_dir / stage / "metrics.jsonl").exists() for stage in STAGES)
    return load_recipe(run_dir) if has_begun and (run_dir / RECIPE_FILE).is_file() else run.recipe
