"""All stages of a recipe in order: a finished stage is skipped, an interrupted one resumes where it was saved."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from fledgling.config import Recipe
from fledgling.runtime.world import World
from fledgling.train.run import run_stage
from fledgling.train.run_directory import lock_stage
from fledgling.train.stage_rows import require_data


def run_stages(recipe: Recipe, quiet: bool = False) -> list[str]:
    """Runs the stages of a recipe that are not done; returns the names of those that were run.

    Raises UserError before the first of them if data of a later one are missing.
    """
    run_dir = Path(recipe.run.out)
    left = [name for name in recipe.stages if not (run_dir / name / "done.json").exists()]
    require_data(recipe, left)
    with ExitStack() as locks:
        lock = None
        if left:
            world = World.start(recipe.run.device)
            with world.main_process_first():  # for all stages: no other start comes between two of them
                lock = locks.enter_context(lock_stage(run_dir, left[0])) if world.is_main else None
        return [name for name in recipe.stages if run_stage(recipe, name, quiet=quiet, lock=lock)]
