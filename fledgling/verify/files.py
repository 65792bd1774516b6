"""The files of a run by their manifests: which stages it has, their checkpoints, and prepared data."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fledgling.config import STAGES, UserError
from fledgling.record import checkpoint
from fledgling.record.atomic_directory import MANIFEST, find_corruption
from fledgling.record.checkpoint import BASES_DIR, inspect_checkpoint
from fledgling.record.stage_aside import describe_stages_aside, find_stages_aside
from fledgling.record.state_shape import find_state_corruption
from fledgling.verify.added_files import find_added, find_added_within
from fledgling.verify.check import Check

NEWER_THAN_HISTORY = frozenset({"horizon", "row_weights"})  # keys of a checkpoint's state that came after "history"
Step = Callable[[str], None]  # is called with what is checked next


def list_stages(run_dir: Path) -> list[str]:
    """Returns the stages that have a record, in their order."""
    return [name for name in STAGES if (run_dir / name / "metrics.jsonl").is_file()]


def check_stages(run_dir: Path) -> Check:
    """Checks that each stage in the run has a record, and names the recipe's stages that are not there."""
    check, stages_aside = Check("stages", "stages"), find_stages_aside(run_dir)
    recorded, named = list_stages(run_dir), read_recipe_table(run_dir).get("stages")
    for name in STAGES:
        stage_dir = run_dir / name
        if name in recorded:
            check.checked += 1
        elif stage_dir.is_dir() and any(stage_dir.iterdir()) and name not in stages_aside:
            what = "checkpoints" if list_stage_checkpoints(run_dir, name) else "files"
            check.problems.append(f"{name} has {what} and no metrics.jsonl: nothing shows where they come from")
        elif isinstance(named, list) and name in named:
            check.notes.append(f"{name}, a stage of recipe.toml, has no record here")
    check.notes += [
        f"{stage}/{path.name} is a link to {path.resolve()}"
        for stage in recorded
        for path in list_stage_checkpoints(run_dir, stage)
        if path.is_symlink()
    ]
    check.notes += describe_stages_aside(run_dir)
    problems, notes = find_added(run_dir, recorded)
    check.problems += problems
    check.notes += notes
    check.total = check.checked
    return check


def read_recipe_table(run_dir: Path) -> dict[str, Any]:
    """Returns the values of recipe.toml; none where it cannot be read."""
    try:
        return tomllib.loads((run_dir / "recipe.toml").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def list_stage_checkpoints(run_dir: Path, stage: str) -> list[Path]:
    """Returns the checkpoints of a stage, corrupt ones too, oldest first.

    Of "init" those that the run was given, of "bases" those that adapters belong to.
    """
    if stage == BASES_DIR:
        return sorted((run_dir / stage).glob("*/step-*"))
    try:
        return checkpoint.list_checkpoints(run_dir / stage / ("" if stage == "init" else "checkpoints"))
    except UserError:
        return []


def is_usable(path: Path) -> bool:
    """Returns whether a stage's checkpoint has the files of its manifest, and a state that can be relied on.

    Its files are hashed once, and again where one of them has changed since: each start of a run asks several times.
    """
    try:
        facts = [(file.name, file.lstat()) for file in sorted(path.iterdir())]
    except OSError:
        return False
    return _is_usable(path, tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in facts))


@lru_cache(maxsize=1024)
def _is_usable(path: Path, state_of_files: tuple[tuple[str, int, int, int, int], ...]) -> bool:
    report = inspect_checkpoint(path)
    if not report["valid"] or _list_state_corruption(path, report):
        return False
    return {"step", "recipe"} <= checkpoint.read_checkpoint_state(path).keys()


def check_checkpoints(run_dir: Path, show: Step) -> Check:
    """Compares every file of every checkpoint with the size and SHA-256 of its manifest."""
    check = Check("checkpoints", "files")
    for stage in (*list_stages(run_dir), "init", BASES_DIR):
        for path in list_stage_checkpoints(run_dir, stage):
            show(f"{stage}/{path.name}")
            report = inspect_checkpoint(path)
            check.checked += len(report["files"])
            place = path.relative_to(run_dir)
            check.problems += [
                f"{place}/{name} {corruption}" for name, corruption in report["files"].items() if corruption
            ]
            problems, notes = find_added_within(path, {*report["files"], MANIFEST}, place)
            check.problems += problems
            check.notes += notes
            corruptions = _list_state_corruption(path, report)
            if report["valid"] and not corruptions and stage in STAGES:
                state = checkpoint.read_checkpoint_state(path)
                if "history" not in state and not NEWER_THAN_HISTORY.isdisjoint(state):  # an older version has neither
                    corruptions = ["history was removed"]
            check.problems += [f"{place}/state.json: {corruption}" for corruption in corruptions]
    check.total = check.checked
    return check


def _list_state_corruption(path: Path, report: Mapping[str, Any]) -> list[str]:
    """Returns what is wrong with the state of a checkpoint whose files are those of its manifest."""
    if not report["valid"]:
        return []
    try:
        corruption = find_state_corruption(checkpoint.read_checkpoint_state(path))
    except UserError as error:  # no JSON
        corruption = str(error)
    return [corruption] if corruption else []


def check_prepared_data(run_dir: Path, show: Step) -> Check:
    """Compares every file of every token shard with the size and SHA-256 of its manifest."""
    check = Check("prepared data", "files")
    for manifest in sorted((run_dir / "data").rglob(MANIFEST)):
        place = manifest.parent.relative_to(run_dir)
        show(str(place))
        try:
            files = json.loads(manifest.read_bytes())["files"]
            corruptions = {name: find_corruption(manifest.parent / name, entry, True) for name, entry in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            check.problems.append(f"{place}/{MANIFEST} cannot be read")
            continue
        check.checked += len(corruptions)
        check.problems += [f"{place}/{name} {corruption}" for name, corruption in corruptions.items() if corruption]
        folders = {path.name for path in manifest.parent.iterdir() if path.is_dir()}
        problems, notes = find_added_within(manifest.parent, {*corruptions, *folders, MANIFEST}, place)
        check.problems += problems
        check.notes += notes
    check.total = check.checked
    return check
