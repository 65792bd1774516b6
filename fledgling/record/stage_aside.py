"""Where a stage is kept while it is restarted, and what a command says that reads the run meanwhile or after a kill.

`fledgling.train.replaced_stage` moves it there and puts it back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fledgling.config import STAGES
from fledgling.record.atomic_directory import MANIFEST

STAGE_ASIDE = "stage"  # in the directory of `name_replaced`


def name_replaced(stage_dir: Path) -> Path:
    """Returns where a stage is kept while it is restarted, with the files of the run."""
    return stage_dir.with_name(f".{stage_dir.name}.replaced")


def list_unfinished_starts(run_dir: Path) -> list[str]:
    """Returns the stages with a start that runs now, or that a kill or a power cut ended too soon."""
    return [name for name in STAGES if name_replaced(run_dir / name).is_dir()]


def find_stages_aside(run_dir: Path, stages: Sequence[str] = STAGES) -> dict[str, Path]:
    """Returns which of `stages` are kept aside, and where: the new ones have learned nothing that is saved yet."""
    places = {name: name_replaced(run_dir / name) / STAGE_ASIDE for name in stages}
    return {name: path for name, path in places.items() if os.path.lexists(path) and not _is_saved(run_dir / name)}


def describe_stages_aside(run_dir: Path, stages: Sequence[str] = STAGES) -> list[str]:
    """Returns a line for each of `stages` that is kept aside."""
    return [
        f"{run_dir / name} is being restarted, or its restart was killed: {path} is what it was, and the next "
        f"`fledgling train` of this run puts it back"
        for name, path in find_stages_aside(run_dir, stages).items()
    ]


def _is_saved(stage_dir: Path) -> bool:
    """Returns whether a stage has a checkpoint with a finished step, by the names."""
    return any(path.parent.name != "step-00000000" for path in stage_dir.glob(f"checkpoints/step-*/{MANIFEST}"))
