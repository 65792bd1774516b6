"""With which step a stage ended, by its done.json."""

from __future__ import annotations

import json
from pathlib import Path

from fledgling.record.seal import DONE

MAX_DONE_BYTES = 2**24


def describe_other_end(stage_dir: Path, step: int) -> str:
    """Returns how the newest checkpoint of a stage, of `step`, is not of the last step that it made; "" where it is."""
    last = read_last_step(stage_dir)
    if last is None or last == step:
        return ""
    if last > step:
        return f"step {last:,}, the last of {stage_dir}, is not there"
    return f"{stage_dir} ended at step {last:,}, so that step {step:,} may be of another run"


def read_last_step(stage_dir: Path) -> int | None:
    """Returns the last step of a stage; None where it has not ended, or where done.json does not say it."""
    try:
        file = stage_dir / DONE
        done = json.loads(file.read_bytes()) if file.stat().st_size <= MAX_DONE_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    step = done.get("step") if isinstance(done, dict) else None
    return step if type(step) is int else None
