"""Seals: hashes of what a run has written, by which a later change is found.

RUN/<stage>/seal.json has the lines of a stage's record, its predictions, checkpoints and end. It is written after every
checkpoint and at the end of the stage, and names the line that was changed. RUN/seal.json has the files of the whole
run, recipe, environment, prediction, tokenizer, initial weights, and the names of its stages. It is written with them,
when a stage starts, and at the end of a run with a budget, whose seconds it has from then on. A seal has no key: it
shows accidents and edits, not a forger who rewrites the seal. `fledgling.verify` adds what hashes cannot show, and
prints one digest of all seals, which a publisher states elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from fledgling.config import STAGES
from fledgling.files.clutter import is_clutter
from fledgling.record.atomic_directory import MANIFEST, hash_file
from fledgling.record.jsonl import write_json
from fledgling.record.recorder import JSONL_NAMES

SEAL = "seal.json"
DONE = "done.json"
FORECAST, SPENT = "forecast.json", "spent.json"  # of a run with a budget (`fledgling.speedrun.budgeted`)
DERIVED = "derived.json"  # the values of recipe.toml that rules have filled (`fledgling.train.derived_values`)
MAX_SPENT_BYTES = 2**20
TOKENIZER_FILES = ("tokenizer.json", "training.json")
RUN_FILES = ("recipe.toml", DERIVED, "environment.json", "plan.json", FORECAST)


def seal_stage(stage_dir: Path) -> None:
    """Writes the seal of what the stage has now. Raises UserError if it cannot be written."""
    lines = {name: hash_lines(stage_dir / f"{name}.jsonl") for name in JSONL_NAMES}
    write_json(stage_dir / SEAL, {"lines": lines, "files": hash_sealed_files(stage_dir)})


def seal_run(run_dir: Path) -> None:
    """Writes the seal of the run's own files and the names of its stages. Raises UserError if it cannot be written."""
    stages = [name for name in STAGES if (run_dir / name).is_dir()]
    write_json(run_dir / SEAL, {"lines": {}, "files": hash_run_files(run_dir), "stages": stages})


def read_seal(directory: Path) -> dict[str, Any] | None:
    """Returns the seal of a stage or run; None where it is missing or no seal."""
    try:
        seal = json.loads((directory / SEAL).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    is_seal = isinstance(seal, dict) and all(isinstance(seal.get(key), dict) for key in ("lines", "files"))
    if not is_seal or not all(isinstance(value, str) for value in seal["files"].values()):
        return None
    lines = seal["lines"].values()
    is_valid = all(isinstance(hashes, list) and all(isinstance(each, str) for each in hashes) for hashes in lines)
    return seal if is_valid else None


def hash_lines(path: Path) -> list[str]:
    """Returns 16 hexadecimal digits of the SHA-256 of each complete line of a file that is not blank.

    [] without the file.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []  # what follows the last newline is unfinished
    return [hashlib.sha256(line).hexdigest()[:16] for line in lines if line.strip()]


def hash_sealed_files(stage_dir: Path) -> dict[str, str]:
    """Returns the SHA-256 of the files that say what the stage is made of, by path in the run.

    They are the manifests of its checkpoints and of the run's prepared data, the tokenizer, the stage's
    predictions and its done.json.
    """
    run_dir = stage_dir.parent
    paths = [*stage_dir.glob(f"checkpoints/step-*/{MANIFEST}"), *(run_dir / "data").rglob(MANIFEST)]
    return _hash_files(run_dir, [*paths, *stage_dir.glob("plan*.json"), *_tokenizer_files(run_dir), stage_dir / DONE])


def hash_run_files(run_dir: Path) -> dict[str, str]:
    """Returns the SHA-256 of the files that say what the run is, by path in the run.

    The weights and the adapter that it started from are among them; the seconds of a run with a budget once it is
    finished: until then they change.
    """
    paths = [run_dir / name for name in RUN_FILES] + ([run_dir / SPENT] if has_run_ended(run_dir) else [])
    given = (f"init/step-*/{MANIFEST}", "init*/*.json", "init_adapter/*.safetensors")  # an adapter has no manifest
    paths += [path for pattern in given for path in run_dir.glob(pattern)]
    return _hash_files(run_dir, [*paths, *_tokenizer_files(run_dir)])


def has_run_ended(run_dir: Path) -> bool:
    """Returns whether RUN/spent.json says that a run with a budget has ended."""
    try:
        path = run_dir / SPENT
        spent = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_SPENT_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(spent, dict) and spent.get("finished") is True


def _tokenizer_files(run_dir: Path) -> list[Path]:
    return [run_dir / "tokenizer" / name for name in TOKENIZER_FILES]


def _hash_files(run_dir: Path, paths: Iterable[Path]) -> dict[str, str]:
    named = [path for path in sorted(paths) if path.is_file() and not is_clutter(path.name)]
    return {str(path.relative_to(run_dir)): hash_file(path) for path in named}


def find_changed_lines(sealed: list[str], now: list[str]) -> tuple[list[str], int]:
    """Returns what happened to the sealed lines of a file, and how many lines were added after them."""
    problems: list[str] = []
    added = 0
    for kind, first, last, start, stop in SequenceMatcher(None, sealed, now, autojunk=False).get_opcodes():
        if kind == "insert" and first == len(sealed):
            added = stop - start
        elif kind != "equal":
            verb = {"replace": "changed", "delete": "removed", "insert": "inserted"}[kind]
            begin, end = (start, stop) if kind == "insert" else (first, last)
            problems.append(f"line {begin + 1} {verb}" if end - begin == 1 else f"lines {begin + 1} to {end} {verb}")
    return problems, added
