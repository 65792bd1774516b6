"""A command that writes a directory of its own does not write it into a run, where it would pass for the run's."""

from __future__ import annotations

from pathlib import Path

from fledgling.config import STAGES, UserError
from fledgling.record.atomic_directory import MANIFEST

RUN_FILES = ("recipe.toml", "metrics.jsonl", "done.json", MANIFEST)


def require_outside_run(out: Path, step: int | None = None) -> None:
    """Raises UserError if `out` is a run, a stage, its checkpoints or one of them, or a directory of tokens.

    A checkpoint that is written there would replace one of the run, or be taken for the newest of the run.

    step: of the checkpoint that is written; `out` must have no newer one, which every command would take instead.
    """
    resolved = out.resolve()
    is_checkpoints = resolved.name == "checkpoints" and resolved.parent.name in STAGES
    held = next((name for name in RUN_FILES if (resolved / name).is_file()), None)
    if held or is_checkpoints or (resolved.parent.name == "checkpoints" and resolved.parent.parent.name in STAGES):
        kind = f"has {held}" if held else "is a stage's folder of checkpoints"
        raise UserError(
            f"{out} {kind}, so what is written there would pass for the run's own: choose another directory"
        )
    steps = [path.name for path in out.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    newer = sorted(name for name in steps if step is not None and int(name.removeprefix("step-")) > step)
    if step is not None and newer:
        raise UserError(
            f"{out} has {newer[-1]}, which commands would take for this one, step-{step:08d}: choose another directory"
        )
