"""All stages of a recipe in order: a finished stage is skipped, a broken one goes on where it was saved."""

from __future__ import annotations

from fledgling.config import Recipe
from fledgling.train.run import run_stage


def speedrun(recipe: Recipe, quiet: bool = False) -> list[str]:
    """Run what is left of the recipe's stages; returns the names of those that had work to do."""
    return [name for name in recipe.stages if run_stage(recipe, name, quiet=quiet)]
