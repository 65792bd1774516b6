"""Pairs of what RUN/plan.json predicted and what the files of the run measured: like with like.

Both numbers of a pair are of the same span of time and, if they are shares, of the same peak; where they are not of the
same thing, the pair says what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledgling.record.jsonl import format_bytes
from fledgling.report.run_data import (
    RunData,
    StageData,
    finite_number,
    load_run_data,
    nested_table,
    steady_median,
)

if TYPE_CHECKING:
    from rich.table import Table

LABELS = {"hours": "time of the steps without compiling", "mfu": "MFU of the plan's peak", "usd": "cost of the steps"}
LABELS |= {"memory": "peak memory", "tokens_per_second": "tokens per second of a median step"}
ASSUMED_LENGTHS = "predicted for assumed lengths of prompts and answers"
CHANGED = "predicted before the stage was resumed with other settings"
BOUNDED_STAGES = ("rl", "dpo")  # whose rows have a length that only the run knows
BOUNDED = ("tokens", "hours", "usd", "tokens_per_second", "memory")
OF_FINISHED_STAGES = ("steps", "tokens", "hours", "usd")


@dataclass(frozen=True)
class Pair:
    """One quantity, predicted and measured.

    key: "parameters" or "STAGE.QUANTITY". differs: what is not alike, or "".
    """

    key: str
    predicted: float
    measured: float
    differs: str = ""

    @property
    def label(self) -> str:
        """What the numbers are of."""
        *stage, quantity = self.key.split(".")
        return " ".join([*stage, LABELS.get(quantity, quantity)])

    @property
    def error(self) -> float | None:
        """The prediction's error as a share of the measured value; None where that is 0 or the pair is not alike."""
        return self.predicted / self.measured - 1 if self.measured and not self.differs else None


def hourly_price(plan: dict[str, Any]) -> float | None:
    """Returns US dollars per hour for all devices together, from a plan."""
    hours, dollars = (
        finite_number(nested_table(plan, "time").get("hours")),
        finite_number(nested_table(plan, "cost").get("usd")),
    )
    return dollars / hours if hours and dollars is not None else None


def pair_predictions(run: RunData) -> list[Pair]:
    """Returns the values of the plans that the files can confirm, each with its measured value.

    A stage is compared with its own plan, which was written before its first step and never again; without one, with
    the plan of the run. Where it was resumed with other settings, its pairs say so and have no error. Hours and dollars
    are those of the steps alone, as planned: `training_seconds`, without evaluations, checkpoints, preparation and
    compiling in the first step. MFU is the measured speed as a share of the peak that the plan refers to. Memory is the
    highest level of live tensors in a step. Steps, tokens, hours and dollars are compared only for finished stages.
    """
    parameters = next((stage.parameter_count for stage in run.stages[::-1] if stage.parameter_count), None)
    pairs = [_make_pair("parameters", nested_table(run.plan, "parameters").get("total"), parameters)]
    for stage in run.stages:
        planned, measured = _collect_predictions(stage.plan or run.plan, stage.name), _collect_measurements(run, stage)
        for quantity, value in measured.items():
            if quantity in OF_FINISHED_STAGES and not stage.done:
                continue
            is_bound = stage.name in BOUNDED_STAGES and quantity in BOUNDED
            differs = CHANGED if stage.plan_changes else ASSUMED_LENGTHS if is_bound else ""
            pairs.append(_make_pair(f"{stage.name}.{quantity}", planned.get(quantity), value, differs))
    return [pair for pair in pairs if pair is not None]


def _make_pair(key: str, predicted: Any, measured: Any, differs: str = "") -> Pair | None:
    predicted, measured = finite_number(predicted), finite_number(measured)
    return None if predicted is None or measured is None else Pair(key, predicted, measured, differs)


def _collect_predictions(plan: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the predictions of a stage; those of pretraining are in sections of their own, too."""
    planned = dict(nested_table(plan, "stages", name))
    if name == "pretrain":
        planned |= {**nested_table(plan, "horizon"), **nested_table(plan, "time")}
        planned["usd"] = nested_table(plan, "cost").get("usd")
    return planned


def _collect_measurements(run: RunData, stage: StageData) -> dict[str, float | None]:
    """Returns what a stage's files say about each predicted quantity."""
    plan = stage.plan or run.plan
    price, speed = hourly_price(plan), steady_median(stage, "tokens_per_second")
    seconds = _measure_steps(stage, speed)
    hours = None if seconds is None else seconds / 3600
    hardware = nested_table(plan, "hardware")
    peak, ranks = finite_number(hardware.get("peak_flops")), finite_number(hardware.get("ranks"))
    planned = nested_table(plan, "stages", stage.name)  # a plan of an earlier version has one figure for all stages
    per_token = finite_number(planned.get("flops_per_token", nested_table(plan, "flops").get("per_token")))
    return {
        "steps": stage.last_step,
        "tokens": stage.last_metric("tokens"),
        "hours": hours,
        "tokens_per_second": speed,
        "mfu": per_token * speed / (peak * ranks) if per_token and speed and peak and ranks else None,
        "usd": None if price is None or hours is None else price * hours,
        "memory": max(stage.metric_series("memory")[1], default=None),
    }


def _measure_steps(stage: StageData, speed: float | None) -> float | None:
    """Returns the seconds of a stage's steps, the first counted like the others: it compiles, which no plan predicts.

    speed: the usual tokens per second.
    """
    seconds = stage.last_metric("training_seconds")
    (steps, times), (counted, tokens) = stage.metric_series("training_seconds"), stage.metric_series("tokens")
    if seconds is None or not speed or steps[:1] != [1] or counted[:1] != [1]:
        return seconds
    return seconds - max(0.0, times[0] - tokens[0] / speed)


def make_predictions_table(run_dir: Path | str) -> Table:
    """Returns predicted, measured and error as a table for the terminal; no rows if nothing was planned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title="predicted and measured", title_justify="left")
    for name in ("", "predicted", "measured", "error"):
        table.add_column(name, justify="right" if name else "left")
    for pair in pair_predictions(load_run_data(run_dir)):
        error = pair.differs if pair.error is None else f"{pair.error:+.1%}"
        values = (format_quantity(pair.key, value) for value in (pair.predicted, pair.measured))
        table.add_row(pair.label, *values, error or "-")
    return table


def format_quantity(key: str, value: float) -> str:
    """Returns the value of a pair with its unit; hours below 1 are in seconds."""
    quantity = key.rpartition(".")[2]
    if quantity == "hours":
        return f"{value:,.4g} h" if value >= 1 else f"{3600 * value:,.4g} s"
    if quantity == "mfu":
        return f"{100 * value:,.4g} %"
    if quantity == "memory":
        return format_bytes(value, binary=True)
    return f"${value:,.4g}" if quantity == "usd" else f"{value:,.0f}"
