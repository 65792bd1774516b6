"""Finds the files of a run that exist and cannot be read, in part or whole: a report names them and shows the rest."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

from fledgling.config.recorded_recipe import explain_lost
from fledgling.record.stage_aside import describe_stages_aside

RUN_FILES = (
    "recipe.toml",
    "environment.json",
    "plan.json",
    "forecast.json",
    "spent.json",
    "tokenizer/training.json",
    "data/*/manifest.json",
)
KINDS: dict[tuple[type, ...], str] = {(dict,): "a table", (list,): "a list", (int, float): "a number"}
REQUIRED: dict[str, dict[str, tuple[type, ...]]] = {  # of a run with a budget: nothing else says what is lacking
    "forecast.json": {"budget": (dict,), "forecasts": (list,)},
    "spent.json": {"seconds": (int, float)},
}
STAGE_FILES = ("plan.json", "done.json", "metrics.jsonl", "evals.jsonl", "samples.jsonl", "notices.jsonl")
ERRORS = (
    OSError,
    ValueError,
    RecursionError,
)  # of bytes, JSON and TOML: all are ValueErrors


def find_unreadable(run_dir: Path, stages: list[str], max_bytes: int) -> list[str]:
    """Returns one line for each corrupt file of a run: its path in the run, and what is wrong; and for a stage aside.

    A file that does not exist does not count, and the last line of a JSONL file does not while no newline ends it: a
    run that is still written, or was killed, has such a line.

    Args:
        run_dir: the run's directory.
        stages: the names of its stages.
        max_bytes: a larger file is not read, except JSONL.
    """
    patterns = [*RUN_FILES, *(f"{stage}/{name}" for stage in stages for name in STAGE_FILES)]
    paths = [path for pattern in patterns for path in sorted(run_dir.glob(pattern))]
    problems = {str(path.relative_to(run_dir)): _find_problem(path, max_bytes) for path in paths}
    aside = describe_stages_aside(run_dir)
    return [f"{name}: {problem}" for name, problem in problems.items() if problem] + aside


def _find_problem(path: Path, max_bytes: int) -> str:
    """Returns what keeps a file from being read, or ""."""
    try:
        if path.suffix == ".jsonl":
            lines = path.read_bytes().split(b"\n")[:-1]
            bad = sum(not _is_table(line, json.loads) for line in lines if line.strip())
            return f"{bad:,} of {len(lines):,} lines are no JSON objects" if bad else ""
        if path.stat().st_size > max_bytes:
            return f"{path.stat().st_size:,} bytes, expected at most {max_bytes:,}"
        content, is_toml = path.read_bytes(), path.suffix == ".toml"
        if not _is_table(content, tomllib.loads if is_toml else json.loads):
            return f"not a {'TOML document' if is_toml else 'JSON object'}"
        if is_toml:
            return explain_lost(tomllib.loads(content.decode()), path.parent)
        return _find_missing(path.name, json.loads(content)) if path.name in REQUIRED else ""
    except OSError as error:
        return error.strerror or str(error)


def _find_missing(name: str, values: dict[str, object]) -> str:
    """Returns what a JSON object lacks of `REQUIRED`, or ""."""
    for key, kinds in REQUIRED[name].items():
        if not isinstance(values.get(key), kinds) or isinstance(values.get(key), bool):
            return f'"{key}" is {json.dumps(values.get(key))[:40]}, expected {KINDS[kinds]}'
    return ""


def _is_table(content: bytes, parse: Callable[[str], object]) -> bool:
    try:
        return isinstance(parse(content.decode("utf-8")), dict)
    except ERRORS:
        return False
