"""One self-contained page about a run: drawings and tables made here, laid out by page.html.

The one idea: the template gets finished values and escapes every one of them; only report/chart.py makes markup.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fledgling.config import DEFAULT_STAGES
from fledgling.record import write_text
from fledgling.record.jsonl import format_bytes
from fledgling.record.progress_bar import format_count, format_duration
from fledgling.report import summary as numbers
from fledgling.report.chart import Chart, Line, render_bar, render_chart, running_mean
from fledgling.report.run_data import RunData, SampledText, StageData, finite_number, load_run_data, nested_table
from fledgling.report.template import render_page

MAX_PROMPTS, MAX_ANSWERS, MAX_TEXT_CHARACTERS = 16, 8, 1200
MAX_EVALS = 60
STAGE_COLORS = {name: colour for colour, name in enumerate((*DEFAULT_STAGES, "dpo"))}
_RL_METRICS = ("reward", "pass_at_group", "length", "entropy", "kl", "clip_share", "accuracy", "margin")

COMPRESSOR_PREFIX = "bits_per_byte of "  # evaluations of this name say what a compressor needs: levels, not curves


def build_report(run_dir: Path | str) -> Path:
    """Write RUN/report.html and return its path. Raises UserError when there is nothing to report."""
    run = load_run_data(run_dir)
    path = run.path / "report.html"
    write_text(path, render_page("report", "page.html", **run_page_contents(run)))
    return path


def run_page_contents(run: RunData) -> dict[str, Any]:
    """Everything the template shows."""
    description = run.recipe.get("description")
    return {
        "title": numbers.run_title(run),
        "description": description if isinstance(description, str) else "",
        "tiles": run_tiles(run),
        "stage_names": [stage.name for stage in run.stages if stage.evals],
        "eval_rows": eval_rows(run),
        "eval_charts": eval_charts(run),
        "loss_charts": loss_charts(run),
        "extra_charts": rl_charts(run),
        "speed_charts": speed_charts(run),
        "stages": stage_rows(run),
        "pairs": prediction_rows(run),
        "samples": sample_groups(run),
        "notices": [(stage.name, text) for stage in run.stages for text in stage.notices],
        "recipe": run.recipe_text,
        "environment": environment_rows(run),
        "data": data_rows(run),
    }


# ---- figures ----------------------------------------------------------------------------------------


def format_seconds(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < 100 else format_duration(seconds) + (" h" if seconds >= 3600 else " min")


def format_percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def run_tiles(run: RunData) -> list[tuple[str, str, str]]:
    """The run at a glance: (figure, what it is, small print)."""
    made = []
    finals = numbers.final_evaluations(run)
    bits = [one for one in finals if one.name == "bits_per_byte"]
    if bits:
        made.append((f"{bits[-1].value:.3f}", "bits per byte", f"after {bits[-1].stage}"))
    weights = finite_number(nested_table(run.plan, "parameters").get("total")) or next(
        (stage.parameter_count for stage in run.stages[::-1] if stage.parameter_count), None
    )
    if weights:
        made.append((format_count(weights), "parameters", _model_shape(run)))
    tokens = [stage.last_metric("tokens") for stage in run.stages]
    if any(tokens):
        made.append((format_count(sum(filter(None, tokens))), "tokens seen", f"in {len(run.stages)} stages"))
    seconds = [stage.seconds for stage in run.stages if stage.seconds]
    if seconds:
        price = numbers.hourly_price(run)
        money = f"about ${price * sum(seconds) / 3600:,.2f}" if price else "of work, pauses left out"
        made.append((format_seconds(sum(seconds)), "time", money))
    first = next((stage for stage in run.stages if numbers.steady_median(stage, "tokens_per_second")), None)
    if first:
        mfu = numbers.steady_median(first, "mfu")
        speed = format_count(numbers.steady_median(first, "tokens_per_second"))
        made.append((speed, "tokens a second", f"{first.name}" + (f", MFU {100 * mfu:.1f} %" if mfu else "")))
    return made


def _model_shape(run: RunData) -> str:
    model = nested_table(run.plan, "model") or nested_table(run.recipe, "model")
    depth, width = finite_number(model.get("depth")), finite_number(model.get("width"))
    return f"{depth:.0f} layers" + (f" of width {width:.0f}" if width else "") if depth else ""


def eval_rows(run: RunData) -> list[dict[str, Any]]:
    """One row an evaluation: a cell a stage, then the best constant answer and n of the last stage."""
    last = {(one.stage, one.name): one for one in numbers.final_evaluations(run)}
    stages = [stage.name for stage in run.stages if stage.evals]
    rows = []
    for name in numbers.evaluation_names(run)[:MAX_EVALS]:
        found = [last.get((stage, name)) for stage in stages]
        known = [one for one in found if one]
        share = numbers.is_share(name, [one.value for one in known])
        cells = []
        for one in found:
            if one is None:
                cells.append(None)
                continue
            span = ""
            if one.low is not None and one.high is not None:
                span = f"{100 * one.low:.0f}–{100 * one.high:.0f}" if share else f"{one.low:.3f}–{one.high:.3f}"
            drawn = render_bar(one.value, one.low, one.high, one.baseline, STAGE_COLORS[one.stage]) if share else ""
            cells.append({"value": numbers.format_value(one.value, share), "span": span, "bar": drawn})
        end = known[-1]
        constant = numbers.format_value(end.baseline, share) or "–"
        n = "–" if end.n is None else f"{end.n:,}"
        rows.append({"name": evaluation_label(name), "cells": cells, "constant": constant, "n": n})
    return rows


def evaluation_label(name: str) -> str:
    """An evaluation's name as people say it."""
    task, unseen, _ = name.partition("_unseen")
    return task.replace("_", " ") + (", new wordings" if unseen else "")


def stage_rows(run: RunData) -> list[dict[str, str]]:
    """Time, tokens, speed and cost of each stage."""
    price = numbers.hourly_price(run)
    rows = []
    for stage in run.stages:
        now = numbers.summarize_stage(stage)
        speed, mfu, seconds = now["tokens_per_second"], now["mfu"], stage.seconds
        rows.append(
            {
                "name": stage.name,
                "state": "finished" if now["finished"] else "unfinished",
                "steps": f"{now['steps']:,}",
                "tokens": format_count(now["tokens"]) if now["tokens"] else "–",
                "time": format_seconds(seconds),
                "speed": format_count(speed) if speed else "–",
                "mfu": f"{100 * mfu:.1f} %" if mfu else "–",
                "saving": format_stall(now["saving"]["stall"], seconds),
                "cost": f"${price * seconds / 3600:,.2f}" if price and seconds else "–",
            }
        )
    return rows


def format_stall(stall: float | None, seconds: float | None) -> str:
    """How long a stage stood still to save, and which share of its time that is."""
    if stall is None or not seconds:
        return "–"
    return f"{stall:.2f} s, {100 * stall / seconds:.2f} %"


def prediction_rows(run: RunData) -> list[tuple[str, str, str, str]]:
    """(what, predicted, measured, error of the prediction)."""
    predicted, measured = numbers.predicted_and_measured(run)
    off = numbers.prediction_errors(predicted, measured)
    rows = []
    for key, plan in predicted.items():
        say = _formatter_for(key)
        error = f"{100 * off[key]:+.1f} %" if key in off else "–"
        *stage, what = key.split(".")
        label = {"hours": "time", "mfu": "MFU", "usd": "cost", "flops": "FLOPs", "memory": "peak memory"}.get(
            what, what.replace("_", " ")
        )
        rows.append((" ".join([*stage, label]), say(plan), say(measured[key]), error))
    return rows


def _formatter_for(key: str) -> Callable[[float], str]:
    if key.endswith("hours"):
        return lambda value: format_seconds(3600 * value)
    if key.endswith("mfu"):
        return lambda value: f"{100 * value:.1f} %"
    if key.endswith("usd"):
        return lambda value: f"${value:,.2f}"
    return format_bytes if key.endswith("memory") else format_count


def environment_rows(run: RunData) -> list[tuple[str, str]]:
    """The environment, flat and in words."""
    rows = []
    for key, value in run.environment.items():
        if key == "memory" and finite_number(value):
            value = format_bytes(value)
        if isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        if value is not None:
            rows.append((key.replace("_", " "), str(value)[:300]))
    return rows


def data_rows(run: RunData) -> list[dict[str, str]]:
    """What the run was trained on: counts and a fingerprint of each prepared set, and the tokenizer."""
    rows = []
    for name, manifest in run.data.items():
        tokens, documents = finite_number(manifest.get("tokens")), finite_number(manifest.get("documents"))
        digest = nested_table(manifest, "files", "tokens.bin").get("sha256")
        rows.append(
            {
                "name": name,
                "documents": f"{documents:,.0f}" if documents is not None else "–",
                "tokens": format_count(tokens) if tokens is not None else "–",
                "fingerprint": digest[:16] if isinstance(digest, str) else "–",
            }
        )
    if run.tokenizer:
        entries, mark = finite_number(run.tokenizer.get("vocab_size")), run.tokenizer.get("fingerprint")
        text = mark[:16] if isinstance(mark, str) else "–"
        made_of = f"{entries:,.0f} entries" if entries else "–"
        rows.append({"name": "tokenizer", "documents": "–", "tokens": made_of, "fingerprint": text})
    return rows


# ---- drawings ---------------------------------------------------------------------------------------


def loss_charts(run: RunData) -> list[tuple[str, Markup]]:
    """One chart a stage: each step's loss faint, its running mean strong; tokens on the axis above."""
    made = []
    for stage in run.stages:
        steps, losses = stage.metric_series("loss")
        if stage.name == "rl" or not steps:
            continue
        lines = [
            Line("loss of the step", steps, losses, color=STAGE_COLORS[stage.name], faint=True),
            Line("running mean", steps, running_mean(losses), color=STAGE_COLORS[stage.name]),
        ]
        wide = min(losses) > 0 and max(losses) / min(losses) > 1.5
        chart = Chart(stage.name, lines, logarithmic=wide, top_axis=_tokens_at(stage))
        made.append((stage.name, render_chart(chart)))
    return made


def _tokens_at(stage: StageData) -> tuple[str, Callable[[float], str]] | None:
    """The axis of the tokens seen at a step, by the last line's rate; None where they were not recorded."""
    steps, tokens = stage.metric_series("tokens")
    if not tokens or not steps[-1]:
        return None
    return "tokens", lambda step: format_count(tokens[-1] * step / steps[-1])


def rl_charts(run: RunData) -> list[tuple[str, Markup]]:
    """What reinforcement learning watches: reward, share of groups with a right answer, length."""
    made = []
    for stage in run.stages:
        for name in _RL_METRICS:
            steps, values = stage.metric_series(name)
            if not steps:
                continue
            share = numbers.is_share(name, values) and name in ("reward", "pass_at_group", "clip_share", "accuracy")
            lines = [
                Line("of the step", steps, values, color=STAGE_COLORS[stage.name], faint=True),
                Line("running mean", steps, running_mean(values, 0.1), color=STAGE_COLORS[stage.name]),
            ]
            chart = Chart(name, lines, floor=0.0 if share else None)
            made.append((f"{stage.name}: {name.replace('_', ' ')}", render_chart(chart)))
    return made


def speed_charts(run: RunData) -> list[tuple[str, Markup]]:
    """Tokens a second of each stage, and MFU where it is known."""
    made = []
    place = _step_positions(run)
    for name, label, say in (("tokens_per_second", "tokens a second", format_count), ("mfu", "MFU", format_percent)):
        lines = []
        for stage in run.stages:
            steps, values = numbers.drop_warmup_steps(*stage.metric_series(name))
            xs = [place(stage.name, step) for step in steps]
            lines.append(Line(stage.name, xs, running_mean(values), color=STAGE_COLORS[stage.name]))
        made.append((label, render_chart(Chart(label, lines, format_y=say, floor=0.0, **_stage_axis(run)))))
    return made


def _stage_lengths(run: RunData) -> dict[str, int]:
    """The steps of each stage."""
    return {stage.name: max([1, stage.last_step, *(one.step for one in stage.evals)]) for stage in run.stages}


def _step_positions(run: RunData) -> Callable[[str, int], float]:
    """Where a step of a stage lies when the stages stand side by side, each one unit wide.

    Equal widths: the last stage is often a hundredth of the first, and the one people look at.
    """
    lengths = _stage_lengths(run)
    order = list(lengths)
    return lambda stage, step: order.index(stage) + step / lengths[stage]


def _stage_axis(run: RunData) -> dict[str, Any]:
    """The axis that goes with `_places`: a line where each stage begins, its last step where it ends."""
    lengths = _stage_lengths(run)
    return {
        "x_label": "steps of each stage",
        "marks": [(place, name) for place, name in enumerate(lengths)],
        "x_ticks": [
            (0.0, "0"),
            *((place + 1.0, f"{steps:,}") for place, steps in enumerate(lengths.values())),
        ],
    }


def eval_charts(run: RunData) -> list[tuple[str, Markup]]:
    """One chart a task over all stages: seen and new wordings, 95 % bands, the best constant answer."""
    found = numbers.evaluation_names(run)[:MAX_EVALS]
    tasks = [name for name in found if name.removesuffix("_unseen") not in found or not name.endswith("_unseen")]
    tasks = [name for name in tasks if not name.startswith(COMPRESSOR_PREFIX)]
    made = []
    for task in tasks:
        both = [name for name in (task, f"{task}_unseen") if name in found]
        values = [one.value for stage in run.stages for one in stage.evals if one.name in both]
        share = numbers.is_share(task, values)
        lines = [line for name in both for line in _eval_lines(run, name, unseen=name != task)]
        lines += _compared_lines(run) if task == COMPRESSOR_PREFIX.split()[0] else []
        chart = Chart(
            task,
            lines,
            format_y=format_percent if share else lambda value: f"{value:.3g}",
            floor=0.0 if share else None,
            ceiling=1.0 if share else None,
            **_stage_axis(run),
        )
        made.append((evaluation_label(task), render_chart(chart)))
    return made


def _compared_lines(run: RunData) -> list[Line]:
    """What each compressor needs for the same text, as a level line across all stages."""
    place = _step_positions(run)
    every = [place(one.stage, one.step) for stage in run.stages for one in stage.evals]
    levels = [one for stage in run.stages for one in stage.evals if one.name.startswith(COMPRESSOR_PREFIX)]
    ends = [min(every), max(every)] if every else []
    return [
        Line(one.name.removeprefix(COMPRESSOR_PREFIX), ends, [one.value] * 2, color=6, dashed=True)
        for one in levels
        if ends
    ]


def _eval_lines(run: RunData, name: str, unseen: bool) -> list[Line]:
    place = _step_positions(run)
    ones = [one for stage in run.stages for one in stage.evals if one.name == name]
    xs = [place(one.stage, one.step) for one in ones]
    line = Line(
        "new wordings" if unseen else "value",
        xs,
        [one.value for one in ones],
        lows=[one.low for one in ones],
        highs=[one.high for one in ones],
        color=5 if unseen else 4,
        dots=True,
        point_labels=[f"{one.stage} step {one.step:,}" for one in ones],
    )
    constant = [(x, one.baseline) for x, one in zip(xs, ones, strict=True) if one.baseline is not None]
    if unseen or not constant:
        return [line]
    return [line, Line("best constant answer", *zip(*constant, strict=True), color=6, dashed=True)]


# ---- samples ----------------------------------------------------------------------------------------


def sample_groups(run: RunData) -> list[dict[str, Any]]:
    """Prompts in the order they were first tried, each with what was answered as training went on."""
    groups: dict[str, list[SampledText]] = {}
    for stage in run.stages:
        for sample in stage.samples:
            groups.setdefault(sample.prompt, []).append(sample)
    made = []
    for prompt, samples in list(groups.items())[:MAX_PROMPTS]:
        count = min(MAX_ANSWERS, len(samples))
        chosen = [samples[round(i * (len(samples) - 1) / max(1, count - 1))] for i in range(count)]
        answers = [{"stage": s.stage, "step": f"{s.step:,}", "text": _shorten(s.text)} for s in chosen]
        made.append({"prompt": _shorten(prompt), "answers": answers})
    return made


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[:MAX_TEXT_CHARACTERS] + " …"
