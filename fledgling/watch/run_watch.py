"""What is known of a run that may be training: read a part at a time, kept in bounded memory, returned as JSON values.

A long stage's metrics are thinned: the newest KEPT_LINES are all there, of the older ones fewer and fewer. A run that
resumes replaces its files; what was read of them is then dropped and read again.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from fledgling.config import STAGES
from fledgling.record.run_lock import read_living_holder
from fledgling.report.prediction_pairs import Pair, format_quantity, pair_predictions
from fledgling.report.run_data import (
    Evaluation,
    RunData,
    SampledText,
    StageData,
    count_saved_parameters,
    finite_number,
    nested_table,
    parse_evaluation,
    parse_step,
    parse_toml,
    printable_text,
    read_object,
    read_text,
)
from fledgling.report.summary import run_title
from fledgling.watch.tail import JsonlTail

MAX_LINES, KEPT_LINES = 3000, 600  # of metrics
MAX_EVALUATIONS, MAX_SAMPLES, MAX_NOTICES = 3000, 60, 60
MAX_TEXT = 2000  # characters of a sample or notice
SERIES = (
    "loss",
    "tokens_per_second",
    "mfu",
    "lr_multiplier",
    "gradient_norm",
    "memory",
    "reward",
    "kl",
    "length",
    "accuracy",
    "tokens",
)
RECENT_STEPS = 50  # whose median time the remaining time is computed from


class StageWatch:
    """One stage: its files, and what of them is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tails = {name: JsonlTail(path / f"{name}.jsonl") for name in ("metrics", "evals", "samples", "notices")}
        self.metrics: list[dict[str, Any]] = []
        self.evals: dict[tuple[int, str, int | None], Evaluation] = {}
        self.samples: dict[tuple[int, str], SampledText] = {}
        self.notices: list[str] = []
        self.changed_steps: int | None = None  # of the stage, as a run that has to end in time last changed them
        self.done: dict[str, Any] = {}
        self.plan: dict[str, Any] = {}
        self.changed = 0  # the run's version after the last change

    def update(self, version: int) -> bool:
        """Reads what is new; returns whether there was anything. `version` marks the state with it."""
        new = False
        for name, add in (
            ("metrics", self._add_metrics),
            ("evals", self._add_evaluations),
            ("samples", self._add_samples),
            ("notices", self._add_notices),
        ):
            lines, restarted = self.tails[name].read()
            if restarted:
                getattr(self, name).clear()
            if lines:
                add(lines)
            new |= restarted or bool(lines)
        done = read_object(self.path / "done.json")
        plan = self.plan or read_object(self.path / "plan.json")
        new |= done != self.done or plan != self.plan
        self.done, self.plan = done, plan
        if new:
            self.changed = version
        return new

    def _add_metrics(self, lines: list[dict[str, Any]]) -> None:
        self.metrics += [line for line in lines if parse_step(line) is not None]
        while len(self.metrics) > MAX_LINES:
            older = self.metrics[:-KEPT_LINES]
            self.metrics = older[::2] + self.metrics[-KEPT_LINES:]

    def _add_evaluations(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if (evaluation := parse_evaluation(self.path.name, line)) is not None:
                self.evals[evaluation.step, evaluation.name, evaluation.n] = evaluation
        for key in list(self.evals)[:-MAX_EVALUATIONS]:
            del self.evals[key]

    def _add_samples(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            step, prompt, text = parse_step(line), printable_text(line.get("prompt")), printable_text(line.get("text"))
            if step is not None and prompt is not None and text is not None:
                sample = SampledText(self.path.name, step, prompt[:MAX_TEXT], text[:MAX_TEXT])
                self.samples[step, sample.prompt] = sample
        for key in list(self.samples)[:-MAX_SAMPLES]:
            del self.samples[key]

    def _add_notices(self, lines: list[dict[str, Any]]) -> None:
        texts = [printable_text(line.get("text")) for line in lines]
        self.notices = (self.notices + [text[:MAX_TEXT] for text in texts if text])[-MAX_NOTICES:]
        changes = [steps for line in lines if (steps := finite_number(line.get("total_steps"))) and steps >= 1]
        self.changed_steps = int(changes[-1]) if changes else self.changed_steps

    def to_stage_data(self) -> StageData:
        """Returns the stage as the report's functions take it; of a thinned stage with the metrics that are kept."""
        return StageData(
            name=self.path.name,
            metrics=self.metrics,
            evals=sorted(self.evals.values(), key=lambda evaluation: (evaluation.step, evaluation.n or 0)),
            samples=list(self.samples.values()),
            notices=self.notices,
            done=self.done,
            parameter_count=count_saved_parameters(self.path / "checkpoints"),
            plan=self.plan,
            plan_changes=len(list(self.path.glob("plan-*.json"))),
        )

    def describe(self, total_steps: int | None) -> dict[str, Any]:
        """Returns the stage as JSON. total_steps: as planned."""
        stage, total_steps = self.to_stage_data(), self.changed_steps or total_steps
        columns = {name: [finite_number(line.get(name)) for line in self.metrics] for name in SERIES}
        seconds = [value for line in self.metrics[-RECENT_STEPS:] if (value := finite_number(line.get("seconds")))]
        left = None
        if seconds and total_steps and not self.done:
            left = max(0, total_steps - stage.last_step) * median(seconds)
        return {
            "name": stage.name,
            "step": stage.last_step,
            "total_steps": total_steps,
            "finished": bool(self.done),
            "seconds": stage.seconds,
            "seconds_left": left,
            "steps": [line["step"] for line in self.metrics],
            "series": {name: values for name, values in columns.items() if any(v is not None for v in values)},
            "evals": [asdict(evaluation) for evaluation in stage.evals],
            "samples": [asdict(sample) for sample in stage.samples],
            "notices": self.notices,
            "skipped_bytes": self.tails["metrics"].skipped_bytes,
        }


class RunWatch:
    """A run directory, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 1
        self.stages: dict[str, StageWatch] = {}
        self.recipe_text = ""
        self.holder: dict[str, Any] | None = None
        self.exists = False

    def update(self) -> None:
        """Reads what is new in the run's files; a large file only a part of it, the rest in later calls."""
        self.version += 1
        text, holder = read_text(self.path / "recipe.toml"), read_living_holder(self.path)
        self.recipe_text, self.holder = text, holder
        self.exists = self.path.is_dir()
        for name in STAGES:
            if not (self.path / name).is_dir():
                self.stages.pop(name, None)  # deleted
            elif name not in self.stages:
                self.stages[name] = StageWatch(self.path / name)
        for stage in self.stages.values():
            stage.update(self.version)

    def describe(self, since: int = 0) -> dict[str, Any]:
        """Returns the run as JSON; of the stages only those that have changed after version `since`."""
        recipe = parse_toml(self.recipe_text)
        run = RunData(
            path=self.path,
            recipe_text=self.recipe_text,
            recipe=recipe,
            environment={},
            tokenizer={},
            data={},
            plan=read_object(self.path / "plan.json"),
            stages=[stage.to_stage_data() for stage in self.stages.values()],
        )
        named = recipe.get("stages")
        planned = [name for name in named if name in STAGES] if isinstance(named, list) else []
        order = [name for name in STAGES if name in planned or name in self.stages]
        return {
            "name": run_title(run),
            "path": str(self.path),
            "version": self.version,
            "exists": self.exists,
            "begun": list(self.stages),
            "is_running": self.holder is not None,
            "holder": _describe_holder(self.holder),
            "stages": [
                self.stages[name].describe(_total_steps(recipe, run.plan, self.stages[name].plan, name))
                for name in order
                if name in self.stages and self.stages[name].changed > since
            ],
            "order": order,
            "planned_seconds": {name: _planned_seconds(run.plan, name) for name in order if name not in self.stages},
            "pairs": [_describe_pair(pair) for pair in pair_predictions(run)],
        }

    def describe_batch(self) -> dict[str, Any] | None:
        """Returns the newest batch that the run has written: its step, and for each row pieces of text and whether
        they were learned. None where there is none, or no tokenizer to read it with."""
        batches = [(name, read_object(self.path / name / "batch.json")) for name in self.stages]
        written = [(name, batch) for name, batch in batches if batch]
        if not written:
            return None
        name, batch = written[-1]
        from fledgling.text.tokenizer import Tokenizer  # reads the run's file, at most once for each look

        try:
            pieces = Tokenizer.load(self.path / "tokenizer").token_bytes
            rows = [
                [
                    {"text": pieces[token].decode("utf-8", "replace"), "learned": bool(learned)}
                    for token, learned in zip(row["ids"], row["learned"], strict=True)
                ]
                for row in batch["rows"]
            ]
        except Exception as error:  # a file of another version, or half a run
            return {"stage": name, "problem": f"the batch cannot be shown: {type(error).__name__}"}
        return {"stage": name, "step": parse_step(batch), "rows": rows}


def _describe_pair(pair: Pair) -> dict[str, Any]:
    values = {"predicted_text": pair.predicted, "measured_text": pair.measured}
    texts = {name: format_quantity(pair.key, value) for name, value in values.items()}
    return asdict(pair) | texts | {"label": pair.label, "error": pair.error}


def _total_steps(recipe: dict, run_plan: dict, stage_plan: dict, name: str) -> int | None:
    plan = stage_plan or run_plan
    steps = finite_number(nested_table(recipe, name).get("steps"))
    steps = steps or finite_number(nested_table(plan, "stages", name).get("steps"))
    if steps is None and name == "pretrain":
        steps = finite_number(nested_table(plan, "horizon").get("steps"))
    return int(steps) if steps else None


def _planned_seconds(run_plan: dict, name: str) -> float | None:
    table = nested_table(run_plan, "time") if name == "pretrain" else nested_table(run_plan, "stages", name)
    hours = finite_number(table.get("hours"))
    return None if hours is None else 3600 * hours


def _describe_holder(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return ""
    text = printable_text(f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}")
    return (text or "")[:200]
