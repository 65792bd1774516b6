"""Finished runs that had a budget: what was forecast of them, and what was measured.

The package ships a file of its own runs, `past_runs.jsonl`. The user's are appended to FLEDGLING_CACHE/past_runs.jsonl,
or ~/.cache/fledgling/past_runs.jsonl. Laws and intervals are taken from both (`fledgling.plan.forecast`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fledgling.config import Recipe, StageConfig
from fledgling.plan.measured_speed import speed_file
from fledgling.record.forecast_names import BITS, MEMORY, SECONDS
from fledgling.record.jsonl import append_line

SHIPPED = Path(__file__).parent / "past_runs.jsonl"
MAX_BYTES = 4 * 2**20  # of a file; the newest lines are read
MAX_RUNS = 2_000
FIRST_BITS = f"pretrain {BITS}"
_VOCABULARY = re.compile(r"; (\d+) entries, ")  # of `describe_data`


@dataclass(frozen=True)
class PastRun:
    """One finished run.

    Attributes:
        data: what its text was (`describe_data`); losses are compared within one. sources: their names, for people.
        machine: processor or GPU, and how many.
        budget: seconds.
        parameters: `count_law_parameters` of the model.
        tokens: of pretraining; passes: over the text of its largest source; None: not known.
        later_flops: of the stages after pretraining.
        predicted, measured: quantity -> value: seconds, memory (bytes), bits per byte, shares of exams.
        run: digest of the first step as it was recorded, with its time: copies of a run share it; "" of older lines.
        start: digest of what that step read and gave: runs from the same weights and data share it.
        wordings: `fledgling.tasks.skills.WORDINGS` of then; "" of older lines. Exams are compared within the same ones.
    """

    date: str
    recipe: str
    data: str
    machine: str
    budget: float
    parameters: int
    tokens: int
    passes: float | None
    later_flops: float
    predicted: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    run: str = ""
    start: str = ""
    sources: str = ""
    wordings: str = ""


def identify_first_step(line: Mapping[str, Any]) -> dict[str, str]:
    """Returns `run` and `start` of a past run, given the first line of its metrics; "" of a line without a loss."""
    given = {key: line[key] for key in ("loss", "gradient_norm", "tokens", "data") if key in line}
    return {"run": _digest(line), "start": _digest(given)} if "loss" in given else {"run": "", "start": ""}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def group_dependent(runs: Sequence[PastRun]) -> list[list[PastRun]]:
    """Returns the runs in groups that are independent of each other: those of one group began in the same way.

    They had the same seed, and so the same weights and order of text, for other lengths or at another time.
    """
    groups: dict[str, list[PastRun]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(run.start or str(number), []).append(run)
    return list(groups.values())


def describe_data(recipe: Recipe, digests: Mapping[str, str] | None = None) -> str:
    """Returns what bits per byte and exams of a recipe's runs are comparable within: text, tokens, rows and features.

    The content identifies a user's text: an edited folder is another text, and one that was moved is the same. The name
    identifies what comes with the package or is published: the embedded text differs a little with the versions of
    Python and torch, so that a digest of it would make the shipped runs another text's on most installations.

    Args:
        digests: of the user's texts, by their source; of a source without one the name counts.
    """
    known = digests or {}
    texts = [f"text {known[name]}" if name in known else name for name in list_mixture_sources(recipe.pretrain)]
    config = recipe.resolve_model()
    features = ", ".join(name for name in config.enabled_features if name != "flash_norm")  # the same function
    begun = ", from given weights" if recipe.run.init_from else ""
    return "; ".join(
        [
            ", ".join(sorted(texts)),
            f"{config.vocab_size} entries, rows of {config.context}{begun}",
            *([features] if features else []),
        ]
    )


def select_text(data: str) -> str:
    """Returns the part of `describe_data` that names text and rows, without the vocabulary and the model's features."""
    return _VOCABULARY.sub("; ", "; ".join(data.split("; ")[:2]))


def count_vocabulary_doublings(data: str, other: str) -> float:
    """Returns by how many doublings two vocabularies differ in size; 0.0 where one is not named."""
    sizes = [int(found[1]) for found in map(_VOCABULARY.search, (data, other)) if found and int(found[1])]
    return abs(math.log2(sizes[0] / sizes[1])) if len(sizes) == 2 else 0.0


def measure_difference(data: str, other: str) -> float:
    """Returns how far apart two kinds of model are: features that one of them has, and doublings of the vocabulary."""
    features = [set(", ".join(each.split("; ")[2:]).split(", ")) - {""} for each in (data, other)]
    return len(features[0] ^ features[1]) + count_vocabulary_doublings(data, other)


def of_same_text(runs: Sequence[PastRun], data: str) -> list[PastRun]:
    """Returns the runs of that text in rows of that length, with any vocabulary and any features of the model.

    Bits per byte can be compared across vocabularies, as losses per token cannot.
    """
    return [run for run in runs if select_text(run.data) == select_text(data)]


def list_mixture_sources(table: StageConfig) -> list[str]:
    """Returns the names of what a stage reads."""
    return sorted(name for name, weight in table.mixture.items() if weight > 0)


def user_file() -> Path:
    """Returns the file that the user's runs are appended to."""
    return speed_file().with_name("past_runs.jsonl")


def load_past_runs(paths: tuple[Path, ...] | None = None) -> list[PastRun]:
    """Returns the shipped runs and the user's; corrupt lines are left out, and copies of a run count once."""
    runs = [run for path in paths or (SHIPPED, user_file()) for run in _read_runs(path)]
    return list({_identify(run): run for run in runs}.values())[-MAX_RUNS:]


def _identify(run: PastRun) -> str:
    """Returns what two copies of one run have in common: the first step, with its time.

    Of older lines it is the same losses to the last digit after the same tokens.
    """
    if run.run:
        return run.run
    scores = {name: value for name, value in run.measured.items() if name not in (SECONDS, MEMORY)}
    what = [run.recipe, run.data, run.parameters, run.tokens, scores or asdict(run)]
    return json.dumps(what, sort_keys=True)


def append_past_run(run: PastRun, path: Path | None = None) -> None:
    """Appends a run to the user's file, or to `path`. Raises OSError where it cannot be written."""
    append_line(path or user_file(), asdict(run))


def _read_runs(path: Path) -> list[PastRun]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MAX_BYTES))
            lines = file.read(MAX_BYTES).decode("utf-8", "replace").split("\n")
    except OSError:
        return []
    return [run for line in lines if (run := _parse_run(line)) is not None]


def _parse_run(line: str) -> PastRun | None:
    try:
        values = json.loads(line)
        run = PastRun(**{entry.name: values.get(entry.name, "") for entry in fields(PastRun)})
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
    sizes = (run.budget, run.parameters, run.tokens)
    texts = (run.date, run.recipe, run.data, run.machine, run.run, run.start, run.sources)
    tables = (run.predicted, run.measured)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(table, dict) for table in tables):
        return None
    run = replace(run, passes=run.passes or None)  # older versions recorded 0 where it was not known
    passes = run.passes or 0.0
    figures: list[Any] = [*sizes, passes, run.later_flops, *run.predicted.values(), *run.measured.values()]
    if not all(isinstance(value, int | float) and abs(value) < 1e100 for value in figures):
        return None
    is_possible = min(*sizes, run.measured.get("seconds", 1.0)) > 0 and min(passes, run.later_flops) >= 0
    return run if is_possible else None
