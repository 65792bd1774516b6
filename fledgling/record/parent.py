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

    "unfinished" is there, and true, where the stage of the checkpoint has not ended.
    """
    if path is None:
        return None
    state = checkpoint.read_checkpoint_state(path)
    described = {"stage": state.get("stage"), "step": state.get("step"), "weights": read_weights_digest(path)}
    return described | ({"unfinished": True} if is_of_unfinished_stage(path) else {})


def is_of_unfinished_stage(path: Path) -> bool:
    """Returns whether a checkpoint RUN/STAGE/checkpoints/step-N is of a stage that has not ended."""
    stage_dir = path.parent.parent
    return path.parent.name == "checkpoints" and stage_dir.name in STAGES and not (stage_dir / "done.json").is_file()


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
        folders = [run_dir / stage / "checkpoints", run_dir / checkpoint.BASES_DIR / stage]
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
