"""Which stages of a run still follow from one another: an earlier one may have been restarted or trained further since.

The later stages keep what they learned. What their start was may be gone, and recipe.toml is that of the stage that was
trained last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fledgling.config import STAGES, AdapterConfig, Recipe
from fledgling.record import read_jsonl
from fledgling.record.parent import Parent, find_parent, read_newest_state
from fledgling.report.run_data import finite_number
from fledgling.verify.files import list_stages


def read_times(run_dir: Path, stage: str) -> list[float]:
    """Returns when each step of a stage ended, in seconds."""
    times = (finite_number(line.get("time")) for line in read_jsonl(run_dir / stage / "metrics.jsonl"))
    return [time for time in times if time is not None]


def find_last_trained(run_dir: Path, stages: Sequence[str]) -> str:
    """Returns the stage with the newest step; the last one where no line says when it was."""
    return max(reversed(stages), key=lambda stage: max(read_times(run_dir, stage), default=0.0))


def list_outdated(run_dir: Path) -> dict[str, str]:
    """Returns the stages that an earlier one was trained after, each with that one: recipe.toml is not theirs."""
    newest = {stage: max(read_times(run_dir, stage), default=0.0) for stage in list_stages(run_dir)}
    later = {stage: [name for name in newest if STAGES.index(name) < STAGES.index(stage)] for stage in newest}
    found = {stage: [name for name in names if newest[name] > newest[stage]] for stage, names in later.items()}
    return {stage: names[-1] for stage, names in found.items() if names}


def find_stage_parent(run_dir: Path, stage: str) -> Parent | None:
    """Returns what a stage began from, by its newest checkpoint; None for the seed, or where it does not say it."""
    return find_parent(run_dir, read_newest_state(run_dir, stage))


def explain_lost_parent(run_dir: Path, stage: str, parent: Parent) -> str:
    """Returns why an honest run no longer has the weights that a stage began from; "" where nothing explains it.

    Their checkpoint was deleted, or their stage has steps that are newer than the first of `stage`.
    """
    folder = run_dir / (parent.stage or "init")
    checkpoints = folder / "checkpoints" if parent.stage else folder
    began = min(read_times(run_dir, stage), default=0.0)
    if not any(checkpoints.glob("step-*")):
        return f"the checkpoints of {parent.stage or 'init'} were deleted"
    if parent.stage and max(read_times(run_dir, parent.stage), default=0.0) > began:
        return f"{stage} began from weights that {parent.stage} had before it was trained again"
    if not (checkpoints / f"step-{parent.step:08d}").is_dir():
        return f"step {parent.step} of {parent.stage or 'init'}, from which {stage} began, was deleted"
    return ""


def needs_parent(recipe: Recipe, stage: str) -> bool:
    """Returns whether a stage needs the weights that it began from even where it is resumed from its own checkpoint.

    An adapter is trained on them; DPO and RL compare with them.
    """
    compares = {"dpo": recipe.dpo.uses_reference, "rl": recipe.rl.kl_weight > 0 and not recipe.has_teacher("rl")}
    return recipe.adapter.trains_in(stage) or compares.get(stage, False)


def leave_out_parents(recipe: Recipe, stage: str) -> Recipe:
    """Returns the recipe of a stage alone, which is resumed from its own checkpoint without the stages before it."""
    distill = recipe.distill if recipe.has_teacher(stage) else replace(recipe.distill, teacher=None)
    adapter = recipe.adapter if recipe.adapter.trains_in(stage) else AdapterConfig()
    run = replace(recipe.run, init_from=None)  # it would count as what the stage began from
    return replace(recipe, stages=(stage,), distill=distill, adapter=adapter, run=run)
