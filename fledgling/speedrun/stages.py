"""All stages of a recipe in order: a finished stage is skipped, an interrupted one resumes where it was saved.

Before the first step of any, all stages that are left are checked (`fledgling.train.check_recipe`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from fledgling.config import Recipe
from fledgling.record.run_lock import RunLock
from fledgling.runtime.device import choose_setup
from fledgling.runtime.world import World
from fledgling.train.check_recipe import check_recipe, require_sound
from fledgling.train.resume_check import read_prepared_data
from fledgling.train.run import run_stage
from fledgling.train.run_directory import has_usable_end, lock_stage, print_nothing
from fledgling.train.same_ranks import require_same_device
from fledgling.train.stage_rows import require_data

RunStage = Callable[[str, RunLock | None], bool]  # runs a stage under the lock of its run; False if it was done


def run_stages(recipe: Recipe, quiet: bool = False, run: RunStage | None = None) -> list[str]:
    """Runs the stages of a recipe that are not done; returns the names of those that were run.

    run: runs a stage; None: `run_stage` with the recipe.

    Raises UserError before the first of them for whatever `check_recipe` finds wrong with any.
    """
    run_dir = Path(recipe.run.out)
    left = list_stages_left(recipe)
    for stage in left:
        require_data(recipe, [stage], read_prepared_data(Path(recipe.run.out), stage))
    with ExitStack() as locks:
        lock = None
        if left:
            world = World.start(recipe.run.device)
            setup = choose_setup(recipe.run, world)
            require_same_device(setup, world)
            with world.main_process_first():  # for all stages: no other start comes between two of them
                if world.is_main:
                    require_sound(check_recipe(recipe, left, setup, world))
                lock = locks.enter_context(lock_stage(run_dir, left[0])) if world.is_main else None
        run = run or (lambda name, lock: run_stage(recipe, name, quiet=quiet, lock=lock))
        return [
            name for name in recipe.stages if (name in left or _is_usable(recipe.run.out, name)) and run(name, lock)
        ]


def list_stages_left(recipe: Recipe) -> list[str]:
    """Returns the stages of a recipe that are not done, and the last that is, if its checkpoints are all corrupt.

    Of an earlier stage no weights are needed any more.
    """
    done = [name for name in recipe.stages if (Path(recipe.run.out) / name / "done.json").exists()]
    return [
        name
        for name in recipe.stages
        if name not in done or (name == done[-1] and not _is_usable(recipe.run.out, name))
    ]


def _is_usable(run_dir: str, name: str) -> bool:
    """Returns whether a stage that is done has a usable checkpoint, or none at all."""
    return has_usable_end(Path(run_dir) / name, print_nothing)
