"""What a run with a budget expected of itself (RUN/forecast.json), next to what its files measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fledgling.record.budget_end import OUTSIDE
from fledgling.record.evaluation_names import split_evaluation_name
from fledgling.record.forecast_names import (
    BITS,
    MEMORY,
    SECONDS,
    forecast_label,
    format_forecast,
    format_forecast_interval,
)
from fledgling.report.run_data import RunData, finite_number, load_run_data, printable_text
from fledgling.report.summary import final_evaluations

if TYPE_CHECKING:
    from rich.table import Table

NO_EXAMS = ("bits_per_byte", "zeros", "core", "share_")
MAX_FORECASTS = 100


@dataclass(frozen=True)
class ForecastPair:
    """One quantity: its forecast with the 90 % interval, and its measurement (None: not measured, or not yet)."""

    name: str
    value: float
    low: float
    high: float
    measured: float | None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the measurement lies in the interval, or is printed like an end of it; None without one."""
        if self.measured is None:
            return None
        return self.low <= self.measured <= self.high or self.format(self.measured) in self._printed_ends

    @property
    def _printed_ends(self) -> tuple[str, str]:
        return self.format(self.low), self.format(self.high)

    @property
    def label(self) -> str:
        """What the numbers are of."""
        return forecast_label(self.name)

    @property
    def interval(self) -> str:
        """The interval as text."""
        return format_forecast_interval(self.name, self.low, self.high)

    def format(self, value: float | None) -> str:
        """Returns a value as text."""
        return "-" if value is None else format_forecast(self.name, value)


def is_exam(name: str) -> bool:
    """Returns whether an evaluation is an exam that a forecast is made of: in training or in test wordings."""
    return not name.startswith(NO_EXAMS) and split_evaluation_name(name)[1] in ("", "_test")


def measure_run(run: RunData) -> dict[str, float]:
    """Returns what a finished run measured of the quantities that are forecast, by their names."""
    last = {(evaluation.stage, evaluation.name): evaluation.value for evaluation in final_evaluations(run)}
    values: dict[str, float | None] = {
        SECONDS: finite_number(run.spent.get("seconds")) if run.spent.get("finished") is True else None,
        MEMORY: max((value for stage in run.stages for value in stage.metric_series("memory")[1]), default=None),
    }
    done = [stage.name for stage in run.stages if stage.done]
    if done:
        values[f"{done[0]} {BITS}"] = last.get((done[0], BITS))
        values[BITS] = last.get((done[-1], BITS))
        values |= {name: value for (stage, name), value in last.items() if stage == done[-1] and is_exam(name)}
    return {name: value for name, value in values.items() if value is not None}


def pair_forecasts(run: RunData) -> list[ForecastPair]:
    """Returns the forecasts of a run with their measurements; [] for a run without a budget.

    What was trained outside of the budget since is no measurement of the run that was forecast.
    """
    measured, pairs = {} if run.has_steps_after_end else measure_run(run), []
    listed = run.forecast.get("forecasts")
    for entry in listed[:MAX_FORECASTS] if isinstance(listed, list) else []:
        if not isinstance(entry, dict):
            continue
        name, note = printable_text(entry.get("name")), printable_text(entry.get("note")) or ""
        value, low, high = (finite_number(entry.get(key)) for key in ("value", "low", "high"))
        if name and value is not None and low is not None and high is not None:
            pairs.append(ForecastPair(name, value, low, high, measured.get(name), note))
    return pairs


def describe_other_steps(run: RunData) -> str:
    """Returns a line that names the finished stages with another number of steps than was forecast; "" without one."""
    listed = run.forecast.get("stages")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    expected = {str(entry.get("name")): finite_number(entry.get("steps")) for entry in entries}
    changed = [
        f"{stage.name} {stage.last_step:,}, {planned:,.0f} expected"
        for stage in run.stages
        if stage.done and (planned := expected.get(stage.name)) and round(planned) != stage.last_step
    ]
    return f"bits per byte and exams are of other steps than expected: {'; '.join(changed)}" if changed else ""


def forecast_rows(run: RunData) -> list[tuple[str, str, str, str, str]]:
    """Returns (quantity, forecast, 90 % interval, measured, whether it lies in the interval)."""
    rows = []
    for pair in pair_forecasts(run):
        outcome = {True: "inside", False: "OUTSIDE", None: "-"}[pair.holds]
        rows.append((pair.label, pair.format(pair.value), pair.interval, pair.format(pair.measured), outcome))
    return rows


def make_forecasts_table(run_dir: Path | str) -> Table:
    """Returns forecast and measurement as a table for the terminal; no rows without a forecast."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    run = load_run_data(run_dir)
    since = f" ({OUTSIDE})" if run.has_steps_after_end else ""
    table = Table(box=SIMPLE_HEAD, title=f"expected and measured{since}", title_justify="left", caption_justify="left")
    table.caption = describe_other_steps(run) or None
    for name in ("", "expected", "90 % interval", "measured", ""):
        table.add_column(name, justify="right" if name else "left")
    for row in forecast_rows(run):
        table.add_row(*row)
    return table
