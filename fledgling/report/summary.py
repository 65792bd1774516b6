"""Summarizes a run in numbers: the values of `fledgling report --json`, the terminal tables and the page.

The last value of every evaluation is shown with the score of the best constant answer, because a share that a constant
answer also reaches is no evidence.
"""

from bisect import bisect_left
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledgling.record.evaluation_names import WORDINGS, evaluation_label, format_cases, split_evaluation_name
from fledgling.report.prediction_pairs import pair_predictions
from fledgling.report.run_data import (
    Evaluation,
    RunData,
    StageData,
    finite_number,
    load_run_data,
    printable_text,
    steady_median,
)

if TYPE_CHECKING:
    from rich.table import Table

_LEADING = ("bits_per_byte", "core")
_NO_SHARES = ("bits_per_byte", "perplexity_per_")  # exams of a user begin with "questions:", "chat:" or "env:"


def summarize_run(run_dir: Path | str) -> dict[str, Any]:
    """Returns the run as JSON.

    Its keys: run, name, stages, evals, history, predicted, measured, error, differs, unreadable. evals: the last value
    of every evaluation in each stage, {stage, step, name, value, low, high, n, baseline}; history: all of them.
    predicted and measured have the same keys (RUN/plan.json against the files); error is predicted / measured - 1 where
    the two are of the same thing, and differs says of the others what is not alike. unreadable: corrupt files, one line
    each. Raises UserError if there is nothing to report.
    """
    run = load_run_data(run_dir)
    pairs = pair_predictions(run)
    return {
        "run": str(run.path),
        "name": run_title(run),
        "stages": {stage.name: summarize_stage(stage) for stage in run.stages},
        "evals": [asdict(evaluation) for evaluation in final_evaluations(run)],
        "history": [asdict(evaluation) for stage in run.stages for evaluation in stage.evals],
        "predicted": {pair.key: pair.predicted for pair in pairs},
        "measured": {pair.key: pair.measured for pair in pairs},
        "error": {pair.key: pair.error for pair in pairs if pair.error is not None},
        "differs": {pair.key: pair.differs for pair in pairs if pair.differs},
        "unreadable": run.unreadable,
    }


def run_title(run: RunData) -> str:
    """Returns the recipe's name, or the directory's, without characters that reorder text."""
    return printable_text(run.recipe.get("name")) or printable_text(run.path.absolute().name) or ""


def evaluation_names(run: RunData) -> list[str]:
    """Returns the evaluations: bits per byte first, then alphabetically by task, and in the order of `WORDINGS`."""
    names = {evaluation.name for stage in run.stages for evaluation in stage.evals}

    def order(name: str) -> tuple[bool, str, int, str]:
        task, end = split_evaluation_name(name)
        return not name.startswith(_LEADING), task, list(WORDINGS).index(end), name

    return sorted(names, key=order)


def quoted_evaluation_names(run: RunData) -> list[str]:
    """Returns the evaluations that tables show: all but dev sets, by which recipes are tuned."""
    return [name for name in evaluation_names(run) if split_evaluation_name(name)[1] != "_dev"]


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
    return not name.startswith(_NO_SHARES) and all(-1 <= value <= 1 for value in values)


def format_score(value: float | None, share: bool) -> str:
    """Returns the text of an evaluation's value: 81.5 % or 1.493."""
    return "" if value is None else f"{100 * value:.1f} %" if share else f"{value:.3f}"


def format_tools(tools: str | None) -> str:
    """Returns what follows an evaluation's name: the tools that answers could call."""
    return "" if tools is None else ", no tools" if tools == "none" else f", with {tools}"


def format_all_cases(evaluations: list[Evaluation]) -> str:
    """Returns what the values of several stages were measured on: the range of n, and the clusters of the last."""
    counts = sorted({evaluation.n for evaluation in evaluations if evaluation.n is not None})
    last = evaluations[-1]
    if len(counts) < 2:
        return format_cases(last.n, last.clusters, last.cluster_unit)
    return f"{counts[0]:,}–{format_cases(counts[-1], last.clusters, last.cluster_unit)}"


def summarize_stage(stage: StageData) -> dict[str, Any]:
    """Returns the statistics of one stage: steps, tokens, hours, speed, the last loss, whether it has finished.

    hours: of all work, with evaluations, checkpoints and preparation; training_hours: of the steps alone. mfu: the
    median share of the measured peak; peak_flops: [lowest, highest] of that peak, of one rank: each start of the stage
    measures it. loss: of the last step. saving: seconds that training waited for checkpoints, and seconds that the
    writer worked in the background.
    """
    seconds, steps_seconds = stage.seconds, stage.last_metric("training_seconds")
    peaks = stage.metric_series("peak_flops")[1]
    return {
        "finished": bool(stage.done),
        "steps": stage.last_step,
        "tokens": stage.last_metric("tokens"),
        "hours": None if seconds is None else seconds / 3600,
        "training_hours": None if steps_seconds is None else steps_seconds / 3600,
        "tokens_per_second": steady_median(stage, "tokens_per_second"),
        "mfu": steady_median(stage, "mfu"),
        "peak_flops": [min(peaks), max(peaks)] if peaks else None,
        "loss": stage.last_metric("loss"),
        "saving": {"stall": _sum_save_seconds(stage, "save_stall"), "writer": _sum_save_seconds(stage, "save_seconds")},
    }


def _sum_save_seconds(stage: StageData, name: str) -> float | None:
    """Returns the seconds of all saves: those recorded with a step, and the last one, recorded at the end."""
    recorded = [*stage.metric_series(name)[1], finite_number(stage.done.get(name))]
    seconds_known = [seconds for seconds in recorded if seconds is not None]
    return sum(seconds_known) if seconds_known else None


def make_evals_table(run_dir: Path | str) -> "Table":
    """Returns the last evaluations of each stage as a table for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    run = load_run_data(run_dir)
    rows = {(evaluation.stage, evaluation.name): evaluation for evaluation in final_evaluations(run)}
    stages = [stage.name for stage in run.stages if stage.evals]
    table = Table(box=SIMPLE_HEAD, title=Text(f"{run_title(run)}: evaluations, 95 % intervals"), title_justify="left")
    table.add_column("", min_width=11)  # "arithmetic,"
    for stage in stages:
        table.add_column(stage, justify="right")
    table.add_column("best\nconst.", justify="right", style="dim")
    table.add_column("n", justify="right", style="dim")
    names = evaluation_names(run)
    for name in quoted_evaluation_names(run):
        by_stage = [rows.get((stage, name)) for stage in stages]
        is_percent = is_share(name, [evaluation.value for evaluation in by_stage if evaluation])
        present = [evaluation for evaluation in by_stage if evaluation]
        cells = [_format_cell(evaluation, is_percent) for evaluation in by_stage]
        baseline = format_score(present[-1].baseline, is_percent) or "-"
        table.add_row(*map(Text, (evaluation_label(name, names), *cells, baseline, format_all_cases(present))))
    table.caption = Text(_describe_tools(list(rows.values())))
    table.caption_justify = "left"
    return table


def _describe_tools(evaluations: list[Evaluation]) -> str:
    """Returns what the answers could call: one line, by tool where there are several."""
    names: dict[str, list[str]] = {}
    for tools, name in sorted({(e.tools, e.name) for e in evaluations if e.tools}):
        names.setdefault(tools, []).append(name.replace("_", " "))
    if len(names) == 1:
        return f"tools in answers: {next(iter(names))}"
    return "; ".join(f"tools in answers of {', '.join(parts)}: {tools}" for tools, parts in names.items())


def _format_cell(evaluation: Evaluation | None, is_percent: bool) -> str:
    if evaluation is None:
        return "-"
    if evaluation.low is None or evaluation.high is None:
        return format_score(evaluation.value, is_percent)
    if is_percent:
        return f"{100 * evaluation.value:.1f} % ({100 * evaluation.low:.0f}-{100 * evaluation.high:.0f})"
    return f"{evaluation.value:.3f} ± {(evaluation.high - evaluation.low) / 2:.3f}"
