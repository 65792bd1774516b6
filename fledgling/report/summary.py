"""Summarizes a run in numbers: the values of `fledgling report --json`, the terminal tables and the page.

The last value of every evaluation is shown with the score of the best constant answer, because a share that a constant
answer also reaches is no evidence.
"""

from bisect import bisect_left
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fledgling.report.run_data import Evaluation, RunData, StageData, finite_number, load_run_data, nested_table

if TYPE_CHECKING:
    from rich.table import Table

WARM_STEPS = 3  # the first steps compile, so speeds ignore them if there are more
PREDICTION_LABELS = {"hours": "time", "mfu": "MFU", "usd": "cost", "flops": "FLOPs", "memory": "peak memory"}
_LEADING = ("bits_per_byte", "core")
_NO_SHARES = ("bits", "loss", "perplexity", "length", "tokens", "seconds")


def summarize_run(run_dir: Path | str) -> dict[str, Any]:
    """Returns the run as JSON: {"run", "name", "stages", "evals", "history", "predicted", "measured", "error"}.

    evals: the last value of every evaluation in each stage, {stage, step, name, value, low, high, n, baseline};
    history: all of them. predicted and measured have the same keys (RUN/plan.json against the files); error is
    predicted / measured - 1. Raises UserError if there is nothing to report.
    """
    run = load_run_data(run_dir)
    predicted, measured = predicted_and_measured(run)
    return {
        "run": str(run.path),
        "name": run_title(run),
        "stages": {stage.name: summarize_stage(stage) for stage in run.stages},
        "evals": [asdict(evaluation) for evaluation in final_evaluations(run)],
        "history": [asdict(evaluation) for stage in run.stages for evaluation in stage.evals],
        "predicted": predicted,
        "measured": measured,
        "error": prediction_errors(predicted, measured),
    }


def run_title(run: RunData) -> str:
    """Returns the recipe's name, or the directory's."""
    name = run.recipe.get("name")
    return name if isinstance(name, str) and name else run.path.absolute().name


def evaluation_names(run: RunData) -> list[str]:
    """Returns the evaluations: bits per byte first, then alphabetically, each task before its unseen wordings."""
    names = {evaluation.name for stage in run.stages for evaluation in stage.evals}
    return sorted(names, key=lambda name: (not name.startswith(_LEADING), name.removesuffix("_unseen"), name))


def final_evaluations(run: RunData) -> list[Evaluation]:
    """Returns the last value of every evaluation in each stage, over the most cases, by stage and name."""
    last = {(evaluation.stage, evaluation.name): evaluation for stage in run.stages for evaluation in stage.evals}
    order = evaluation_names(run)
    return [last[stage.name, name] for stage in run.stages for name in order if (stage.name, name) in last]


def split_by_cases(evaluations: list[Evaluation]) -> list[list[Evaluation]]:
    """Returns evaluations of one name as one series for each n, the longest first; no line joins two of them."""
    series: dict[int | None, list[Evaluation]] = {}
    for evaluation in evaluations:
        series.setdefault(evaluation.n, []).append(evaluation)
    return sorted(series.values(), key=len, reverse=True)


def value_at(steps: list[float], values: list[float], step: float) -> float:
    """Returns a running sum at a step: linear from 0 at step 0 and between the recorded steps."""
    after = bisect_left(steps, step)
    if after == len(steps):
        return values[-1]
    low_step, low = (steps[after - 1], values[after - 1]) if after else (0.0, 0.0)
    share = (step - low_step) / (steps[after] - low_step) if steps[after] > low_step else 1.0
    return low + share * (values[after] - low)


def is_share(name: str, values: list[float]) -> bool:
    """Returns whether an evaluation is a share that is shown in percent."""
    return not any(word in name for word in _NO_SHARES) and all(-1 <= value <= 1 for value in values)


def format_value(value: float | None, share: bool) -> str:
    """Returns the text of an evaluation's value: 81.5 % or 1.493."""
    return "" if value is None else f"{100 * value:.1f} %" if share else f"{value:.3f}"


def drop_warmup_steps(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Returns a metric without its first steps, which include compilation."""
    first = WARM_STEPS if len(steps) > WARM_STEPS else 0
    return steps[first:], values[first:]


def steady_median(stage: StageData, name: str) -> float | None:
    """Returns the median of a metric after the warm-up steps."""
    values = drop_warmup_steps(*stage.metric_series(name))[1]
    return median(values) if values else None


def summarize_stage(stage: StageData) -> dict[str, Any]:
    """Returns the statistics of one stage: steps, tokens, hours, speed, the last loss, whether it has finished.

    saving: seconds that training waited for checkpoints, and seconds that the writer worked in the background.
    """
    seconds = stage.seconds
    return {
        "finished": bool(stage.done),
        "steps": stage.last_step,
        "tokens": stage.last_metric("tokens"),
        "hours": None if seconds is None else seconds / 3600,
        "tokens_per_second": steady_median(stage, "tokens_per_second"),
        "mfu": steady_median(stage, "mfu"),
        "loss": stage.last_metric("loss"),
        "saving": {"stall": _saving(stage, "save_stall"), "writer": _saving(stage, "save_seconds")},
    }


def _saving(stage: StageData, name: str) -> float | None:
    """Returns the seconds of all saves: those recorded with a step, and the last one, recorded at the end."""
    recorded = [*stage.metric_series(name)[1], finite_number(stage.done.get(name))]
    seconds_known = [seconds for seconds in recorded if seconds is not None]
    return sum(seconds_known) if seconds_known else None


def hourly_price(run: RunData) -> float | None:
    """Returns US dollars per hour for all devices together, from the plan."""
    hours, dollars = (
        finite_number(nested_table(run.plan, "time").get("hours")),
        finite_number(nested_table(run.plan, "cost").get("usd")),
    )
    return dollars / hours if hours and dollars is not None else None


def predicted_and_measured(run: RunData) -> tuple[dict[str, float], dict[str, float]]:
    """Returns (predicted, measured): the values of RUN/plan.json that the files can confirm, with the same keys.

    flops are the tokens seen times the FLOPs per token; memory is the measured peak of live tensors of a step; hours,
    tokens and dollars only of finished stages.
    """
    plans, price = nested_table(run.plan, "stages"), hourly_price(run)
    per_token = finite_number(nested_table(run.plan, "flops").get("per_token"))
    predicted: dict[str, Any] = {"parameters": nested_table(run.plan, "parameters").get("total")}
    measured: dict[str, Any] = {
        "parameters": next((s.parameter_count for s in run.stages[::-1] if s.parameter_count), None)
    }
    for stage in run.stages:
        name, planned, stats = stage.name, dict(nested_table(plans, stage.name)), summarize_stage(stage)
        if name == "pretrain":
            planned |= {
                **nested_table(run.plan, "horizon"),
                **nested_table(run.plan, "time"),
                **nested_table(run.plan, "flops"),
            }
            planned["flops"] = planned.pop("total", None)
            planned["usd"] = nested_table(run.plan, "cost").get("usd")
        if stage.done and per_token and stats["tokens"]:
            stats["flops"] = per_token * stats["tokens"]
        if stage.done and price is not None and stage.seconds:
            stats["usd"] = price * stage.seconds / 3600
        stats["memory"] = max(stage.metric_series("memory")[1], default=None)
        for key in ("steps", "tokens", "hours", "tokens_per_second", "mfu", "flops", "usd", "memory"):
            predicted[f"{name}.{key}"] = planned.get(key)
            needs_no_end = key in ("mfu", "tokens_per_second", "memory")
            measured[f"{name}.{key}"] = stats.get(key) if stage.done or needs_no_end else None
    common = [
        key
        for key in predicted
        if finite_number(predicted[key]) is not None and finite_number(measured[key]) is not None
    ]
    return {key: predicted[key] for key in common}, {key: measured[key] for key in common}


def prediction_errors(predicted: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """Returns the error of each prediction as a share of the measured value; zero measurements are left out."""
    return {key: predicted[key] / value - 1 for key, value in measured.items() if value}


def make_evals_table(run_dir: Path | str) -> "Table":
    """Returns the last evaluations of each stage as a table for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    run = load_run_data(run_dir)
    rows = {(evaluation.stage, evaluation.name): evaluation for evaluation in final_evaluations(run)}
    stages = [stage.name for stage in run.stages if stage.evals]
    table = Table(box=SIMPLE_HEAD, title=Text(f"{run_title(run)}: evaluations, 95 % intervals"), title_justify="left")
    table.add_column("", min_width=10)
    for stage in stages:
        table.add_column(stage, justify="right")
    table.add_column("best\nconst.", justify="right", style="dim")
    table.add_column("n", justify="right", style="dim")
    for name in evaluation_names(run):
        by_stage = [rows.get((stage, name)) for stage in stages]
        is_percent = is_share(name, [evaluation.value for evaluation in by_stage if evaluation])
        last = next(evaluation for evaluation in by_stage[::-1] if evaluation)
        cells = [_cell(evaluation, is_percent) for evaluation in by_stage]
        baseline = format_value(last.baseline, is_percent) or "-"
        table.add_row(*map(Text, (name.replace("_", " "), *cells, baseline, "-" if last.n is None else f"{last.n:,}")))
    return table


def _cell(evaluation: Evaluation | None, is_percent: bool) -> str:
    if evaluation is None:
        return "-"
    if evaluation.low is None or evaluation.high is None:
        return format_value(evaluation.value, is_percent)
    if is_percent:
        return f"{100 * evaluation.value:.1f} % ({100 * evaluation.low:.0f}-{100 * evaluation.high:.0f})"
    return f"{evaluation.value:.3f} ± {(evaluation.high - evaluation.low) / 2:.3f}"


def make_predictions_table(run_dir: Path | str) -> "Table":
    """Returns predicted, measured and error as a table for the terminal; no rows if nothing was planned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    predicted, measured = predicted_and_measured(load_run_data(run_dir))
    errors = prediction_errors(predicted, measured)
    table = Table(box=SIMPLE_HEAD, title="predicted and measured", title_justify="left")
    for name in ("", "predicted", "measured", "error"):
        table.add_column(name, justify="right" if name else "left")
    for key, value in predicted.items():
        *stage, quantity = key.split(".")
        name = " ".join([*stage, PREDICTION_LABELS.get(quantity, quantity.replace("_", " "))])
        table.add_row(name, f"{value:,.4g}", f"{measured[key]:,.4g}", f"{errors[key]:+.1%}" if key in errors else "-")
    return table
