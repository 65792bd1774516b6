"""One self-contained page about a run: drawings and tables made here, laid out by page.html.

The one idea: the template gets finished values and escapes every one of them; only report/chart.py makes markup.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fledgling.config import USUAL
from fledgling.record import write_text
from fledgling.record.lines import size
from fledgling.record.progress import clock, short
from fledgling.report import summary as numbers
from fledgling.report.chart import Chart, Line, bar, draw, smooth
from fledgling.report.gather import Run, Sample, Stage, gather, number, table
from fledgling.report.template import render

MOST_PROMPTS, MOST_ANSWERS, MOST_LETTERS = 16, 8, 1200
MOST_EVALS = 60
COLOUR = {name: colour for colour, name in enumerate((*USUAL, "dpo"))}
_EXTRAS = ("reward", "pass_at_group", "length", "entropy", "kl", "clip_share", "accuracy", "margin")

COMPARED = "bits_per_byte of "  # evaluations of this name say what a compressor needs: levels, not curves


def build(run_dir: Path | str) -> Path:
    """Write RUN/report.html and return its path. Raises UserError when there is nothing to report."""
    run = gather(run_dir)
    path = run.path / "report.html"
    write_text(path, render("report", "page.html", **contents(run)))
    return path


def contents(run: Run) -> dict[str, Any]:
    """Everything the template shows."""
    description = run.recipe.get("description")
    return {
        "title": numbers.title(run),
        "description": description if isinstance(description, str) else "",
        "tiles": tiles(run),
        "stage_names": [stage.name for stage in run.stages if stage.evals],
        "eval_rows": eval_rows(run),
        "eval_charts": eval_charts(run),
        "loss_charts": loss_charts(run),
        "extra_charts": extra_charts(run),
        "speed_charts": speed_charts(run),
        "stages": stage_rows(run),
        "pairs": pair_rows(run),
        "samples": sample_groups(run),
        "notices": [(stage.name, text) for stage in run.stages for text in stage.notices],
        "recipe": run.recipe_text,
        "environment": environment_rows(run),
        "data": data_rows(run),
    }


# ---- figures ----------------------------------------------------------------------------------------


def hours(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < 100 else clock(seconds) + (" h" if seconds >= 3600 else " min")


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """The run at a glance: (figure, what it is, small print)."""
    made = []
    finals = numbers.finals(run)
    bits = [one for one in finals if one.name == "bits_per_byte"]
    if bits:
        made.append((f"{bits[-1].value:.3f}", "bits per byte", f"after {bits[-1].stage}"))
    weights = number(table(run.plan, "parameters").get("total")) or next(
        (stage.weights for stage in run.stages[::-1] if stage.weights), None
    )
    if weights:
        made.append((short(weights), "parameters", _shape(run)))
    tokens = [stage.last("tokens") for stage in run.stages]
    if any(tokens):
        made.append((short(sum(filter(None, tokens))), "tokens seen", f"in {len(run.stages)} stages"))
    seconds = [stage.seconds for stage in run.stages if stage.seconds]
    if seconds:
        price = numbers.hourly(run)
        money = f"about ${price * sum(seconds) / 3600:,.2f}" if price else "of work, pauses left out"
        made.append((hours(sum(seconds)), "time", money))
    first = next((stage for stage in run.stages if numbers.steady(stage, "tokens_per_second")), None)
    if first:
        mfu = numbers.steady(first, "mfu")
        speed = short(numbers.steady(first, "tokens_per_second"))
        made.append((speed, "tokens a second", f"{first.name}" + (f", MFU {100 * mfu:.1f} %" if mfu else "")))
    return made


def _shape(run: Run) -> str:
    model = table(run.plan, "model") or table(run.recipe, "model")
    depth, width = number(model.get("depth")), number(model.get("width"))
    return f"{depth:.0f} layers" + (f" of width {width:.0f}" if width else "") if depth else ""


def eval_rows(run: Run) -> list[dict[str, Any]]:
    """One row an evaluation: a cell a stage, then the best constant answer and n of the last stage."""
    last = {(one.stage, one.name): one for one in numbers.finals(run)}
    stages = [stage.name for stage in run.stages if stage.evals]
    rows = []
    for name in numbers.names(run)[:MOST_EVALS]:
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
            drawn = bar(one.value, one.low, one.high, one.baseline, COLOUR[one.stage]) if share else ""
            cells.append({"value": numbers.shown(one.value, share), "span": span, "bar": drawn})
        end = known[-1]
        constant = numbers.shown(end.baseline, share) or "–"
        n = "–" if end.n is None else f"{end.n:,}"
        rows.append({"name": words(name), "cells": cells, "constant": constant, "n": n})
    return rows


def words(name: str) -> str:
    """An evaluation's name as people say it."""
    task, unseen, _ = name.partition("_unseen")
    return task.replace("_", " ") + (", new wordings" if unseen else "")


def stage_rows(run: Run) -> list[dict[str, str]]:
    """Time, tokens, speed and cost of each stage."""
    price = numbers.hourly(run)
    rows = []
    for stage in run.stages:
        now = numbers.pace(stage)
        speed, mfu, seconds = now["tokens_per_second"], now["mfu"], stage.seconds
        rows.append(
            {
                "name": stage.name,
                "state": "finished" if now["finished"] else "unfinished",
                "steps": f"{now['steps']:,}",
                "tokens": short(now["tokens"]) if now["tokens"] else "–",
                "time": hours(seconds),
                "speed": short(speed) if speed else "–",
                "mfu": f"{100 * mfu:.1f} %" if mfu else "–",
                "saving": saving(now["saving"]["stall"], seconds),
                "cost": f"${price * seconds / 3600:,.2f}" if price and seconds else "–",
            }
        )
    return rows


def saving(stall: float | None, seconds: float | None) -> str:
    """How long a stage stood still to save, and which share of its time that is."""
    if stall is None or not seconds:
        return "–"
    return f"{stall:.2f} s, {100 * stall / seconds:.2f} %"


def pair_rows(run: Run) -> list[tuple[str, str, str, str]]:
    """(what, predicted, measured, error of the prediction)."""
    predicted, measured = numbers.pairs(run)
    off = numbers.errors(predicted, measured)
    rows = []
    for key, plan in predicted.items():
        say = _unit(key)
        error = f"{100 * off[key]:+.1f} %" if key in off else "–"
        *stage, what = key.split(".")
        label = {"hours": "time", "mfu": "MFU", "usd": "cost", "flops": "FLOPs", "memory": "peak memory"}.get(
            what, what.replace("_", " ")
        )
        rows.append((" ".join([*stage, label]), say(plan), say(measured[key]), error))
    return rows


def _unit(key: str) -> Callable[[float], str]:
    if key.endswith("hours"):
        return lambda value: hours(3600 * value)
    if key.endswith("mfu"):
        return lambda value: f"{100 * value:.1f} %"
    if key.endswith("usd"):
        return lambda value: f"${value:,.2f}"
    return size if key.endswith("memory") else short


def environment_rows(run: Run) -> list[tuple[str, str]]:
    """The environment, flat and in words."""
    rows = []
    for key, value in run.environment.items():
        if key == "memory" and number(value):
            value = size(value)
        if isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        if value is not None:
            rows.append((key.replace("_", " "), str(value)[:300]))
    return rows


def data_rows(run: Run) -> list[dict[str, str]]:
    """What the run was trained on: counts and a fingerprint of each prepared set, and the tokenizer."""
    rows = []
    for name, manifest in run.data.items():
        tokens, documents = number(manifest.get("tokens")), number(manifest.get("documents"))
        digest = table(manifest, "files", "tokens.bin").get("sha256")
        rows.append(
            {
                "name": name,
                "documents": f"{documents:,.0f}" if documents is not None else "–",
                "tokens": short(tokens) if tokens is not None else "–",
                "fingerprint": digest[:16] if isinstance(digest, str) else "–",
            }
        )
    if run.tokenizer:
        entries, mark = number(run.tokenizer.get("vocab_size")), run.tokenizer.get("fingerprint")
        text = mark[:16] if isinstance(mark, str) else "–"
        made_of = f"{entries:,.0f} entries" if entries else "–"
        rows.append({"name": "tokenizer", "documents": "–", "tokens": made_of, "fingerprint": text})
    return rows


# ---- drawings ---------------------------------------------------------------------------------------


def loss_charts(run: Run) -> list[tuple[str, Markup]]:
    """One chart a stage: each step's loss faint, its running mean strong; tokens on the axis above."""
    made = []
    for stage in run.stages:
        steps, losses = stage.column("loss")
        if stage.name == "rl" or not steps:
            continue
        lines = [
            Line("loss of the step", steps, losses, colour=COLOUR[stage.name], faint=True),
            Line("running mean", steps, smooth(losses), colour=COLOUR[stage.name]),
        ]
        wide = min(losses) > 0 and max(losses) / min(losses) > 1.5
        chart = Chart(stage.name, lines, logarithmic=wide, above=_tokens_at(stage))
        made.append((stage.name, draw(chart)))
    return made


def _tokens_at(stage: Stage) -> tuple[str, Callable[[float], str]] | None:
    """The axis of the tokens seen at a step, by the last line's rate; None where they were not recorded."""
    steps, tokens = stage.column("tokens")
    if not tokens or not steps[-1]:
        return None
    return "tokens", lambda step: short(tokens[-1] * step / steps[-1])


def extra_charts(run: Run) -> list[tuple[str, Markup]]:
    """What reinforcement learning watches: reward, share of groups with a right answer, length."""
    made = []
    for stage in run.stages:
        for name in _EXTRAS:
            steps, values = stage.column(name)
            if not steps:
                continue
            share = numbers.is_share(name, values) and name in ("reward", "pass_at_group", "clip_share", "accuracy")
            lines = [
                Line("of the step", steps, values, colour=COLOUR[stage.name], faint=True),
                Line("running mean", steps, smooth(values, 0.1), colour=COLOUR[stage.name]),
            ]
            chart = Chart(name, lines, floor=0.0 if share else None)
            made.append((f"{stage.name}: {name.replace('_', ' ')}", draw(chart)))
    return made


def speed_charts(run: Run) -> list[tuple[str, Markup]]:
    """Tokens a second of each stage, and MFU where it is known."""
    made = []
    place = _places(run)
    for name, label, say in (("tokens_per_second", "tokens a second", short), ("mfu", "MFU", percent)):
        lines = []
        for stage in run.stages:
            steps, values = numbers.warm(*stage.column(name))
            xs = [place(stage.name, step) for step in steps]
            lines.append(Line(stage.name, xs, smooth(values), colour=COLOUR[stage.name]))
        made.append((label, draw(Chart(label, lines, y_words=say, floor=0.0, **_stage_axis(run)))))
    return made


def _lengths(run: Run) -> dict[str, int]:
    """The steps of each stage."""
    return {stage.name: max([1, stage.steps, *(one.step for one in stage.evals)]) for stage in run.stages}


def _places(run: Run) -> Callable[[str, int], float]:
    """Where a step of a stage lies when the stages stand side by side, each one unit wide.

    Equal widths: the last stage is often a hundredth of the first, and the one people look at.
    """
    lengths = _lengths(run)
    order = list(lengths)
    return lambda stage, step: order.index(stage) + step / lengths[stage]


def _stage_axis(run: Run) -> dict[str, Any]:
    """The axis that goes with `_places`: a line where each stage begins, its last step where it ends."""
    lengths = _lengths(run)
    return {
        "x_label": "steps of each stage",
        "marks": [(place, name) for place, name in enumerate(lengths)],
        "x_ticks": [
            (0.0, "0"),
            *((place + 1.0, f"{steps:,}") for place, steps in enumerate(lengths.values())),
        ],
    }


def eval_charts(run: Run) -> list[tuple[str, Markup]]:
    """One chart a task over all stages: seen and new wordings, 95 % bands, the best constant answer."""
    found = numbers.names(run)[:MOST_EVALS]
    tasks = [name for name in found if name.removesuffix("_unseen") not in found or not name.endswith("_unseen")]
    tasks = [name for name in tasks if not name.startswith(COMPARED)]
    made = []
    for task in tasks:
        both = [name for name in (task, f"{task}_unseen") if name in found]
        values = [one.value for stage in run.stages for one in stage.evals if one.name in both]
        share = numbers.is_share(task, values)
        lines = [line for name in both for line in _eval_lines(run, name, unseen=name != task)]
        lines += _compared_lines(run) if task == COMPARED.split()[0] else []
        chart = Chart(
            task,
            lines,
            y_words=percent if share else lambda value: f"{value:.3g}",
            floor=0.0 if share else None,
            ceiling=1.0 if share else None,
            **_stage_axis(run),
        )
        made.append((words(task), draw(chart)))
    return made


def _compared_lines(run: Run) -> list[Line]:
    """What each compressor needs for the same text, as a level line across all stages."""
    place = _places(run)
    every = [place(one.stage, one.step) for stage in run.stages for one in stage.evals]
    levels = [one for stage in run.stages for one in stage.evals if one.name.startswith(COMPARED)]
    ends = [min(every), max(every)] if every else []
    return [
        Line(one.name.removeprefix(COMPARED), ends, [one.value] * 2, colour=6, dashed=True) for one in levels if ends
    ]


def _eval_lines(run: Run, name: str, unseen: bool) -> list[Line]:
    place = _places(run)
    ones = [one for stage in run.stages for one in stage.evals if one.name == name]
    xs = [place(one.stage, one.step) for one in ones]
    line = Line(
        "new wordings" if unseen else "value",
        xs,
        [one.value for one in ones],
        lows=[one.low for one in ones],
        highs=[one.high for one in ones],
        colour=5 if unseen else 4,
        dots=True,
        points=[f"{one.stage} step {one.step:,}" for one in ones],
    )
    constant = [(x, one.baseline) for x, one in zip(xs, ones, strict=True) if one.baseline is not None]
    if unseen or not constant:
        return [line]
    return [line, Line("best constant answer", *zip(*constant, strict=True), colour=6, dashed=True)]


# ---- samples ----------------------------------------------------------------------------------------


def sample_groups(run: Run) -> list[dict[str, Any]]:
    """Prompts in the order they were first tried, each with what was answered as training went on."""
    groups: dict[str, list[Sample]] = {}
    for stage in run.stages:
        for sample in stage.samples:
            groups.setdefault(sample.prompt, []).append(sample)
    made = []
    for prompt, samples in list(groups.items())[:MOST_PROMPTS]:
        count = min(MOST_ANSWERS, len(samples))
        chosen = [samples[round(i * (len(samples) - 1) / max(1, count - 1))] for i in range(count)]
        answers = [{"stage": s.stage, "step": f"{s.step:,}", "text": _cut(s.text)} for s in chosen]
        made.append({"prompt": _cut(prompt), "answers": answers})
    return made


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + " …"
