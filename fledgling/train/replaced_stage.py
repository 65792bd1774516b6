"""What a start of a stage may replace is kept until it is certain: as RUN/.STAGE.replaced, complete or not there.

    .STAGE.replaced/run          recipe.toml, the tokenizer and the other files of the run, as they were
    .STAGE.replaced/stage        of a restart: the stage, or the link that it was
    .STAGE.replaced/bases.json   of a restart: the names of its checkpoints that were in RUN/bases

Of a restart the directory appears with `run` and `bases.json`; then the stage moves into it. It is deleted once the new
stage has a checkpoint with a finished step. Of a stage that begins or is resumed it has `run` alone, the stage's plans
among them, and is deleted when the first step has ended. Where the start ends before that, everything is put back;
after a kill or a power cut the next start of the run does it (`settle`). Start with `set_stage_aside`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from fledgling.config import STAGES, UserError
from fledgling.config.load import RECIPE_FILE
from fledgling.record import checkpoint, make_write_error, write_json
from fledgling.record.atomic_directory import atomic_directory
from fledgling.record.checkpoint import BASES_DIR
from fledgling.record.durable import fsync_path, move_directory, remove_directory, write_file
from fledgling.record.seal import DONE, RUN_FILES, SEAL
from fledgling.record.stage_aside import STAGE_ASIDE, name_replaced
from fledgling.train.kept_bases import drop_unneeded_bases, keep_bases_of

RUN, BASES = "run", "bases.json"


def describe_restart(stage_dir: Path, given: str) -> list[str]:
    """Returns a line that names the stage that a restart replaces, where the command does not name its run.

    given: the name, file or directory of the recipe: a file somewhere else names the run by its `run.out` alone.
    """
    steps = [int(path.name[5:]) for path in (stage_dir / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
    run_dir, is_done = stage_dir.parent.resolve(), (stage_dir / DONE).is_file()
    if Path(given).resolve() in (run_dir, run_dir / RECIPE_FILE) or not (steps or is_done):
        return []
    state = ("finished" if is_done else "unfinished") + (f" at step {max(steps)}" if steps else "")
    return [
        f"{stage_dir} ({state}) is replaced, as run.out of {given} names it: it is deleted with the new stage's first "
        "checkpoint"
    ]


def set_stage_aside(stage_dir: Path) -> None:
    """Moves a stage that is restarted to its place aside, with the files of the run; of a link only the link.

    Checkpoints that adapters of other stages belong to are kept in RUN/bases. Where an earlier start of the same
    restart has moved it already, and the launcher starts it again, what that start has left of the new stage is
    deleted. Raises UserError if the run cannot be written.
    """
    place = name_replaced(stage_dir)
    try:
        if os.path.lexists(place / STAGE_ASIDE):
            _remove(stage_dir)
        if not os.path.lexists(stage_dir):
            return
        if stage_dir.is_symlink():
            line = f"{stage_dir} is a link to {stage_dir.resolve()}: the link is removed, the directory is kept"
            print(line, file=sys.stderr)
        with atomic_directory(place) as temporary:
            _copy_files(stage_dir.parent, temporary)
            write_json(temporary / BASES, _list_kept_names(stage_dir))
        keep_bases_of(stage_dir)
        move_directory(stage_dir, place / STAGE_ASIDE)
    except OSError as error:
        raise make_write_error(stage_dir, error) from None


def keep_run_files(stage_dir: Path) -> None:
    """Copies the files that a start of a stage may write to its place aside, if it has none: `set_stage_aside` has.

    Those of a new run are not kept. Raises UserError if the run cannot be written.
    """
    place, run_dir = name_replaced(stage_dir), stage_dir.parent
    if place.is_dir() or not (run_dir / RECIPE_FILE).is_file():
        return
    try:
        with atomic_directory(place) as temporary:
            _copy_files(run_dir, temporary, stage_dir.name)
    except OSError as error:
        raise make_write_error(place, error) from None


def forget_run_files(stage_dir: Path) -> None:
    """Deletes what `keep_run_files` has copied, once the first step has ended; of a restart nothing."""
    if not os.path.lexists(name_replaced(stage_dir) / STAGE_ASIDE):
        remove_directory(name_replaced(stage_dir))


def is_being_replaced(stage_dir: Path) -> bool:
    """Returns whether a stage is kept aside, and the new one has no checkpoint with a finished step yet."""
    return os.path.lexists(name_replaced(stage_dir) / STAGE_ASIDE) and not has_new_checkpoint(stage_dir)


def has_new_checkpoint(stage_dir: Path) -> bool:
    """Returns whether a stage has a complete checkpoint with a finished step: the one of step 0 has learned nothing."""
    return bool(
        checkpoint.find_latest_checkpoint(
            stage_dir / "checkpoints", False, lambda text: None, lambda state: int(state.get("step") or 0) > 0
        )
    )


def remove_replaced_stage(stage_dir: Path) -> None:
    """Deletes a stage that is kept aside, once the new one has a checkpoint."""
    remove_directory(name_replaced(stage_dir))
    drop_unneeded_bases(stage_dir.parent)


def put_stage_back(stage_dir: Path) -> bool:
    """Puts a stage that is kept aside, and the files of the run, in their places; returns whether recipe.toml changed.

    Each of its parts may have been done before a kill. Does nothing without one.
    """
    place, run_dir = name_replaced(stage_dir), stage_dir.parent
    if not place.is_dir():
        return False
    if os.path.lexists(place / STAGE_ASIDE):
        _remove(stage_dir)
        move_directory(place / STAGE_ASIDE, stage_dir)
    is_restart = (place / BASES).is_file()
    kept_before = _read_names(place / BASES) if is_restart else []
    for path in sorted((run_dir / BASES_DIR / stage_dir.name).glob("step-*")) if is_restart else ():
        target = stage_dir / "checkpoints" / path.name[: len("step-00000000")]  # a digest follows it in RUN/bases
        if path.name not in kept_before and not path.is_symlink() and not target.exists():
            move_directory(path, target)
    resumed = "" if is_restart else stage_dir.name
    files, now = _read_files(place / RUN, resumed), _read_files(run_dir, resumed)
    for name, content in files.items():
        if now.get(name) != content:
            write_file(run_dir / name, content)
    for name in now.keys() - files.keys():
        (run_dir / name).unlink()
        fsync_path((run_dir / name).parent)
    remove_directory(place)
    return files.get(RECIPE_FILE) != now.get(RECIPE_FILE)


def settle(stage_dir: Path) -> bool | None:
    """Deletes what the start of a stage has replaced if it has a checkpoint, and puts it back if not.

    Returns whether recipe.toml changed; None if nothing was put back.
    """
    place = name_replaced(stage_dir)
    shutil.rmtree(place.with_name(f".tmp-removed-{place.name}"), ignore_errors=True)  # of a deletion that was killed
    if not place.is_dir():
        return None
    if os.path.lexists(place / STAGE_ASIDE) and has_new_checkpoint(stage_dir):
        remove_replaced_stage(stage_dir)
        return None
    had_stage = os.path.lexists(place / STAGE_ASIDE)
    changed = put_stage_back(stage_dir)
    return changed if had_stage or changed else None


def settle_run(run_dir: Path, log: Callable[[str], None], has_read_recipe: bool = True) -> None:
    """Settles the starts of all stages that a kill or a power cut has ended.

    has_read_recipe: whether this start has read recipe.toml already. Raises UserError if it was that of a restart.
    """
    lines = []
    for name in STAGES:
        is_restart = os.path.lexists(name_replaced(run_dir / name) / STAGE_ASIDE)
        changed = settle(run_dir / name)
        if changed is None:
            continue
        line = f"{run_dir / name}: its last start ended before its first step, so {RECIPE_FILE} is as it was before"
        if is_restart:
            line = f"{run_dir / name}: its restart ended before its first checkpoint, so the stage is as it was before"
        if changed and is_restart and has_read_recipe:
            lines.append(f"{line}, and so is {run_dir / RECIPE_FILE}: give the command again")
        else:
            log(line)
    if lines:
        raise UserError("\n".join(lines))


def _remove(stage_dir: Path) -> None:
    """Deletes what a restart has made of the new stage."""
    if stage_dir.is_symlink():
        stage_dir.unlink()
    remove_directory(stage_dir)


def _copy_files(run_dir: Path, place: Path, stage: str = "") -> None:
    """Copies the files of the run that a start may write; those of `stage` too, which begins or is resumed."""
    for name, content in _read_files(run_dir, stage).items():
        write_file(place / RUN / name, content)


def _read_files(run_dir: Path, stage: str = "") -> dict[str, bytes]:
    """Returns the files of the run that a start may write, by their path in the run; those of `stage` too."""
    names = [*RUN_FILES, SEAL, "tokenizer/tokenizer.json", "tokenizer/training.json"]
    if stage:
        names += [f"{stage}/{SEAL}", *(f"{stage}/{path.name}" for path in sorted((run_dir / stage).glob("plan*.json")))]
    return {name: path.read_bytes() for name in names if (path := run_dir / name).is_file()}


def _list_kept_names(stage_dir: Path) -> list[str]:
    return sorted(path.name for path in (stage_dir.parent / BASES_DIR / stage_dir.name).glob("step-*"))


def _read_names(path: Path) -> list[str]:
    names = json.loads(path.read_bytes())
    return names if isinstance(names, list) else []
