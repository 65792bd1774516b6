"""All stages of a recipe in order: a finished stage is skipped, an interrupted one resumes where it was saved.

Before the first step of any, all stages that are left are checked (`fledgling.train.check_recipe`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from fledgling.config import Recipe
from fledgling.record.run_lock import RunLock
from fledgling.runtime.device import choose_setup
from fledgling.runtime.device_memory import release_memory
from fledgling.runtime.world import World
from fledgling.train.check_recipe import check_recipe, require_sound
from fledgling.train.hooks import StageHooks
from fledgling.train.resume_check import read_prepared_data
from fledgling.train.run import run_stage
from fledgling.train.run_directory import explain_unusable_end, lock_stage, require_usable_end, settle_starts
from fledgling.train.same_ranks import require_same_device, require_same_recipe
from fledgling.train.stage_rows import require_data

RunStage = Callable[[str, RunLock | None], bool]  # runs a stage under the lock of its run; False if it was done


def run_stages(recipe: Recipe, quiet: bool = False, run: RunStage | None = None, is_checked: bool = False) -> list[str]:
    """Runs the stages of a recipe that are not done; returns the names of those that were run.

    Args:
        run: runs a stage; None: `run_stage` with the recipe.
        is_checked: whether the caller has checked the stages that are left.

    Raises UserError before the first of them for whatever `check_recipe` finds wrong with any; TrainingStopped where a
    stop is requested, also in the last step of a stage, or while its last evaluations run, if another stage follows.
    """
    run_dir = Path(recipe.run.out)
    settle_starts(run_dir)
    left = list_stages_left(recipe)
    for stage in left:
        require_data(recipe, [stage], read_prepared_data(Path(recipe.run.out), stage))
    with ExitStack() as locks:
        lock = None
        if left:
            world = World.start(recipe.run.device)
            require_same_recipe(recipe, world, ", ".join(left))
            setup = choose_setup(recipe.run, world)
            require_same_device(setup, world)
            with world.main_process_first():  # for all stages: no other start comes between two of them
                if world.is_main and not is_checked:
                    require_sound(check_recipe(recipe, left, setup, world))
                lock = locks.enter_context(lock_stage(run_dir, left[0])) if world.is_main else None
        last = recipe.stages[-1]
        lost = [name for name in recipe.stages if name not in left and explain_unusable_end(run_dir / name)]
        made: list[str] = []

        def run_next(name: str, lock: RunLock | None) -> bool:
            hooks = StageHooks(first_threads=torch.get_num_threads() if made else 0, is_followed=name != last)
            return run_stage(recipe, name, "auto", quiet, hooks, lock)

        for name in recipe.stages:
            if name not in lost and (run or run_next)(name, lock):
                made.append(name)
                release_memory(World.start(recipe.run.device).device)
        return made


def list_stages_left(recipe: Recipe) -> list[str]:
    """Returns the stages of a recipe that are not done.

    Raises UserError if the checkpoints of the last one that is done are all corrupt; of an earlier one no weights are
    needed any more.
    """
    run_dir = Path(recipe.run.out)
    done = [name for name in recipe.stages if (run_dir / name / "done.json").exists()]
    if done:
        require_usable_end(run_dir / done[-1])
    return [name for name in recipe.stages if name not in done]
