"""What only the directory of a run has: it shows which folder is a run, and which recipe.toml a run has written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fledgling.config.errors import UserError
from fledgling.config.recipe import STAGES

RECIPE_FILE = "recipe.toml"  # of a run directory
OF_A_RUN = ("environment.json", "derived.json", "seal.json", "forecast.json", "spent.json")
OF_A_STAGE = ("metrics.jsonl", "checkpoints", "done.json", "seal.json", "plan.json")
OF_A_START = ("lock", "lock.json", "tokenizer/training.json")  # while a run has no recipe yet
TABLES = frozenset({"tokenizer", "model", "optimizer", "run", *STAGES})  # that every run's recipe.toml has


def find_stage_mark(directory: Path) -> str:
    """Returns a file of a stage that the directory has, as "sft/metrics.jsonl"; "" where it has none.

    A run that is named after a stage, in a folder of runs, is no stage of that folder.
    """
    replaced = [f".{stage}.replaced" for stage in STAGES]
    stages = [stage for stage in STAGES if not (directory / stage / RECIPE_FILE).exists()]
    names = [*(f"{stage}/{name}" for stage in stages for name in OF_A_STAGE), *replaced]
    return next((name for name in names if (directory / name).exists()), "")


def is_run_directory(directory: Path) -> bool:
    """Returns whether a directory is a run: it has a stage, or a recipe.toml with another file that only a run has."""
    if find_stage_mark(directory):
        return True
    return (directory / RECIPE_FILE).is_file() and any((directory / name).exists() for name in OF_A_RUN)


def require_watchable(directory: Path) -> str:
    """Returns a line where no run has started in a directory yet, that is none or is empty; "" for a run.

    Raises UserError for a file, and for a directory of anything else.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"run {directory} is a file; expected a run directory, such as runs/quickstart")
    if not directory.exists() or next(directory.iterdir(), None) is None:
        state = "is empty" if directory.exists() else "does not exist"
        return f"{directory} {state}: the page shows nothing until a run starts there"
    if not is_run_directory(directory) and not any((directory / name).exists() for name in (RECIPE_FILE, *OF_A_START)):
        hint = f", but a part of the run {directory.parent}" if is_run_directory(directory.parent) else ""
        raise UserError(f"{directory} is no run directory{hint}; expected one, such as runs/quickstart")
    return ""


def require_own_recipe(path: Path, table: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raises UserError for the recipe.toml that another run has written, copied to a folder that has nothing of a run.

    Its `run.out` is that other run, which a restart would empty. What a person writes states fewer tables.

    Args:
        path: of the recipe, in no run.
        table: its values.
        overrides: `table.key=value`; with a run.out among them it is clear which directory is meant.
    """
    run = table.get("run")
    out = run.get("out") if isinstance(run, dict) else None
    if path.name != RECIPE_FILE or not isinstance(out, str) or not table.keys() >= TABLES:
        return
    if any(override.partition("=")[0].strip() == "run.out" for override in overrides):
        return
    other, folder = Path(out), path.parent
    if (other / RECIPE_FILE).is_file() and not (other / RECIPE_FILE).samefile(path):
        raise UserError(
            f"{path} was written by the run {other}, and {folder} has no stage of a run: give {other} for that run, or "
            f"--set run.out={folder} for a new one"
        )
