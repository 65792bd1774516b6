"""Which checkpoint a stage began from: its state names that by stage, step and the SHA-256 of its weights.

A stage that is restarted or trained further leaves the later stages as they are. They were made from weights that the
run may have no longer, and what the stage before them is now says nothing of these. Start with `find_parent`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledgling.config import STAGES, UserError
from fledgling.record import checkpoint
from fledgling.record.atomic_directory import MANIFEST
from fledgling.record.seal import DONE
from fledgling.record.stage_aside import STAGE_ASIDE, name_replaced
from fledgling.record.stage_end import read_last_step

WEIGHT_FILES = ("model.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class Parent:
    """What a stage began from.

    stage: whose weights; "" for those that the run was given. step: theirs. path: the checkpoint of the run that has
    them; None where they are gone.
    """

    stage: str
    step: int
    path: Path | None


def describe_parent(path: Path | None) -> dict[str, Any] | None:
    """Returns what identifies the checkpoint that a stage starts from: its stage, step, and its weights' SHA-256.

    "unfinished" is there, and true, where the stage of the checkpoint has not ended; "last_step", with the stage's last
    step, where it has ended at a later one: its newer checkpoints are corrupt or were deleted.
    """
    if path is None:
        return None
    state = checkpoint.read_checkpoint_state(path)
    described = {"stage": state.get("stage"), "step": state.get("step"), "weights": read_weights_digest(path)}
    if is_of_unfinished_stage(path):
        return described | {"unfinished": True}
    last = _read_last_step(path)
    return described | ({"last_step": last} if last is not None and last > _read_step(path) else {})


def choose_named_parent(state: Mapping[str, Any], path: Path | None) -> dict[str, Any] | None:
    """Returns what a stage's checkpoints say that it began from.

    Args:
        state: of the checkpoint that it resumes from, whose word it keeps: what it names may be gone; {}: it begins.
        path: the checkpoint that it begins from.
    """
    named = state.get("parent")
    return named if isinstance(named, dict) else describe_parent(path)


def is_of_unfinished_stage(path: Path) -> bool:
    """Returns whether a checkpoint RUN/STAGE/checkpoints/step-N is of a stage that has not ended."""
    return _is_of_stage(path) and not (path.parents[1] / DONE).is_file()


def _is_of_stage(path: Path) -> bool:
    return path.parent.name == "checkpoints" and path.parents[1].name in STAGES


def _read_last_step(path: Path) -> int | None:
    return read_last_step(path.parents[1]) if _is_of_stage(path) else None


def _read_step(path: Path) -> int:
    return int(checkpoint.read_checkpoint_state(path).get("step") or 0)


def describe_incomplete(path: Path | None) -> str:
    """Returns what a checkpoint is of the stage that it is of, as "step 2 of sft, ..."; "" of a stage's last one."""
    described = describe_parent(path) or {}
    of = f"step {described.get('step')} of {described.get('stage')}"
    if described.get("unfinished"):
        return f"{of}, which has not finished"
    if "last_step" in described:
        return f"{of}, which made {described['last_step']:,}: its newer checkpoints are corrupt or were deleted"
    return ""


def is_left_of(path: Path, began_from: Mapping[str, Any]) -> bool:
    """Returns whether a checkpoint is an older one of the stage whose last weights `began_from` describes.

    So the stage was not trained again; its last checkpoint is corrupt or was deleted.
    """
    last = _read_last_step(path)
    if last is None or last != began_from.get("step") or _read_step(path) >= last:
        return False
    digest = read_weights_digest(path.with_name(f"step-{last:08d}"))
    return digest in (None, began_from.get("weights"))


def read_weights_digest(path: Path) -> str | None:
    """Returns the SHA-256 of a checkpoint's weights, or of its adapter, that its manifest has; None without them."""
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        return next((str(files[name]["sha256"]) for name in WEIGHT_FILES if name in files), None)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def find_parent(run_dir: Path, state: Mapping[str, Any]) -> Parent | None:
    """Returns what the stage of a checkpoint's state began from; None for the seed, or where the state does not say it.

    The weights are looked for in all checkpoints of the stage that the state names, those kept for adapters, and those
    that the run was given.
    """
    named = state.get("parent")
    if not isinstance(named, dict) or not isinstance(named.get("weights"), str):
        return None
    step = named["step"] if type(named.get("step")) is int else 0
    if named.get("stage") not in STAGES:
        stage, folders = "", [run_dir / "init"]
    else:
        stage = str(named["stage"])
        aside = name_replaced(run_dir / stage) / STAGE_ASIDE
        folders = [run_dir / stage / "checkpoints", run_dir / checkpoint.BASES_DIR / stage, aside / "checkpoints"]
    paths = [path for folder in folders for path in sorted(folder.glob("step-*"), reverse=True)]
    return Parent(stage, step, next((path for path in paths if read_weights_digest(path) == named["weights"]), None))


def read_newest_state(run_dir: Path, stage: str) -> dict[str, Any]:
    """Returns the state of a stage's newest valid checkpoint; an empty one where there is none."""
    folder = run_dir / stage / "checkpoints"
    try:
        path = checkpoint.find_latest_checkpoint(folder, check_hashes=False, warn=lambda text: None)
        return checkpoint.read_checkpoint_state(path) if path else {}
    except UserError:
        return {}
