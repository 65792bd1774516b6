"""What steps of a stage ran with: recipe, machine, dtypes and files, as the stage's newest checkpoint has recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fledgling.config import RunConfig
from fledgling.record import checkpoint
from fledgling.runtime.device import DTYPES, choose_setup, name_dtype
from fledgling.runtime.world import World
from fledgling.verify.files import is_usable, list_stage_checkpoints


@dataclass(frozen=True)
class Segment:
    """What the steps of a stage from one on ran with. last: the last of them; None: up to the end."""

    recipe: str | None  # as TOML; None: recipe.toml
    machine: dict[str, Any]
    last: int | None
    dtype: str | None = None  # of training; None: an earlier version's, which was the engine's
    files: dict[str, str] = field(default_factory=dict)  # digests of those that were read as they are


def find_segment(run_dir: Path, stage: str, step: int) -> Segment:
    """Returns what the step after `step` ran with, and up to which one that holds."""
    history: list[dict[str, Any]] = []
    data: dict[str, Any] = {}  # an earlier version's history has no files: the newest checkpoint has those of the end
    for path in list_stage_checkpoints(run_dir, stage)[::-1]:
        if is_usable(path):
            state = checkpoint.read_checkpoint_state(path)
            history = state.get("history") or [{"after_step": 0, "recipe": state["recipe"], "machine": {}}]
            data = state.get("data") or {}
            break
    if not history:
        return Segment(None, {}, None)
    number = max((i for i, entry in enumerate(history) if entry["after_step"] <= step), default=0)
    last = history[number + 1]["after_step"] if number + 1 < len(history) else None
    files = history[number].get("files", {name: facts.get("digest", "") for name, facts in data.items()})
    dtypes = history[number].get("dtypes")
    dtype = next((name for name in DTYPES if isinstance(dtypes, list) and dtypes[:1] == [name]), None)
    return Segment(history[number]["recipe"], history[number]["machine"], last, dtype, files)


def choose_replayed_dtype(run: RunConfig, segment: Segment) -> str:
    """Returns the `run.dtype` with which training here computes in the dtype of a segment's steps."""
    setup = choose_setup(run, World.start(run.device))
    trained = segment.dtype or name_dtype(setup.engine_dtype)
    return run.dtype if run.dtype != "auto" or trained == setup.dtype_name else trained
