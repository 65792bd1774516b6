"""Files that were added to a run: what fledgling would read is a problem, what no command reads is a note.

A file of a name that the run has is compared by hashes (`files.py`); here are those of other names. Start with
`find_added`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fledgling.files.clutter import is_clutter
from fledgling.record.checkpoint import BASES_DIR
from fledgling.record.outside import OWN_NAMES
from fledgling.record.recorder import JSONL_NAMES
from fledgling.record.seal import DONE, FORECAST, SEAL, SPENT, TOKENIZER_FILES
from fledgling.record.stage_aside import find_stages_aside, name_replaced
from fledgling.train.kept_bases import list_needed_bases

STAGE_NAMES = frozenset({*(f"{name}.jsonl" for name in JSONL_NAMES), DONE, SEAL, "checkpoints", "exams", "batch.json"})
PLAN = re.compile(r"plan(-\d+)?\.json")
CHECKPOINT = re.compile(r"step-\d{8,}(\.old)?|\.tmp-.+")  # the last: of a save that was killed


def find_added(run_dir: Path, stages: list[str]) -> tuple[list[str], list[str]]:
    """Returns (problems, notes): what is in the run, and in its recorded stages, besides what a run has."""
    problems: list[str] = []
    notes = [f"{path.name} is not a file of a run" for path in _list_others(run_dir, OWN_NAMES)]
    if (run_dir / SPENT).exists() and not (run_dir / FORECAST).exists():
        problems.append(f"{SPENT} is of a run with a budget, and there is no {FORECAST}")
    notes += [
        f"{path.name} has what a start of {stage} has replaced, or was killed over"
        for stage in stages
        if (path := name_replaced(run_dir / stage)).exists() and stage not in find_stages_aside(run_dir)
    ]
    tokenizer = _list_others(run_dir / "tokenizer", frozenset(TOKENIZER_FILES))
    notes += [f"tokenizer/{path.name} is not a file of a tokenizer" for path in tokenizer]
    needed = list_needed_bases(run_dir) if (run_dir / BASES_DIR).is_dir() else {}
    kept = sorted((run_dir / BASES_DIR).glob("*/step-*"))
    unneeded = [path.relative_to(run_dir) for path in kept if path.resolve() not in needed]
    notes += [f"{place} is the base of no adapter of this run" for place in unneeded]
    for stage in stages:
        others = [path for path in _list_others(run_dir / stage, STAGE_NAMES) if not PLAN.fullmatch(path.name)]
        notes += [f"{stage}/{path.name} is not a file of a stage" for path in others]
        folder = run_dir / stage / "checkpoints"
        problems += [f"{stage}/checkpoints is no folder"] if folder.exists() and not folder.is_dir() else []
        for path in _list_others(folder):
            place = f"{stage}/checkpoints/{path.name}"
            if path.is_symlink() and not path.exists():
                problems.append(f"{place} is a link to {path.readlink()}, which is not there")
                continue
            if CHECKPOINT.fullmatch(path.name) and path.is_dir():
                continue
            if is_clutter(path.name):
                notes.append(f"{place} is not a file of a run")
            else:
                problems.append(f"{place} is no checkpoint of this run, whose names are like step-00000100")
    return problems, notes


def find_added_within(directory: Path, listed: set[str], place: Path) -> tuple[list[str], list[str]]:
    """Returns (problems, notes): files in a checkpoint or a directory of tokens that its manifest does not list.

    Args:
        directory: with a manifest.
        listed: names that it lists, and its own.
        place: of the directory, for the lines.
    """
    names = [path.name for path in _list_others(directory, listed)]
    problems = [f"{place}/{name} is not in manifest.json" for name in names if not is_clutter(name)]
    return problems, [f"{place}/{name} is not in manifest.json" for name in names if is_clutter(name)]


def _list_others(directory: Path, known: set[str] | frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yields what a directory holds under other names, in their order; nothing where there is none."""
    if directory.is_dir():
        yield from (path for path in sorted(directory.iterdir()) if path.name not in known)
