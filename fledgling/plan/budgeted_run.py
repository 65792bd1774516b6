"""A run with a budget as RUN/forecast.json keeps it: budget, recipe, the time of its stages, and the forecast."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fledgling.config import Recipe, UserError, dump_toml
from fledgling.config.load import parse_recipe
from fledgling.plan.amount import Budget
from fledgling.plan.budget import TrainingSpeed
from fledgling.plan.interval import Forecast
from fledgling.plan.stage_seconds import StageSeconds
from fledgling.record.seal import FORECAST


@dataclass(frozen=True)
class BudgetedRun:
    """What RUN/forecast.json says: the budget, the recipe that it became, its stages' time, and the forecast."""

    budget: Budget
    given: str  # the recipe before the budget was applied, as TOML
    recipe: Recipe
    stages: tuple[StageSeconds, ...]
    evaluations: int  # index into `plan.stage_seconds.EVALUATIONS`
    law: str
    speed: TrainingSpeed
    planned: dict[str, Any]  # `plan.comparable_runs.Planned`
    forecasts: tuple[Forecast, ...]
    device: str
    ranks: int

    def to_json(self) -> dict[str, Any]:
        """Returns the values of the file."""
        return {**asdict(replace(self, recipe=None)), "recipe": dump_toml(self.recipe)}  # type: ignore[arg-type]

    def stages_from(self, name: str) -> tuple[StageSeconds, ...]:
        """Returns stage `name` and what follows it."""
        names = [stage.name for stage in self.stages]
        return self.stages[names.index(name) :]


def read_budgeted_run(run_dir: Path) -> BudgetedRun | None:
    """Returns what a run directory says of its budget; None for a run without one.

    Raises UserError for a corrupt file.
    """
    path = run_dir / FORECAST
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        recipe = parse_recipe(values.pop("recipe"))
        return BudgetedRun(
            budget=Budget(**values.pop("budget")),
            recipe=replace(recipe, run=replace(recipe.run, out=str(run_dir))),
            stages=tuple(StageSeconds(**stage) for stage in values.pop("stages")),
            speed=TrainingSpeed(**values.pop("speed")),
            forecasts=tuple(Forecast(**forecast) for forecast in values.pop("forecasts")),
            **values,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} is corrupt ({reason}): delete the run, or choose another directory with --set run.out=DIR"
        ) from None


def dump_without_place(recipe: Recipe) -> str:
    """Returns a recipe as TOML without its directory, which changes nothing."""
    return dump_toml(replace(recipe, run=replace(recipe.run, out="")))
