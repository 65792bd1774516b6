"""The run directory when a stage starts: its lock, the files of the run, the checkpoint of the stage before."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from fledgling.config import STAGES, Recipe, UserError, dump_toml
from fledgling.config.load import RECIPE_FILE
from fledgling.kernels.quantized_model import require_unquantized
from fledgling.plan.hardware import share_device
from fledgling.record import checkpoint, write_json, write_text
from fledgling.record.run_lock import RunLock, hold_lock
from fledgling.record.run_requests import open_requests, take_actions
from fledgling.record.seal import DONE, seal_run
from fledgling.record.stage_aside import list_unfinished_starts
from fledgling.record.state_shape import require_sound_state
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.system_environment import collect_environment
from fledgling.runtime.world import World, get_restart_count, has_restart_left, is_launched_rank
from fledgling.train.derived_values import write_derived_values
from fledgling.train.loop import TrainingStopped
from fledgling.train.peak import find_spec, name_device
from fledgling.train.predictions import write_predictions
from fledgling.train.replaced_stage import is_being_replaced, settle, settle_run
from fledgling.train.resume_check import require_same_parent, require_unchanged
from fledgling.train.stage_origin import StageOrigin

Log = Callable[[str], None]


def print_line(text: str) -> None:
    """Prints a line on stderr, before there is a recorder."""
    print(text, file=sys.stderr)


def print_nothing(text: str) -> None:
    """Drops a line."""


@contextmanager
def lock_stage(run_dir: Path, name: str) -> Iterator[RunLock]:
    """Locks a run for the stage `name`; also the run that the stage's directory belongs to, if it is a link."""
    owner = (run_dir / name).resolve().parent
    is_elsewhere = owner.is_dir() and owner != run_dir.resolve()
    with hold_lock(run_dir, name, log=print_line) as lock, hold_lock(owner, name) if is_elsewhere else nullcontext():
        remove_dead_links(run_dir)
        open_requests(run_dir)
        if not get_restart_count():  # else this start continues the restart, and what was asked of it
            settle_run(run_dir, print_line)
            if dropped := sorted(take_actions(run_dir)):
                print_line(f"{run_dir}: dropped what was asked of an earlier process: {', '.join(dropped)}")
        yield lock


def remove_dead_links(run_dir: Path) -> None:
    """Removes links of a run that lead nowhere: a member of a sweep that was copied alone has no shared tokens."""
    for name in ("tokenizer", "data"):
        if (run_dir / name).is_symlink() and not (run_dir / name).exists():
            target = os.readlink(run_dir / name)
            print_line(f"{run_dir / name} is a link to {target}, which does not exist here: it is created again")
            (run_dir / name).unlink()


def require_lock(lock: RunLock | None) -> bool:
    """Returns False; raises UserError if another process has taken over the run's lock."""
    if lock:
        lock.require_held()
    return False


def write_run_files(origin: StageOrigin, setup: DeviceSetup, world: World, step: int) -> None:
    """Writes the recipe, the environment, predictions for the hardware that the run really has, and the seal of these.

    step: the finished steps of the stage.
    """
    recipe, run_dir = origin.recipe, origin.run_dir
    write_text(run_dir / RECIPE_FILE, dump_toml(recipe))
    write_derived_values(run_dir, origin.given, recipe)
    write_json(run_dir / "environment.json", collect_environment())
    real = replace(
        recipe.run,
        dtype=setup.dtype_name if setup.engine_dtype == setup.dtype else recipe.run.dtype,
        compile="on" if setup.compiled else "off",
        ranks=world.size,
        hardware=name_device(setup, world.device) or recipe.run.hardware,
    )
    device = share_device(find_spec(setup, world.device), world.size)
    write_predictions(replace(recipe, run=real), origin.name, run_dir, step, setup.peak_flops, device)
    seal_run(run_dir)


@contextmanager
def restore_unless_begun(run_dir: Path, name: str, lock: RunLock | None) -> Iterator[None]:
    """Puts run and stage back where the stage ends too soon.

    A start that fails before the end of its first step, for a package that is missing, data that do not fit or a
    signal, leaves the recipe that has run. A restart that ends before its first checkpoint leaves the stage that it
    would have replaced too; if the launcher starts it again, it is continued there.

    lock: of the run, which a rank that is not the main one does not have.
    """
    try:
        yield
    except BaseException as error:
        is_continued = has_restart_left() and not isinstance(error, UserError | TrainingStopped)
        if lock and lock.is_held and not is_continued:
            what = f"{name} ended before its first checkpoint: {run_dir / name} is what it was before"
            if is_being_replaced(run_dir / name):
                print_line(what)
            settle(run_dir / name)
        raise


def settle_starts(run_dir: Path, has_read_recipe: bool = True) -> None:
    """Puts back what a start that was killed has left in a run, before anything is asked of it.

    Ranks that a launcher has started leave it to the process that starts them, and to `lock_stage`.

    has_read_recipe: whether the recipe of this start is read already. Raises UserError if it was that of a restart, or
    if another process writes the run.
    """
    if list_unfinished_starts(run_dir) and not is_launched_rank() and not get_restart_count():
        with hold_lock(run_dir, "train", log=print_line):
            settle_run(run_dir, print_line, has_read_recipe)


def parent_checkpoint(
    stages: Sequence[str], name: str, run_dir: Path, check_hashes: bool = True, log: Log = print_nothing
) -> Path | None:
    """Returns the last checkpoint of the stage before `name`; None for the first. Raises UserError if it is missing.

    Args:
        stages: of the run.
        name: of the stage that starts from it.
        run_dir: of the run.
        check_hashes: compares its files with their hashes, not their sizes alone.
        log: receives a line for each newer checkpoint of that stage that is corrupt.
    """
    before = [stage for stage in stages if STAGES.index(stage) < STAGES.index(name)]
    if name == "pretrain" or not before:
        return None
    path = checkpoint.find_latest_checkpoint(run_dir / before[-1] / "checkpoints", check_hashes, log)
    if path is None:
        remedy = "train it first"
        if is_being_replaced(run_dir / before[-1]):
            remedy = f"its restart was killed, and `fledgling train {before[-1]} {run_dir}` puts back what it was"
        raise UserError(f"{name} starts from {before[-1]}, and {run_dir / before[-1]} has no checkpoint: {remedy}")
    require_unquantized(require_sound_state(path), path, "trained on")
    return path


def explain_unusable_end(stage_dir: Path) -> str:
    """Returns why none of a finished stage's checkpoints can be used; "" where one can.

    Nothing is wrong without any checkpoint: they were deleted to make room.
    """
    skipped: list[str] = []
    if checkpoint.find_latest_checkpoint(stage_dir / "checkpoints", warn=skipped.append) or not skipped:
        return ""
    return skipped[0].removeprefix("skipped: ") + (f" (and {len(skipped) - 1} more)" if skipped[1:] else "")


def require_usable_end(stage_dir: Path) -> None:
    """Raises UserError for a finished stage whose checkpoints are all corrupt.

    Its record and samples are whole, so it is not begun again before the user asks for it.
    """
    if reason := explain_unusable_end(stage_dir):
        raise UserError(
            f"{stage_dir.name} is done, and none of its checkpoints can be used: {reason}; "
            f"`fledgling train {stage_dir.name} {stage_dir.parent} --resume never` trains it again"
        )


def is_done(recipe: Recipe, name: str, run_dir: Path, log: Log) -> bool:
    """Returns whether a stage has finished.

    Raises UserError if none of its checkpoints can be used, or if it was made from other weights or with settings that
    are rejected now.
    """
    if not (run_dir / name / DONE).exists():
        return False
    require_usable_end(run_dir / name)
    require_done(recipe, name, run_dir, log)
    return True


def require_done(recipe: Recipe, name: str, run_dir: Path, log: Log) -> None:
    """Raises UserError if a finished stage was made from other weights, or with settings that are rejected now."""
    newest = checkpoint.find_latest_checkpoint(run_dir / name / "checkpoints", check_hashes=False, warn=log)
    parent = None
    with suppress(UserError):  # checkpoints of the stage before may have been deleted to make room
        parent = parent_checkpoint(recipe.stages, name, run_dir, check_hashes=False)
    require_same_parent(name, run_dir / name, newest, parent)
    require_unchanged(recipe, name, run_dir, newest, log)
