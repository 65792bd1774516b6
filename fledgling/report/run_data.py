"""Reads a run directory into values, once; entries of the wrong shape are dropped.

The files may be incomplete, from another version or edited by hand. Only this module reads their values (unreadable.py
lists those that cannot be read): after it every number is finite and every text is a string.
"""

import json
import math
import re
import struct
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from fledgling.config import STAGES, UserError
from fledgling.record import read_jsonl
from fledgling.record.budget_end import is_after_end
from fledgling.record.seal import FORECAST, SPENT
from fledgling.report.unreadable import find_unreadable

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
GROWING_FILES = ("evals", "samples", "notices")  # .jsonl; commands add lines to them after the run's end
WARM_STEPS = 3  # the first steps compile, so speeds ignore them if there are more
MAX_FILE_BYTES = 16 * 2**20  # bytes of a recipe, plan or manifest


@dataclass(frozen=True)
class Evaluation:
    """One measurement: a value with its 95 % interval, n cases, and the score of the best constant answer.

    Measurements of one name and another n are another series: training asks the first questions, its end all.
    clusters: how many of the cases are independent, where several share a cluster_unit (wordings, documents).
    """

    stage: str
    step: int
    name: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    baseline: float | None
    tools: str | None = None  # what answers could call; None where nothing is generated or an older run did not say
    clusters: int | None = None
    cluster_unit: str | None = None


@dataclass(frozen=True)
class SampledText:
    """The model's answer to `prompt` after `step` updates of `stage`."""

    stage: str
    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class StageData:
    """The records of one stage; metrics have rising steps, each step once (the last line counts)."""

    name: str
    metrics: list[dict[str, Any]]
    evals: list[Evaluation]
    samples: list[SampledText]
    notices: list[str]
    done: dict[str, Any]
    parameter_count: int | None  # of the newest model.safetensors
    plan: dict[str, Any] = field(default_factory=dict)  # what was predicted before the stage's first step
    plan_changes: int = 0  # later predictions: the stage was resumed with other settings, or on another machine
    lines_read: dict[str, int] = field(default_factory=dict)  # of the metrics and of GROWING_FILES

    def metric_series(self, name: str) -> tuple[list[float], list[float]]:
        """Returns (steps, values) of one metric, where it is recorded and finite."""
        pairs = [(line["step"], finite_number(line.get(name))) for line in self.metrics]
        return [s for s, v in pairs if v is not None], [v for _, v in pairs if v is not None]

    def last_metric(self, name: str) -> float | None:
        """Returns the last recorded value of a metric."""
        values = self.metric_series(name)[1]
        return values[-1] if values else None

    @property
    def last_step(self) -> int:
        """The last step with metrics."""
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def seconds(self) -> float | None:
        """Seconds of work: from done.json, else up to the last metric."""
        return finite_number(self.done.get("seconds")) or self.last_metric("elapsed")


@dataclass(frozen=True)
class RunData:
    """Everything the report knows about a run."""

    path: Path
    recipe_text: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    tokenizer: dict[str, Any]
    data: dict[str, dict[str, Any]]
    plan: dict[str, Any]
    forecast: dict[str, Any] = field(default_factory=dict)  # of a run with a budget
    spent: dict[str, Any] = field(default_factory=dict)  # seconds of it
    stages: list[StageData] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # corrupt files, one line each

    @property
    def has_steps_after_end(self) -> bool:
        """Whether stages have steps that are newer than the end of the run's budget."""
        return is_after_end(self.spent.get("time"), [line.get("time") for s in self.stages for line in s.metrics[-1:]])

    @property
    def lines_read(self) -> dict[str, int]:
        """Lines of each file that may grow after the run's end, by its path in the run without `.jsonl`."""
        return {f"{stage.name}/{name}": count for stage in self.stages for name, count in stage.lines_read.items()}


def load_run_data(run_dir: Path | str, max_lines: Mapping[str, int] | None = None, until: float = math.inf) -> RunData:
    """Reads a run directory. Raises UserError if it is missing or no stage has written a line.

    Args:
        max_lines: reads no more lines of GROWING_FILES, as an earlier `lines_read` has them; None: reads all. Metrics
            are always read whole.
        until: unix time; ends of stages and of a budget that are later are left out.
    """
    path = Path(run_dir)
    if not path.is_dir():
        problem = "is a file" if path.exists() else "does not exist"
        raise UserError(f"run {path} {problem}; expected a run directory, such as runs/quickstart")
    stages = [_load_stage(path / name, max_lines, until) for name in STAGES if (path / name).is_dir()]
    stages = [stage for stage in stages if stage.metrics or stage.evals or stage.samples or stage.done]
    if not stages:
        searched = ", ".join(f"{name}/metrics.jsonl" for name in STAGES)
        raise UserError(f"run {path} has nothing to report yet: looked for {searched}")
    text = read_text(path / "recipe.toml")
    manifests = sorted((path / "data").glob("*/manifest.json"))
    return RunData(
        path=path,
        recipe_text=text,
        recipe=parse_toml(text),
        environment=read_object(path / "environment.json"),
        tokenizer=read_object(path / "tokenizer" / "training.json"),
        data={manifest.parent.name: read_object(manifest) for manifest in manifests},
        plan=read_object(path / "plan.json"),
        forecast=read_object(path / FORECAST),
        spent=_read_end(path / SPENT, until),
        stages=stages,
        unreadable=find_unreadable(path, [stage.name for stage in stages], MAX_FILE_BYTES),
    )


def drop_warmup_steps(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Returns a metric without its first WARM_STEPS values, which include compilation; with no more than these, all."""
    first = WARM_STEPS if len(steps) > WARM_STEPS else 0
    return steps[first:], values[first:]


def steady_median(stage: StageData, name: str) -> float | None:
    """Returns the median of a metric after the warm-up steps."""
    values = drop_warmup_steps(*stage.metric_series(name))[1]
    return median(values) if values else None


def finite_number(value: Any) -> float | None:
    """Returns `value` as a float if it is a number below 1e100 in size, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if abs(value) < 1e100 else None  # larger differences overflow; NaN compares false


def printable_text(text: Any) -> str | None:
    """Returns `text` without lone surrogates, control or direction characters; None if it is not a string."""
    if not isinstance(text, str):
        return None
    text = text.encode("utf-8", "replace").decode("utf-8")
    return _UNPRINTABLE.sub("\ufffd", text)


def nested_table(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Returns the table under `keys`, or an empty one if there is none."""
    for key in keys:
        table = values.get(key)
        values = table if isinstance(table, dict) else {}
    return values


def _read_end(path: Path, until: float) -> dict[str, Any]:
    """Returns the JSON object in a file; {} where it says that it was written later than `until`."""
    values = read_object(path)
    return {} if (finite_number(values.get("time")) or 0.0) > until else values


def _load_stage(path: Path, max_lines: Mapping[str, int] | None, until: float) -> StageData:
    lines = {name: read_jsonl(path / f"{name}.jsonl") for name in ("metrics", *GROWING_FILES)}
    done, steps = _read_end(path / "done.json", until), len(lines["metrics"])
    if max_lines is not None:
        lines = {name: rows[: max_lines.get(f"{path.name}/{name}", 0)] for name, rows in lines.items()}
        done = done if len(lines["metrics"]) == steps else {}
    metrics = {line["step"]: line for line in lines["metrics"] if parse_step(line) is not None}
    evals = {}
    for line in lines["evals"]:
        if (evaluation := parse_evaluation(path.name, line)) is not None:
            evals[evaluation.step, evaluation.name, evaluation.n] = evaluation
    samples = {}
    for line in lines["samples"]:
        step, prompt, text = parse_step(line), printable_text(line.get("prompt")), printable_text(line.get("text"))
        if step is not None and prompt is not None and text is not None:
            samples[step, prompt] = SampledText(path.name, step, prompt, text)
    notices = [line["text"] for line in lines["notices"] if isinstance(line.get("text"), str)]
    return StageData(
        name=path.name,
        metrics=[metrics[step] for step in sorted(metrics)],
        evals=sorted(evals.values(), key=lambda evaluation: (evaluation.step, evaluation.n or 0)),
        samples=sorted(samples.values(), key=lambda evaluation: evaluation.step),
        notices=list(dict.fromkeys(filter(None, notices))),
        done=done,
        parameter_count=count_saved_parameters(path / "checkpoints"),
        plan=read_object(path / "plan.json"),
        plan_changes=len(list(path.glob("plan-*.json"))),
        lines_read={name: len(rows) for name, rows in lines.items()},
    )


def parse_step(line: dict) -> int | None:
    """Returns the step of a line; None where it has none."""
    step = line.get("step")
    return step if type(step) is int and 0 <= step < 2**53 else None


def parse_evaluation(stage: str, line: dict) -> Evaluation | None:
    """Returns a line of evals.jsonl; None where it has no step, no name or no finite value."""
    step, name, value = parse_step(line), printable_text(line.get("name")), finite_number(line.get("value"))
    if step is None or value is None or not name:
        return None
    n, clusters = (
        None if count is None else int(count) for count in map(finite_number, map(line.get, ("n", "clusters")))
    )
    low, high, baseline = (finite_number(line.get(key)) for key in ("low", "high", "baseline"))
    tools, unit = printable_text(line.get("tools")), printable_text(line.get("cluster_unit"))
    return Evaluation(stage, step, name, value, low, high, n, baseline, tools, clusters, unit)


def count_saved_parameters(checkpoints: Path) -> int | None:
    """Returns the newest checkpoint's parameter count from the header of its safetensors file; tensors are not read."""
    for path in sorted(checkpoints.glob("step-*/model.safetensors"), reverse=True):
        try:
            with open(path, "rb") as file:
                length = struct.unpack("<Q", file.read(8))[0]
                header = json.loads(file.read(length)) if length < MAX_FILE_BYTES else {}
            shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
            return sum(math.prod(shape) for shape in shapes)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error):
            continue
    return None


def read_text(path: Path) -> str:
    """Returns the text of a file, "" where it is missing or too large."""
    try:
        return path.read_text("utf-8", "replace") if path.stat().st_size <= MAX_FILE_BYTES else ""
    except OSError:
        return ""


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, or {} if there is none."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def parse_toml(text: str) -> dict[str, Any]:
    """Returns the table in a TOML text, or {} if there is none."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}
