"""The teacher that a plan counts, found without torch where there is none."""

from __future__ import annotations

import sys
from pathlib import Path

from fledgling.config import ModelConfig, Recipe


def find_teacher(recipe: Recipe, run_dir: Path) -> ModelConfig | None:
    """Returns the configuration of the teacher that some stage learns from; None without one.

    Of a run whose teacher is gone it is the recorded one, and a line on stderr says so. Raises UserError for one that
    is gone and that `run_dir` was not made with.
    """
    if not any(map(recipe.has_teacher, recipe.stages)):
        return None
    from fledgling.train.predictions import find_teacher_config  # imports torch, which other plans do without

    teacher, note = find_teacher_config(recipe, run_dir)
    if note:
        print(note, file=sys.stderr)
    return teacher
