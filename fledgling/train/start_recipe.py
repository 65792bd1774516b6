"""The recipe of a start: it is read once what a killed start has left in its run is put back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fledgling.config import Recipe, load_recipe
from fledgling.config.load import RECIPE_FILE
from fledgling.record.stage_aside import list_unfinished_starts


def load_start_recipe(name_or_path: str, overrides: Sequence[str]) -> Recipe:
    """Returns what `load_recipe` does; before, puts back what a killed start has left in the run of either.

    Raises UserError for a recipe that is not valid, or if another process writes the run.
    """
    given = Path(name_or_path)
    _settle(given.parent if given.name == RECIPE_FILE else given)
    recipe = load_recipe(name_or_path, overrides)
    _settle(Path(recipe.run.out))
    return recipe


def _settle(run_dir: Path) -> None:
    if list_unfinished_starts(run_dir):
        from fledgling.train.run_directory import settle_starts  # imports torch, which others may do without

        settle_starts(run_dir, has_read_recipe=False)
