"""One page about a sweep: isoFLOP bowls, frontier, residuals, fits with intervals, predicted beside measured.

The one idea: the page shows what was measured (dots) apart from what was fitted (lines), in one way of counting N,
and the numbers of all ways in a table. Drawings are made by `fledgling.report`, the layout is sweep.html. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fledgling.plan.scaling import LAWS
from fledgling.record import write_text
from fledgling.record.progress import short
from fledgling.report.chart import Chart, Line, draw
from fledgling.report.template import render
from fledgling.scaling.analysis import KEY, Analysis, Fits
from fledgling.scaling.bowls import Bowl
from fledgling.scaling.fit import NAMES, Estimate
from fledgling.scaling.results import Outcome, Run, amount, outcomes

COLOURS = 4  # of the style; budgets beyond take them again
COMPARED = ("chinchilla-3", "refit-2024", "kaplan")
CURVE = 40  # points of a drawn curve


def build(analysis: Analysis) -> Path:
    """Write OUT/scaling.html and return its path."""
    path = analysis.sweep.path / "scaling.html"
    write_text(path, render("scaling", "sweep.html", **contents(analysis)))
    return path


def contents(analysis: Analysis) -> dict[str, Any]:
    """Everything the template shows."""
    sweep, shown = analysis.sweep, analysis.of(KEY)
    checked = outcomes(sweep.path)
    return {
        "title": sweep.path.name,
        "counts": shown.counts,
        "tiles": tiles(analysis, checked),
        "budgets": [(i % COLOURS, amount(bowl.budget)) for i, bowl in enumerate(shown.bowls.bowls)],
        "bowls": [
            ("isoFLOP bowls: bits per byte against N", bowls(shown, sweep.runs)),
            ("The surface on the same runs", surface(shown, sweep.runs)),
        ],
        "frontier": frontier(shown, sweep.runs, checked),
        "residuals": [
            ("Surface: measured / fitted - 1", residuals(shown, sweep.runs)),
            (f"Held out: predicted / measured - 1 at {amount(shown.held_out.budget)}", held_out(analysis)),
        ],
        "fits": fit_rows(analysis.fits),
        "bowl_rows": [bowl_row(bowl) for bowl in shown.bowls.bowls],
        "runs": [run_row(run) for run in sweep.runs],
        "checks": [check_row(one) for one in checked],
        "epochs": f"{sweep.epochs:.1f}",
        "laws": law_rows(
            analysis, [*(bowl.budget for bowl in shown.bowls.bowls), *(one.run.budget for one in checked)]
        ),
    }


def words(value: Estimate, say: str = "{:.3g}") -> str:
    """An estimate as `1.23 (1.10 to 1.40)`."""
    if math.isnan(value.low):
        return say.format(value.value)
    return f"{say.format(value.value)} ({say.format(value.low)} to {say.format(value.high)})"


def counted(value: Estimate) -> str:
    """An estimated count as `1.23M (1.10M to 1.40M)`."""
    if math.isnan(value.low):
        return short(value.value)
    return f"{short(value.value)} ({short(value.low)} to {short(value.high)})"


# ---- tables --------------------------------------------------------------------------------------


def tiles(analysis: Analysis, checked: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    """The sweep at a glance: (figure, what it is, small print)."""
    sweep, shown = analysis.sweep, analysis.of(KEY)
    sizes, budgets = {run.depth for run in sweep.runs}, {run.budget for run in sweep.runs}
    made = [(str(len(sweep.runs)), "runs", f"{len(sizes)} sizes, {len(budgets)} budgets")]
    best = min(sweep.runs, key=lambda run: run.bits_per_byte)
    made.append((f"{best.bits_per_byte:.3f}", "bits per byte", f"the best run, {best.name}"))
    if shown.bowls.N:
        made.append((f"C^{shown.bowls.N.law.exponent:.2f}", "best size", f"N: {shown.counts}"))
    made.append((f"{100 * shown.held_out.mean_error:.2f} %", "held-out error", "the largest budget from the others"))
    for one in checked[-1:]:
        kept = "inside" if one.held else "outside"
        made.append((f"{100 * one.error:+.2f} %", "error of the check", f"{one.run.name}, {kept} the interval"))
    return made


def fit_rows(fits: Sequence[Fits]) -> list[tuple[str, ...]]:
    """The surface, exponents and held-out error as rows, a column for each way of counting N; the first is the head."""
    rows = [("", *(one.counts for one in fits))]
    rows += [(name, *(words(one.surface.intervals[name]) for one in fits)) for name in NAMES]
    bowls = (one.bowls.N for one in fits)
    errors = (max(map(abs, one.held_out.errors)) for one in fits)
    return [
        *rows,
        ("noise of a run", *(f"{100 * one.surface.noise:.2f} %" for one in fits)),
        ("N ~ C^a, surface", *(words(one.exponents()[0], "{:.2f}") for one in fits)),
        ("N ~ C^a, bowls", *(words(trend.exponent, "{:.2f}") if trend else "–" for trend in bowls)),
        ("held out, mean error", *(f"{100 * one.held_out.mean_error:.2f} %" for one in fits)),
        ("held out, worst", *(f"{100 * error:.2f} %" for error in errors)),
    ]


def bowl_row(bowl: Bowl) -> tuple[str, ...]:
    """One budget: its minimum."""
    where = "between the sizes run" if bowl.inside else "beyond the sizes run"
    ratio = f"{bowl.D.value / bowl.N.value:.3g}"
    return amount(bowl.budget), counted(bowl.N), counted(bowl.D), ratio, words(bowl.loss, "{:.3f}"), where


def run_row(run: Run) -> tuple[str, ...]:
    """One run."""
    measured = f"{run.bits_per_byte:.4f}"
    return run.name, short(run.parameters[KEY]), short(run.tokens), amount(run.flops), measured, f"{run.seconds:.0f} s"


def check_row(one: Outcome) -> tuple[str, ...]:
    """A prediction beside its run."""
    said, optimum = one.prediction["bits_per_byte"], one.prediction["optimum"]
    interval = f"{said['low']:.3f} to {said['high']:.3f}" if said["low"] is not None else "–"
    return (
        one.run.name,
        f"{said['value']:.4f}",
        interval,
        f"{one.run.bits_per_byte:.4f}",
        f"{100 * one.error:+.2f} %",
        "inside" if one.held else "outside",
        short(optimum["N"]["value"]),
    )


def law_rows(analysis: Analysis, budgets: Sequence[float]) -> list[tuple[str, ...]]:
    """What this sweep and the published laws advise for the sweep's budgets: (law, which N, N for each budget)."""
    shown = analysis.of(KEY)
    rows = [("this sweep, surface", shown.counts, *(short(shown.optimum(C)[0]) for C in budgets))]
    if shown.bowls.N:
        rows.append(("this sweep, bowls", shown.counts, *(short(shown.bowls.N.law(C)) for C in budgets)))
    for law in LAWS.values():
        rows.append((law.name, law.counts, *(short(law.optimum(C)[0]) for C in budgets)))
    return [("", "N", *map(amount, budgets)), *rows]


# ---- drawings ------------------------------------------------------------------------------------


def powers(values: Sequence[float], say: Callable[[float], str]) -> list[tuple[float, str]]:
    """Ticks of an axis of log10: 1, 2 and 5 times the powers of ten that the values span."""
    low, high = math.log10(min(values)), math.log10(max(values))
    units = (1, 2, 5) if high - low < 2.5 else (1,)
    places = [math.log10(unit) + power for power in range(math.floor(low), math.ceil(high) + 1) for unit in units]
    return [(place, say(10**place)) for place in places if low - 0.05 <= place <= high + 0.05]


def axis(values: Sequence[float], label: str, say: Callable[[float], str] = short) -> dict[str, Any]:
    """The x-axis of a chart over log10."""
    return {"x_label": label, "x_ticks": powers(values, say), "x_words": lambda x: say(10**x)}


def between(low: float, high: float) -> list[float]:
    """Evenly spaced logarithms: `CURVE` numbers from low to high."""
    return [low * (high / low) ** (i / (CURVE - 1)) for i in range(CURVE)]


def bowls(one: Fits, runs: Sequence[Run]) -> Any:
    """Runs of each budget as dots, their parabola, and its minimum."""
    lines, sizes = [], [run.parameters[one.key] for run in runs]
    for i, bowl in enumerate(one.bowls.bowls):
        there = [run for run in runs if run.budget == bowl.budget]
        ns = [run.parameters[one.key] for run in there]
        curve = between(min(*ns, bowl.N.value), max(*ns, bowl.N.value))
        name = f"{amount(bowl.budget)} FLOPs"
        lines.append(Line(name, list(map(math.log10, curve)), list(map(bowl.at, curve)), colour=i % COLOURS))
        lines.append(_dots(name, ns, [run.bits_per_byte for run in there], i % COLOURS, [run.name for run in there]))
        at = f"minimum, N {short(bowl.N.value)}"
        lines.append(_dots("minimum", [bowl.N.value], [bowl.loss.value], 6, [at]))
        sizes.append(bowl.N.value)
    return draw(Chart("isoFLOP bowls", lines, y_words=lambda y: f"{y:.2f}", **axis(sizes, "N, parameters")))


def surface(one: Fits, runs: Sequence[Run]) -> Any:
    """The fitted surface along each budget, beside the runs it was fitted to."""
    lines, sizes = [], [run.parameters[one.key] for run in runs]
    first, second = one.flops_per_N
    for i, bowl in enumerate(one.bowls.bowls):
        there = [run for run in runs if run.budget == bowl.budget]
        ns = [run.parameters[one.key] for run in there]
        curve = between(min(ns), max(ns))
        ys = [one.surface.law.loss(N, bowl.budget / (math.exp(first) * N**second)) for N in curve]
        name = f"{amount(bowl.budget)} FLOPs"
        lines.append(Line(name, list(map(math.log10, curve)), ys, colour=i % COLOURS))
        lines.append(_dots(name, ns, [run.bits_per_byte for run in there], i % COLOURS, [run.name for run in there]))
    return draw(Chart("fitted surface", lines, y_words=lambda y: f"{y:.2f}", **axis(sizes, "N, parameters")))


def frontier(one: Fits, runs: Sequence[Run], checked: Sequence[Outcome]) -> list[tuple[str, Any]]:
    """Best size and best loss against the budget, with what published laws say of the size."""
    budgets = [bowl.budget for bowl in one.bowls.bowls]
    reach = between(min(budgets), max([*budgets, *(outcome.run.budget for outcome in checked)]) * 1.5)
    logs, xs = list(map(math.log10, reach)), [math.log10(budget) for budget in budgets]
    where = axis(reach, "C, FLOPs", amount)
    best = [one.best(C) for C in reach]
    losses = [
        _band("surface", logs, [loss for _, loss in best], 0),
        _dots("all runs", [run.budget for run in runs], [run.bits_per_byte for run in runs], 1, [r.name for r in runs]),
        _dots("bowls", budgets, [bowl.loss.value for bowl in one.bowls.bowls], 6, []),
    ]
    losses += [_dots("check", [o.run.budget], [o.run.bits_per_byte], 3, [o.run.name]) for o in checked]
    sizes = [_band("surface", logs, [N for N, _ in best], 0)]
    sizes += [
        Line(name, logs, [LAWS[name].optimum(C)[0] for C in reach], colour=2, faint=True, dashed=True)
        for name in COMPARED
    ]
    if one.bowls.N:
        sizes.append(Line("bowls", logs, [one.bowls.N.law(C) for C in reach], colour=6))
    minima = [bowl.N for bowl in one.bowls.bowls]
    sizes.append(Line("minima", xs, [N.value for N in minima], colour=6, joined=False))
    return [
        (
            "Loss at the best size, bits per byte",
            draw(Chart("frontier", losses, y_words=lambda y: f"{y:.2f}", **where)),
        ),
        ("Best size N", draw(Chart("best size", sizes, y_words=short, logarithmic=True, **where))),
    ]


def residuals(one: Fits, runs: Sequence[Run]) -> Any:
    """Measured over fitted, per run, against N."""
    lines = []
    for i, bowl in enumerate(one.bowls.bowls):
        there = [run for run in runs if run.budget == bowl.budget]
        ys = [run.bits_per_byte / one.surface.law.loss(run.parameters[one.key], run.tokens) - 1 for run in there]
        ns = [run.parameters[one.key] for run in there]
        lines.append(_dots(f"{amount(bowl.budget)} FLOPs", ns, ys, i % COLOURS, [run.name for run in there]))
    return _errors("residuals", lines, [run.parameters[one.key] for run in runs])


def held_out(analysis: Analysis) -> Any:
    """Predicted over measured for the runs of the largest budget, in every way of counting N."""
    lines, sizes = [], [run.parameters[KEY] for run, _ in analysis.of(KEY).held_out.runs]
    for i, one in enumerate(analysis.fits):
        names = [run.name for run, _ in one.held_out.runs]
        ns = [run.parameters[KEY] for run, _ in one.held_out.runs]
        lines.append(_dots(one.counts, ns, one.held_out.errors, i % COLOURS, names))
    return _errors("held-out errors", lines, sizes)


def _errors(title: str, lines: Sequence[Line], sizes: Sequence[float]) -> Any:
    """A chart of relative errors around zero."""
    ends = [math.log10(min(sizes)), math.log10(max(sizes))]
    zero = Line("no error", ends, [0.0, 0.0], colour=1, faint=True)
    return draw(Chart(title, [zero, *lines], y_words=lambda y: f"{100 * y:+.2g} %", **axis(sizes, "N, parameters")))


def _dots(label: str, xs: Sequence[float], ys: Sequence[float], colour: int, points: Sequence[str]) -> Line:
    return Line(label, list(map(math.log10, xs)), list(ys), colour=colour, joined=False, points=points)


def _band(label: str, xs: Sequence[float], values: Sequence[Estimate], colour: int) -> Line:
    known = not math.isnan(values[0].low)
    lows, highs = ([v.low for v in values], [v.high for v in values]) if known else ((), ())
    return Line(label, xs, [v.value for v in values], lows, highs, colour=colour)
