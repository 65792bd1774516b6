"""Every file of a run by its hash: checkpoints and prepared data by their manifests, those and the record by seals."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fledgling.config import STAGES, UserError
from fledgling.record import checkpoint
from fledgling.record.atomic_directory import MANIFEST, find_corruption
from fledgling.record.checkpoint import BASES_DIR, inspect_checkpoint
from fledgling.record.outside import OWN_NAMES
from fledgling.record.recorder import JSONL_NAMES
from fledgling.record.seal import (
    DONE,
    FORECAST,
    SEAL,
    SPENT,
    find_changed_lines,
    hash_lines,
    hash_run_files,
    hash_sealed_files,
    read_seal,
)
from fledgling.record.stage_aside import describe_stages_aside, find_stages_aside
from fledgling.record.state_shape import find_state_corruption
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
    check.notes += [
        f"{path.name} is not a file of a run" for path in sorted(run_dir.iterdir()) if path.name not in OWN_NAMES
    ]
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
            unknown = {file.name for file in path.iterdir()} - {*report["files"], MANIFEST}
            check.problems += [f"{place}/{name} is not in {MANIFEST}" for name in sorted(unknown)]
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
        unknown = {file.name for file in manifest.parent.iterdir() if file.is_file()} - {*corruptions, MANIFEST}
        check.problems += [f"{place}/{name} is not in {MANIFEST}" for name in sorted(unknown)]
    check.total = check.checked
    return check


def check_seals(run_dir: Path, show: Step, outdated: Mapping[str, str] = MappingProxyType({})) -> Check:
    """Compares the record's lines, the manifests, the tokenizer and done.json with the seal of each stage.

    outdated: stages that an earlier one was trained after, with that one, whose tokenizer the run may have.
    """
    check = Check("record and manifests", "lines and files")
    gone: dict[str, list[str]] = {}  # file -> the stages whose seals have it
    for stage in list_stages(run_dir):
        show(f"{stage}/{SEAL}")
        stage_dir, seal = run_dir / stage, read_seal(run_dir / stage)
        if seal is None:
            exists = (stage_dir / SEAL).exists()
            text = f"{stage}/{SEAL} " + ("is corrupt" if exists else "is missing")
            (check.problems if exists or _has_data_digests(stage_dir) else check.notes).append(text)
            continue
        for name in JSONL_NAMES:
            sealed = seal["lines"].get(name, [])
            problems, added = find_changed_lines(sealed, hash_lines(stage_dir / f"{name}.jsonl"))
            check.checked += len(sealed)
            check.problems += [f"{stage}/{name}.jsonl: {problem}" for problem in problems]
            what = "1 line was" if added == 1 else f"{added} lines were"
            if added and name == "metrics" and (stage_dir / DONE).exists():
                check.problems.append(f"{stage}/{name}.jsonl: {what} added after the stage's end")
            elif added:
                by = ", as `fledgling eval` does: no seal has their values" if name == "evals" else ""
                check.notes.append(f"{stage}/{name}.jsonl: {what} added after the seal{by}")
        now = hash_sealed_files(stage_dir)
        for path, digest in seal["files"].items():
            check.checked += 1
            if path not in now and "checkpoints" in path:
                check.notes.append(f"{Path(path).parent} was deleted after the seal")
            elif path not in now:
                gone.setdefault(path, []).append(stage)
            elif now[path] != digest and path.startswith("tokenizer/") and stage in outdated:
                note = f"the tokenizer was replaced after {stage}, when {outdated[stage]} was trained again"
                check.notes += [note] if note not in check.notes else []
            elif now[path] != digest:
                what = "was replaced: " if path.endswith(MANIFEST) else "was changed: "
                check.problems.append(f"{path.removesuffix(f'/{MANIFEST}')} {what}not what the seal of {stage} says")
        unsealed = {path for path in now if path.startswith(f"{stage}/checkpoints/")} - set(seal["files"])
        if unsealed and (stage_dir / DONE).exists():
            check.problems += [f"{Path(path).parent} is not in the seal of {stage}" for path in sorted(unsealed)]
    for path, stages in gone.items():
        shared = "" if path.startswith(f"{stages[0]}/") else f", which is in the seal of {', '.join(stages)}"
        (check.notes if path.startswith("data/") else check.problems).append(f"{path} is gone{shared}")
    _check_run_seal(run_dir, check, gone)
    check.total = check.checked
    return check


def _check_run_seal(run_dir: Path, check: Check, named: Collection[str]) -> None:
    """Compares the files of the whole run with RUN/seal.json, which versions that seal predictions write.

    named: files that are gone, as the seals of stages have shown.
    """
    seal, now = read_seal(run_dir), hash_run_files(run_dir)
    if seal is None:
        seals = [read_seal(run_dir / stage) for stage in list_stages(run_dir)]
        expected = (run_dir / SEAL).exists() or any(
            "/plan.json" in path for each in seals if each for path in each["files"]
        )
        text = f"{SEAL} of the run is " + ("corrupt" if (run_dir / SEAL).exists() else "missing")
        (check.problems if expected else check.notes).append(text)
        return
    check.checked += len(seal["files"])
    check.problems += [
        f"{path} was changed: not what the seal of the run says" if (run_dir / path).exists() else f"{path} is gone"
        for path, digest in sorted(seal["files"].items())
        if now.get(path) != digest and path not in named
    ]
    if (run_dir / FORECAST).is_file() and SPENT not in seal["files"]:
        state = "is covered by no seal" if (run_dir / SPENT).exists() else "is missing"
        check.notes.append(f"{SPENT}, the seconds of the run within its budget, {state}: they are not checked")


def list_deleted(run_dir: Path) -> list[str]:
    """Returns what the seals have and the run has no longer, of what may be deleted: prepared data, all checkpoints."""
    stages = list_stages(run_dir)
    sealed = {path for stage in stages if (seal := read_seal(run_dir / stage)) for path in seal["files"]}
    data = sorted({path.split("/")[1] for path in sealed if path.startswith("data/") and not (run_dir / path).exists()})
    had_weights = [stage for stage in stages if any(path.startswith(f"{stage}/checkpoints/") for path in sealed)]
    bare = [f"the checkpoints of {stage}" for stage in had_weights if not list_stage_checkpoints(run_dir, stage)]
    return [f"data/{name}" for name in data] + bare


def _has_data_digests(stage_dir: Path) -> bool:
    """Returns whether the record was written by a version that seals."""
    with open(stage_dir / "metrics.jsonl", "rb") as file:
        return b'"data":' in file.readline()


def compute_root(run_dir: Path) -> str:
    """Returns one SHA-256 over the seals of all stages: the publisher of a run can state it elsewhere."""
    digest = hashlib.sha256()
    for stage in list_stages(run_dir):
        seal = run_dir / stage / SEAL
        digest.update(stage.encode() + b"\0" + (hashlib.sha256(seal.read_bytes()).digest() if seal.is_file() else b""))
    if (run_dir / SEAL).is_file():
        digest.update(hashlib.sha256((run_dir / SEAL).read_bytes()).digest())
    return digest.hexdigest()
