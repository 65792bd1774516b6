"""Builds the HTML page of a run: charts and tables made here, laid out by run.html.

The template receives finished values and escapes every one of them; only report/chart.py makes markup.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fledgling.config import DEFAULT_STAGES
from fledgling.record import write_text
from fledgling.record.evaluation_names import WORDINGS, evaluation_label, split_evaluation_name
from fledgling.record.jsonl import format_bytes
from fledgling.record.progress_bar import format_count, format_duration
from fledgling.report import summary as numbers
from fledgling.report.chart import Chart, Line, render_bar, render_chart, running_mean
from fledgling.report.forecasts import describe_other_steps, forecast_rows
from fledgling.report.page_footer import add_digest, hash_code
from fledgling.report.prediction_pairs import hourly_price, pair_predictions
from fledgling.report.provenance import data_rows, environment_rows, reading_rows
from fledgling.report.run_data import (
    RunData,
    StageData,
    drop_warmup_steps,
    finite_number,
    load_run_data,
    nested_table,
    steady_median,
)
from fledgling.report.samples import describe_left_out_samples, sample_groups
from fledgling.report.template import render_page

MAX_EVALS = 60
STAGE_COLORS = {name: color for color, name in enumerate((*DEFAULT_STAGES, "dpo"))}
WORDINGS_COLORS = {"": 4, "_test": 5, "_practice": 1, "_dev": 3, "_practised": 1, "_unseen": 3}
_RL_METRICS = ("reward", "pass_at_group", "length", "entropy", "kl", "clip_fraction", "accuracy", "margin")
COMPRESSOR_PREFIX = "bits_per_byte of "  # the bits per byte of a compressor: a level, not a curve


def build_report(run_dir: Path | str, path: Path | None = None) -> Path:
    """Writes the page to `path`, by default RUN/report.html; returns it. Raises UserError if nothing is recorded."""
    run = load_run_data(run_dir)
    path = path or run.path / "report.html"
    write_text(path, render_report(run))
    return path


def render_report(run: RunData) -> str:
    """Returns the page of a run as HTML: a function of the run's files, except the footer (`page_footer`)."""
    return add_digest(render_page("report", "run.html", **run_page_contents(run)))


def run_page_contents(run: RunData) -> dict[str, Any]:
    """Returns the values of the template."""
    description = run.recipe.get("description")
    return {
        "title": numbers.run_title(run),
        "description": description if isinstance(description, str) else "",
        "tiles": run_tiles(run),
        "stage_names": [stage.name for stage in run.stages if stage.evals],
        "eval_rows": eval_rows(run),
        "eval_charts": eval_charts(run),
        "loss_charts": loss_charts(run),
        "rl_charts": rl_charts(run),
        "speed_charts": speed_charts(run),
        "stages": stage_rows(run),
        "reading": reading_rows(run),
        "predictions": prediction_rows(run),
        "forecasts": forecast_rows(run),
        "other_steps": describe_other_steps(run),
        "samples": sample_groups(run),
        "left_out": {"evals": describe_left_out_evals(run), "samples": describe_left_out_samples(run)},
        "notices": [(stage.name, text) for stage in run.stages for text in stage.notices],
        "unreadable": run.unreadable,
        "recipe": run.recipe_text,
        "environment": environment_rows(run),
        "data": data_rows(run),
        "lines_read": json.dumps(run.lines_read),
        "code": hash_code(),
    }


# ---- tables ----


def format_seconds(seconds: float | None) -> str:
    """Returns a duration as text."""
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < 100 else format_duration(seconds) + (" h" if seconds >= 3600 else " min")


def format_percent(value: float) -> str:
    """Returns a fraction as whole percent."""
    return f"{100 * value:.0f} %"


def run_tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Returns the headline numbers: (number, what it is, small print)."""
    tiles = []
    last_values = numbers.final_evaluations(run)
    bits = [e for e in last_values if e.name == "bits_per_byte"]
    if bits:
        tiles.append((f"{bits[-1].value:.3f}", "bits per byte", f"after {bits[-1].stage}"))
    weights = next((stage.parameter_count for stage in run.stages[::-1] if stage.parameter_count), None)
    planned = finite_number(nested_table(run.plan, "parameters").get("total"))
    if weights or planned:
        is_planned = "" if weights else "planned: no checkpoint is left"
        tiles.append((format_count(weights or planned or 0), "parameters", is_planned or _model_shape(run)))
    tokens = [stage.last_metric("tokens") for stage in run.stages]
    if any(tokens):
        small = f"in {len(run.stages)} stages, repetitions and padding included"
        tiles.append((format_count(sum(filter(None, tokens))), "token positions", small))
    seconds = [stage.seconds for stage in run.stages if stage.seconds]
    if seconds:
        price = hourly_price(run.plan)
        note = "evaluations included, pauses left out"
        note += f"; about ${price * sum(seconds) / 3600:,.2f}" if price else ""
        tiles.append((format_seconds(sum(seconds)), "time", note))
    for stage in run.stages:
        if speed := steady_median(stage, "tokens_per_second"):
            mfu = steady_median(stage, "mfu")
            small = stage.name + (f", MFU {100 * mfu:.1f} %" if mfu else "")
            tiles.append((format_count(speed), "tokens per second of a median step", small))
            break
    return tiles


def _model_shape(run: RunData) -> str:
    model = nested_table(run.plan, "model") or nested_table(run.recipe, "model")
    depth, width = finite_number(model.get("depth")), finite_number(model.get("width"))
    return f"{depth:.0f} layers" + (f" of width {width:.0f}" if width else "") if depth else ""


def eval_rows(run: RunData) -> list[dict[str, Any]]:
    """Returns one row per evaluation: a cell per stage, then the best constant answer of the last stage, and n.

    n is a range where the stages measured different numbers of cases.
    """
    last = {(e.stage, e.name): e for e in numbers.final_evaluations(run)}
    stages = [stage.name for stage in run.stages if stage.evals]
    rows = []
    names = numbers.evaluation_names(run)
    for name in numbers.quoted_evaluation_names(run)[:MAX_EVALS]:
        by_stage = [last.get((stage, name)) for stage in stages]
        present = [e for e in by_stage if e]
        is_percent = numbers.is_share(name, [e.value for e in present])
        cells: list[dict[str, Any] | None] = []
        for e in by_stage:
            if e is None:
                cells.append(None)
                continue
            interval = ""
            if e.low is not None and e.high is not None:
                interval = f"{100 * e.low:.0f}–{100 * e.high:.0f}" if is_percent else f"{e.low:.3f}–{e.high:.3f}"
            chart_bar = render_bar(e.value, e.low, e.high, e.baseline, STAGE_COLORS[e.stage]) if is_percent else ""
            cells.append({"value": numbers.format_score(e.value, is_percent), "span": interval, "bar": chart_bar})
        latest = present[-1]
        baseline = numbers.format_score(latest.baseline, is_percent) or "–"
        n = numbers.format_all_cases(present)
        label = evaluation_label(name, names) + numbers.format_tools(latest.tools)
        rows.append({"name": label, "cells": cells, "constant": baseline, "n": n})
    return rows


def describe_left_out_evals(run: RunData) -> str:
    """Returns a sentence on the evaluations beyond the page's rows, or ""."""
    count = len(numbers.quoted_evaluation_names(run)) - MAX_EVALS
    return f"{count} more evaluations are in evals.jsonl of each stage." if count > 0 else ""


def stage_rows(run: RunData) -> list[tuple[str, ...]]:
    """Returns state, steps, tokens, time, time of the steps, speed, MFU, saving and cost of each stage as cells."""
    price = hourly_price(run.plan)
    rows: list[tuple[str, ...]] = []
    for stage in run.stages:
        stats = numbers.summarize_stage(stage)
        speed, mfu, seconds = stats["tokens_per_second"], stats["mfu"], stage.seconds
        rows.append(
            (
                stage.name,
                "finished" if stats["finished"] else "unfinished",
                f"{stats['steps']:,}",
                format_count(stats["tokens"]) if stats["tokens"] else "–",
                format_seconds(seconds),
                format_seconds(stage.last_metric("training_seconds")),
                format_count(speed) if speed else "–",
                f"{100 * mfu:.1f} %{_format_peak(stats['peak_flops'])}" if mfu else "–",
                format_stall(stats["saving"]["stall"], seconds),
                f"${price * seconds / 3600:,.2f}" if price and seconds else "–",
            )
        )
    return rows


def _format_peak(peaks: list[float] | None) -> str:
    """Returns the peak that a share is of, as text; each start of a stage measures it."""
    if not peaks:
        return ""
    values = dict.fromkeys(f"{peak / 1e9:,.4g}" for peak in peaks)
    return f" of {' to '.join(values)} GFLOP/s"


def format_stall(stall: float | None, seconds: float | None) -> str:
    """Returns the seconds that training waited for checkpoints, and their share of the stage's time."""
    if stall is None or not seconds:
        return "–"
    return f"{stall:.2f} s, {100 * stall / seconds:.2f} %"


def prediction_rows(run: RunData) -> list[tuple[str, str, str, str]]:
    """Returns (quantity, predicted, measured, error of the prediction or what is not alike)."""
    rows = []
    for pair in pair_predictions(run):
        format_value = _formatter_for(pair.key)
        error = pair.differs or "–" if pair.error is None else f"{100 * pair.error:+.1f} %"
        rows.append((pair.label, format_value(pair.predicted), format_value(pair.measured), error))
    return rows


def _formatter_for(key: str) -> Callable[[float], str]:
    """Returns the function that formats values of this key."""
    if key.endswith("hours"):
        return lambda value: format_seconds(3600 * value)
    if key.endswith("mfu"):
        return lambda value: f"{100 * value:.1f} %"
    if key.endswith("usd"):
        return lambda value: f"${value:,.2f}"
    return partial(format_bytes, binary=True) if key.endswith("memory") else format_count


# ---- drawings ----


def loss_charts(run: RunData) -> list[tuple[str, Markup]]:
    """Returns one chart per stage: each step's loss faint, its running mean strong; tokens on the top axis."""
    charts = []
    for stage in run.stages:
        steps, losses = stage.metric_series("loss")
        if stage.name == "rl" or not steps:
            continue
        lines = [
            Line("loss of the step", steps, losses, color=STAGE_COLORS[stage.name], faint=True),
            Line("running mean", steps, running_mean(losses), color=STAGE_COLORS[stage.name]),
        ]
        logarithmic = min(losses) > 0 and max(losses) / min(losses) > 1.5
        chart = Chart(stage.name, lines, logarithmic=logarithmic, top_axis=_tokens_at(stage))
        charts.append((stage.name, render_chart(chart)))
    return charts


def _tokens_at(stage: StageData) -> tuple[str, Callable[[float], str]] | None:
    """Returns the axis of the tokens seen at a step; None if not recorded."""
    steps, tokens = stage.metric_series("tokens")
    if not tokens or not steps[-1]:
        return None
    return "tokens", lambda step: format_count(numbers.value_at(steps, tokens, step))


def rl_charts(run: RunData) -> list[tuple[str, Markup]]:
    """Returns the metrics of reinforcement learning: reward, share of groups with a right answer, length, ..."""
    charts = []
    for stage in run.stages:
        for name in _RL_METRICS:
            steps, values = stage.metric_series(name)
            if not steps:
                continue
            shares = ("reward", "pass_at_group", "clip_fraction", "accuracy")
            is_percent = numbers.is_share(name, values) and name in shares
            lines = [
                Line("of the step", steps, values, color=STAGE_COLORS[stage.name], faint=True),
                Line("running mean", steps, running_mean(values, 0.1), color=STAGE_COLORS[stage.name]),
            ]
            chart = Chart(name, lines, floor=0.0 if is_percent else None)
            charts.append((f"{stage.name}: {name.replace('_', ' ')}", render_chart(chart)))
    return charts


def speed_charts(run: RunData) -> list[tuple[str, Markup]]:
    """Returns tokens per second of each stage, and MFU if known."""
    charts = []
    position = _step_positions(run)
    for name, label, format_y in (
        ("tokens_per_second", "tokens per second", format_count),
        ("mfu", "MFU of the product measured here", format_percent),
        ("mfu_datasheet", "MFU of the datasheet's peak", format_percent),
    ):
        if name == "mfu_datasheet" and not any(stage.metric_series(name)[1] for stage in run.stages):
            continue  # a CPU has no datasheet
        lines = []
        for stage in run.stages:
            steps, values = drop_warmup_steps(*stage.metric_series(name))
            xs = [position(stage.name, step) for step in steps]
            lines.append(Line(stage.name, xs, running_mean(values), color=STAGE_COLORS[stage.name]))
        charts.append((label, render_chart(Chart(label, lines, format_y=format_y, floor=0.0, **_stage_axis(run)))))
    return charts


def _stage_lengths(run: RunData) -> dict[str, int]:
    """Returns the number of steps of each stage."""
    return {stage.name: max([1, stage.last_step, *(e.step for e in stage.evals)]) for stage in run.stages}


def _step_positions(run: RunData) -> Callable[[str, float], float]:
    """Returns a function from (stage, step) to the x position, with stages next to each other, each one unit wide.

    Equal widths: the last stage often has a hundredth of the first stage's steps and is the most interesting one.
    """
    lengths = _stage_lengths(run)
    order = list(lengths)
    return lambda stage, step: order.index(stage) + step / lengths[stage]


def _stage_axis(run: RunData) -> dict[str, Any]:
    """Returns the axis for `_step_positions`: a line at the start of each stage, its last step at its end."""
    lengths = _stage_lengths(run)
    return {
        "x_label": "steps of each stage",
        "marks": list(enumerate(lengths)),
        "x_ticks": [(0.0, "0"), *((i + 1.0, f"{steps:,}") for i, steps in enumerate(lengths.values()))],
    }


def eval_charts(run: RunData) -> list[tuple[str, Markup]]:
    """Returns one chart per task over all stages: its sets of wordings, 95 % bands, the best constant answer."""
    known_names = numbers.evaluation_names(run)[:MAX_EVALS]
    tasks = dict.fromkeys(split_evaluation_name(name)[0] for name in known_names)
    charts = []
    for task in tasks:
        if task.startswith(COMPRESSOR_PREFIX):
            continue
        variants = [name for name in known_names if split_evaluation_name(name)[0] == task]
        values = [e.value for stage in run.stages for e in stage.evals if e.name in variants]
        is_percent = numbers.is_share(task, values)
        lines = [line for name in variants for line in _eval_lines(run, name, is_alone=variants == [task])]
        lines += _constant_line(run, variants)
        lines += _compared_lines(run) if task == COMPRESSOR_PREFIX.split()[0] else []
        chart = Chart(
            task,
            lines,
            format_y=format_percent if is_percent else lambda value: f"{value:.3g}",
            floor=0.0 if is_percent else None,
            ceiling=1.0 if is_percent else None,
            **_stage_axis(run),
        )
        charts.append((task.replace("_", " "), render_chart(chart)))
    return charts


def _compared_lines(run: RunData) -> list[Line]:
    """Returns the bits per byte of each compressor on the same text, as a level line across all stages."""
    position = _step_positions(run)
    positions = [position(e.stage, e.step) for stage in run.stages for e in stage.evals]
    levels = [e for stage in run.stages for e in stage.evals if e.name.startswith(COMPRESSOR_PREFIX)]
    ends = [min(positions), max(positions)] if positions else []
    return [
        Line(e.name.removeprefix(COMPRESSOR_PREFIX), ends, [e.value] * 2, color=6, dashed=True) for e in levels if ends
    ]


def _eval_lines(run: RunData, name: str, is_alone: bool) -> list[Line]:
    """Returns one line for each number of cases, dashed except the longest."""
    position = _step_positions(run)
    lines: list[Line] = []
    end = split_evaluation_name(name)[1]
    series = numbers.split_by_cases([e for stage in run.stages for e in stage.evals if e.name == name])
    for evaluations in series:
        label = "value" if is_alone else f"{WORDINGS[end]} wordings"
        line = Line(
            label + (f", n {evaluations[0].n}" if len(series) > 1 else ""),
            [position(e.stage, e.step) for e in evaluations],
            [e.value for e in evaluations],
            lows=[e.low for e in evaluations],
            highs=[e.high for e in evaluations],
            color=WORDINGS_COLORS[end],
            dots=True,
            dashed=bool(lines),
            point_labels=[f"{e.stage} step {e.step:,}" for e in evaluations],
        )
        lines.append(line)
    return lines


def _constant_line(run: RunData, names: list[str]) -> list[Line]:
    """Returns the best constant answer to the questions of the first exam that has one, in its longest series."""
    position = _step_positions(run)
    for name in names:
        series = numbers.split_by_cases([e for stage in run.stages for e in stage.evals if e.name == name])
        points = [(position(e.stage, e.step), e.baseline) for e in series[0] if e.baseline is not None]
        if points:
            xs, scores = zip(*points, strict=True)
            return [Line("best constant answer", xs, scores, color=6, dashed=True)]
    return []
