"""Keeps the checkpoints that adapters of later stages belong to, when their own stage is restarted or trained further.

Such a checkpoint moves to RUN/bases, where `export.checkpoint_weights.find_base` finds it, and is deleted when the last
adapter that needs it is. Start with `remove_checkpoint` and `describe_dependents`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fledgling.config import STAGES, UserError
from fledgling.export.checkpoint_weights import find_base, kept_base, read_adapter_state
from fledgling.record import checkpoint
from fledgling.record.checkpoint import BASES_DIR
from fledgling.record.durable import fsync_path, make_directory, move_directory, remove_directory


def remove_checkpoint(path: Path) -> None:
    """Deletes a checkpoint RUN/STAGE/checkpoints/step-N, or moves it to RUN/bases where an adapter needs it."""
    run_dir = path.parents[2]
    if path.resolve() not in list_needed_bases(run_dir, without=path.parents[1]):
        remove_directory(path)
        return
    if kept_base(path).exists():  # the same weights
        remove_directory(path)
    else:
        move_directory(path, kept_base(path))


def keep_bases_of(stage_dir: Path) -> None:
    """Moves to RUN/bases what adapters of other stages need of a stage that is deleted; of a linked stage, a link."""
    run_dir = stage_dir.parent
    needed = list_needed_bases(run_dir, without=stage_dir)
    for path in _list_checkpoints(stage_dir):
        if path.resolve() not in needed:
            continue
        if not stage_dir.is_symlink():
            remove_checkpoint(path)
        elif not (place := kept_base(path)).exists():
            make_directory(place.parent)
            place.symlink_to(path.resolve())
            fsync_path(place.parent)


def drop_unneeded_bases(run_dir: Path) -> None:
    """Deletes the kept checkpoints that no adapter needs any more."""
    needed = list_needed_bases(run_dir) if (run_dir / BASES_DIR).is_dir() else {}
    for path in _list_kept(run_dir):
        if path.resolve() in needed:
            continue
        if path.is_symlink():
            path.unlink()
        else:
            remove_directory(path)


def describe_dependents(run_dir: Path, name: str) -> list[str]:
    """Returns a line on the later stages that were made from the weights that `name` has now; none without them.

    It is for a stage that is restarted or resumed, before anything is deleted.
    """
    stage_dir = run_dir / name
    later = [stage for stage in STAGES[STAGES.index(name) + 1 :] if _list_checkpoints(run_dir / stage)]
    if not later or not _list_checkpoints(stage_dir):
        return []
    needed = list_needed_bases(run_dir, without=stage_dir)
    kept = [f"{path.name} of {name}" for path in _list_checkpoints(stage_dir) if path.resolve() in needed]
    owners = {stage for path in _list_checkpoints(stage_dir) for stage in needed.get(path.resolve(), ())}
    adapters = ", ".join(stage for stage in STAGES if stage in owners)
    where = f"kept in {run_dir / BASES_DIR} where it is replaced"
    moved = f"; the adapters of {adapters} belong to {', '.join(kept)}, which is {where}" if kept else ""
    return [
        f"{name} changes, and {', '.join(later)} of this run keep what they learned from its weights, until they are "
        f"trained again: `fledgling train {later[0]} {run_dir} --resume never`{moved}"
    ]


def list_needed_bases(run_dir: Path, without: Path | None = None) -> dict[Path, tuple[str, ...]]:
    """Returns the checkpoints that adapters of a run belong to, resolved, each with the stages of these adapters.

    without: a stage's directory, whose own adapters do not count.
    """
    needed: dict[Path, tuple[str, ...]] = {}
    stages = [(stage, path) for stage in STAGES for path in _list_checkpoints(run_dir / stage)]
    kept = [(path.parent.name, path) for path in _list_kept(run_dir)]
    for stage, path in (*stages, *kept):
        if without is not None and path.parents[1] == without:
            continue
        try:
            state = checkpoint.read_checkpoint_state(path)
            described = read_adapter_state(state, path)
        except UserError:
            continue  # a corrupt checkpoint says nothing
        if described is not None and (base := find_base(state, described[1])) is not None:
            needed[base.resolve()] = tuple(dict.fromkeys((*needed.get(base.resolve(), ()), stage)))
    return needed


def _list_checkpoints(stage_dir: Path) -> list[Path]:
    return sorted(path for path in (stage_dir / "checkpoints").glob("step-*") if path.is_dir())


def _list_kept(run_dir: Path) -> Iterator[Path]:
    yield from sorted((run_dir / BASES_DIR).glob("*/step-*"))
