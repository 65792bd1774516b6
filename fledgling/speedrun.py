"""All stages of a recipe in order: a finished stage is skipped, a broken one goes on where it was saved."""

from __future__ import annotations

from pathlib import Path

from fledgling.config import Recipe
from fledgling.train.run import run_stage
from fledgling.train.stage_rows import require_data


def speedrun(recipe: Recipe, quiet: bool = False) -> list[str]:
    """Run what is left of the recipe's stages; returns the names of those that had work to do.

    Raises UserError before the first of them when a later one lacks its data.
    """
    require_data(recipe, [name for name in recipe.stages if not (Path(recipe.run.out) / name / "done.json").exists()])
    return [name for name in recipe.stages if run_stage(recipe, name, quiet=quiet)]
