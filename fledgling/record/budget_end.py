"""When a run within a budget ended: RUN/spent.json says it, and newer steps were trained outside of the budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from fledgling.config import STAGES
from fledgling.record.jsonl import read_jsonl
from fledgling.record.seal import SPENT

MAX_BYTES = 2**20
MARGIN = 1.0  # seconds: the last step is recorded before the end is
OUTSIDE = "steps were trained outside of it since"


def has_steps_after_end(run_dir: Path) -> bool:
    """Returns whether a stage of a finished run with a budget has steps that are newer than the run's end."""
    try:
        path = run_dir / SPENT
        spent = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return False
    end = spent.get("time") if isinstance(spent, dict) else None
    last = [lines[-1].get("time") for stage in STAGES if (lines := read_jsonl(run_dir / stage / "metrics.jsonl"))]
    return is_after_end(end, last)


def is_after_end(end: Any, times: Sequence[Any]) -> bool:
    """Returns whether one of the times of steps is later than the end of a budget, as far as both are times."""
    return _is_time(end) and any(_is_time(time) and time > end + MARGIN for time in times)


def _is_time(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
