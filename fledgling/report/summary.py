"""The run in numbers: what `fledgling report --json`, the table in the terminal and the page all show.

The one idea: of every evaluation the last value of each stage stands beside the best constant answer,
because a share that "always 1" reaches too says nothing.
"""

from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fledgling.report.run_data import Evaluation, RunData, StageData, finite_number, load_run_data, nested_table

if TYPE_CHECKING:
    from rich.table import Table

WARM_STEPS = 3  # the first steps compile: speeds leave them out when there are more
PREDICTION_LABELS = {"hours": "time", "mfu": "MFU", "usd": "cost", "flops": "FLOPs", "memory": "peak memory"}
_LEADING = ("bits_per_byte", "core")
_NO_SHARES = ("bits", "loss", "perplexity", "length", "tokens", "seconds")


def summarize_run(run_dir: Path | str) -> dict[str, Any]:
    """The run as JSON: {"run", "name", "stages", "evals", "history", "predicted", "measured", "error"}.

    evals: the last value of every evaluation in each stage, {stage, step, name, value, low, high, n,
    baseline}; history: all of them. predicted and measured have the same keys (RUN/plan.json against the
    files); error is predicted / measured - 1. Raises UserError when there is nothing to report.
    """
    run = load_run_data(run_dir)
    predicted, measured = predicted_and_measured(run)
    return {
        "run": str(run.path),
        "name": run_title(run),
        "stages": {stage.name: summarize_stage(stage) for stage in run.stages},
        "evals": [asdict(one) for one in final_evaluations(run)],
        "history": [asdict(one) for stage in run.stages for one in stage.evals],
        "predicted": predicted,
        "measured": measured,
        "error": prediction_errors(predicted, measured),
    }


def run_title(run: RunData) -> str:
    """The recipe's name, or the directory's."""
    name = run.recipe.get("name")
    return name if isinstance(name, str) and name else run.path.absolute().name


def evaluation_names(run: RunData) -> list[str]:
    """The evaluations: bits per byte first, then by the alphabet, each task before its unseen wordings."""
    found = {one.name for stage in run.stages for one in stage.evals}
    return sorted(found, key=lambda name: (not name.startswith(_LEADING), name.removesuffix("_unseen"), name))


def final_evaluations(run: RunData) -> list[Evaluation]:
    """The last value of every evaluation in each stage, by stage and name."""
    last = {(one.stage, one.name): one for stage in run.stages for one in stage.evals}
    order = evaluation_names(run)
    return [last[stage.name, name] for stage in run.stages for name in order if (stage.name, name) in last]


def is_share(name: str, values: list[float]) -> bool:
    """Whether an evaluation is a share that reads well in percent."""
    return not any(word in name for word in _NO_SHARES) and all(-1 <= value <= 1 for value in values)


def format_value(value: float | None, share: bool) -> str:
    """A value of an evaluation: 81.5 % or 1.493."""
    return "" if value is None else f"{100 * value:.1f} %" if share else f"{value:.3f}"


def drop_warmup_steps(steps: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """A metric without its first steps, in which compiling is counted."""
    first = WARM_STEPS if len(steps) > WARM_STEPS else 0
    return steps[first:], values[first:]


def steady_median(stage: StageData, name: str) -> float | None:
    """The median of a metric once the stage runs warm."""
    values = drop_warmup_steps(*stage.metric_series(name))[1]
    return median(values) if values else None


def summarize_stage(stage: StageData) -> dict[str, Any]:
    """What one stage did: steps, tokens, hours, speed, the last loss, whether it has finished.

    saving: seconds that training stood still for checkpoints, and seconds that the writer worked beside it.
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
    """The seconds of all saves together: those told beside a step, and those of the last one, told at the end."""
    told = [*stage.metric_series(name)[1], finite_number(stage.done.get(name))]
    known = [seconds for seconds in told if seconds is not None]
    return sum(known) if known else None


def hourly_price(run: RunData) -> float | None:
    """US dollars an hour for all devices together, as the plan has it."""
    hours, dollars = (
        finite_number(nested_table(run.plan, "time").get("hours")),
        finite_number(nested_table(run.plan, "cost").get("usd")),
    )
    return dollars / hours if hours and dollars is not None else None


def predicted_and_measured(run: RunData) -> tuple[dict[str, float], dict[str, float]]:
    """(predicted, measured): the figures that RUN/plan.json foretold and the files can confirm, same keys.

    flops are the tokens that were seen times the FLOPs of one; memory is the peak of live tensors that a step was
    measured to have (`fledgling/runtime/memory.py`); hours, tokens and dollars only of stages that have finished.
    """
    plans, price = nested_table(run.plan, "stages"), hourly_price(run)
    per_token = finite_number(nested_table(run.plan, "flops").get("per_token"))
    foretold: dict[str, Any] = {"parameters": nested_table(run.plan, "parameters").get("total")}
    found: dict[str, Any] = {
        "parameters": next((s.parameter_count for s in run.stages[::-1] if s.parameter_count), None)
    }
    for stage in run.stages:
        name, planned, now = stage.name, dict(nested_table(plans, stage.name)), summarize_stage(stage)
        if name == "pretrain":
            planned |= {
                **nested_table(run.plan, "horizon"),
                **nested_table(run.plan, "time"),
                **nested_table(run.plan, "flops"),
            }
            planned["flops"] = planned.pop("total", None)
            planned["usd"] = nested_table(run.plan, "cost").get("usd")
        if stage.done and per_token and now["tokens"]:
            now["flops"] = per_token * now["tokens"]
        if stage.done and price is not None and stage.seconds:
            now["usd"] = price * stage.seconds / 3600
        now["memory"] = max(stage.metric_series("memory")[1], default=None)
        for key in ("steps", "tokens", "hours", "tokens_per_second", "mfu", "flops", "usd", "memory"):
            foretold[f"{name}.{key}"] = planned.get(key)
            always = key in ("mfu", "tokens_per_second", "memory")
            found[f"{name}.{key}"] = now.get(key) if stage.done or always else None
    both = [
        key for key in foretold if finite_number(foretold[key]) is not None and finite_number(found[key]) is not None
    ]
    return {key: foretold[key] for key in both}, {key: found[key] for key in both}


def prediction_errors(predicted: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """How far each prediction was off, as a share of what was measured; left out where that is nothing."""
    return {key: predicted[key] / found - 1 for key, found in measured.items() if found}


def make_evals_table(run_dir: Path | str) -> "Table":
    """The last evaluations of each stage as a table for the terminal, intervals below one another."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    run = load_run_data(run_dir)
    rows = {(one.stage, one.name): one for one in final_evaluations(run)}
    stages = [stage.name for stage in run.stages if stage.evals]
    made = Table(box=SIMPLE_HEAD, title=Text(f"{run_title(run)}: evaluations, 95 % intervals"), title_justify="left")
    made.add_column("", min_width=10)
    for stage in stages:
        made.add_column(stage, justify="right")
    made.add_column("best\nconst.", justify="right", style="dim")
    made.add_column("n", justify="right", style="dim")
    for name in evaluation_names(run):
        found = [rows.get((stage, name)) for stage in stages]
        share = is_share(name, [one.value for one in found if one])
        last = next(one for one in found[::-1] if one)
        cells = [_cell(one, share) for one in found]
        constant = format_value(last.baseline, share) or "-"
        made.add_row(*map(Text, (name.replace("_", " "), *cells, constant, "-" if last.n is None else f"{last.n:,}")))
    return made


def _cell(one: Evaluation | None, share: bool) -> str:
    if one is None:
        return "-"
    if one.low is None or one.high is None:
        return format_value(one.value, share)
    if share:
        return f"{100 * one.value:.1f} % ({100 * one.low:.0f}-{100 * one.high:.0f})"
    return f"{one.value:.3f} ± {(one.high - one.low) / 2:.3f}"


def make_predictions_table(run_dir: Path | str) -> "Table":
    """Predicted, measured and the prediction's error as a table for the terminal; no rows where nothing was planned."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    predicted, measured = predicted_and_measured(load_run_data(run_dir))
    off = prediction_errors(predicted, measured)
    made = Table(box=SIMPLE_HEAD, title="predicted and measured", title_justify="left")
    for name in ("", "predicted", "measured", "error"):
        made.add_column(name, justify="right" if name else "left")
    for key, value in predicted.items():
        *stage, what = key.split(".")
        name = " ".join([*stage, PREDICTION_LABELS.get(what, what.replace("_", " "))])
        made.add_row(name, f"{value:,.4g}", f"{measured[key]:,.4g}", f"{off[key]:+.1%}" if key in off else "-")
    return made
