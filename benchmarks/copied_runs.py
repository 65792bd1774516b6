"""Which of several runs are copies of others, so that each run counts once in a table of runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fledgling.config import STAGES
from fledgling.plan.past_runs import identify_first_step
from fledgling.record import read_jsonl


def find_copies(runs: Iterable[Path]) -> dict[Path, Path]:
    """Returns the directory of each copy with that of the run before it that has the same first step.

    The first line of a run's metrics has the time and the loss to the last digit, which another run does not share.
    """
    first_steps: dict[str, Path] = {}
    copies: dict[Path, Path] = {}
    for run in runs:
        records = (run / stage / "metrics.jsonl" for stage in STAGES)
        lines = next((lines for path in records if path.is_file() and (lines := read_jsonl(path))), [])
        identity = identify_first_step(lines[0])["run"] if lines else ""
        if identity and first_steps.setdefault(identity, run) != run:
            copies[run] = first_steps[identity]
    return copies
