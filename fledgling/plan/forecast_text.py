"""A run with a budget as text: what it is made of, and what it expects, before its first step."""

from __future__ import annotations

from fledgling.config.load import parse_recipe
from fledgling.plan.budgeted_run import BudgetedRun
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.interval import Forecast
from fledgling.plan.parameters import count_parameters
from fledgling.plan.stage_seconds import EVALUATIONS
from fledgling.record.forecast_names import forecast_label, format_forecast, format_forecast_interval
from fledgling.record.progress_bar import format_count, format_duration


def format_budgeted_run(run: BudgetedRun) -> str:
    """Returns the choice and its forecast in lines."""
    config = run.recipe.resolve_model()
    made, speed = [stage for stage in run.stages if stage.steps], run.speed.flops / training_flops_per_token(config)
    size = f"depth {config.depth} x {config.width}, {format_count(count_parameters(config)['total'])} parameters"
    times = [f"{stage.name} {stage.steps:,.0f} steps, {format_duration(stage.seconds)}" for stage in made]
    rest = sum(stage.seconds for stage in run.stages if not stage.steps)
    before = run.planned["seconds"] - sum(stage.seconds for stage in run.stages)
    if before >= 0.5:
        times.insert(0, f"measuring {format_duration(before)}")
    lines = [
        f"{run.budget.text}: {size}, on {run.ranks} x {run.device} at {format_count(speed)} tokens/s "
        f"({run.speed.source}); law for the size: {run.law}",
        "; ".join([*times, f"the rest {format_duration(rest)}"]),
    ]
    wanted = parse_recipe(run.given).stages
    if left_out := [name for name in wanted if name not in run.recipe.stages]:
        lines.append(f"no time for {', '.join(left_out)}")
    if text := EVALUATIONS[run.evaluations].text:
        lines.append(f"to save time: {text}")
    rows = [
        ("expected", "", "90 % interval", "independent runs"),
        *(forecast_row(forecast) for forecast in run.forecasts),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for index, row in enumerate(rows):
        note = run.forecasts[index - 1].note if index else ""
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([*cells, note]).rstrip())
    return "\n".join(lines)


def forecast_row(forecast: Forecast) -> tuple[str, str, str, str]:
    """Returns a forecast's label, value, interval, and the number of independent past runs that it is from."""
    value, interval = (
        format_forecast(forecast.name, forecast.value),
        format_forecast_interval(forecast.name, forecast.low, forecast.high),
    )
    return forecast_label(forecast.name), value, interval, str(forecast.runs)
