"""What a command writes on its own is no file or directory of a run: it would replace the run's, or pass for it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from fledgling.config import STAGES, UserError
from fledgling.config.run_marks import is_run_directory
from fledgling.record.atomic_directory import MANIFEST

RUN_FILES = ("recipe.toml", "metrics.jsonl", "done.json", MANIFEST)
# Of a run of a sweep, an ablation or a race.
SERIES_FILES = ("cell.json", "prediction.json", "contestant.json", "job.json", "race.json", "points.jsonl")
OWN_NAMES = frozenset(  # of a run, which no other command writes; what a person puts next to them stays allowed
    {
        *(*STAGES, "data", "tokenizer", "init", "init_adapter", "bases", "requests", "lock", "lock.json"),
        *("recipe.toml", "derived.json", "environment.json", "plan.json", "seal.json", "forecast.json", "spent.json"),
        *("report.html", "report.older.html", *(f".{stage}.replaced" for stage in STAGES), *SERIES_FILES),
    }
)


def require_no_part_of_run(out: Path) -> None:
    """Raises UserError if a file or directory `out` has the name of one of a run, or is within one: RUN/report.html.

    Another name in the run's directory is allowed: RUN/model.gguf.
    """
    resolved = out.resolve()
    if (resolved.parent / MANIFEST).is_file():
        raise UserError(
            f"{out}: {resolved.parent / MANIFEST} lists what is there, and nothing else: choose another name"
        )
    for run_dir in resolved.parents:
        first = resolved.relative_to(run_dir).parts[0]
        if first in OWN_NAMES and is_run_directory(run_dir):
            raise UserError(
                f"{out}: {run_dir / first} belongs to that run, and other commands do not write it: choose another name"
            )


def require_place_of_answers(out: Path) -> None:
    """Raises UserError if saved answers of an evaluation would pass for another part of a run than RUN/STAGE/exams."""
    parts = out.resolve().parts
    if not any(before in STAGES and name == "exams" for before, name in pairwise(parts)):
        require_outside_run(out)


def require_outside_run(out: Path, step: int | None = None) -> None:
    """Raises UserError if `out` is a run, a stage, its checkpoints or one of them, or a directory of tokens.

    A checkpoint that is written there would replace one of the run, or be taken for the newest of the run.

    step: of the checkpoint that is written; `out` must have no newer one, which every command would take instead, and
        not this one, which would be replaced.
    """
    require_no_part_of_run(out)
    resolved = out.resolve()
    is_checkpoints = resolved.name == "checkpoints" and resolved.parent.name in STAGES
    held = next((name for name in RUN_FILES if (resolved / name).is_file()), None)
    if held or is_checkpoints or (resolved.parent.name == "checkpoints" and resolved.parent.parent.name in STAGES):
        kind = f"has {held}" if held else "is a stage's folder of checkpoints"
        raise UserError(
            f"{out} {kind}, so what is written there would pass for the run's own: choose another directory"
        )
    steps = [path.name for path in out.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    if step is None:
        return
    if f"step-{step:08d}" in steps:
        raise UserError(f"{out} has step-{step:08d} already: delete it, or choose another directory")
    newer = sorted(name for name in steps if int(name.removeprefix("step-")) > step)
    if newer:
        raise UserError(
            f"{out} has {newer[-1]}, which commands would take for this one, step-{step:08d}: choose another directory"
        )
