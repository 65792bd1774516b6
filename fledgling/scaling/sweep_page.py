"""One page about a sweep: isoFLOP bowls, frontier, residuals, fits with intervals, predicted beside measured.

The one idea: the page shows what was measured (dots) apart from what was fitted (lines), in one way of counting N,
and the numbers of all ways in a table. Drawings are made by `fledgling.report`, the layout is sweep.html. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fledgling.plan.scaling_laws import LAWS
from fledgling.record import write_text
from fledgling.record.progress_bar import format_count
from fledgling.report.chart import Chart, Line, render_chart
from fledgling.report.template import render_page
from fledgling.scaling.analysis import PRIMARY_COUNT, SweepAnalysis, SweepFit
from fledgling.scaling.fits import COEFFICIENTS, Estimate
from fledgling.scaling.isoflop import IsoFlopCurve
from fledgling.scaling.results import CheckResult, SweepRun, format_flops, load_checks

COLOR_COUNT = 4  # of the style; budgets beyond take them again
PUBLISHED_LAWS = ("chinchilla-3", "refit-2024", "kaplan")
CURVE_POINTS = 40  # points of a drawn curve


def build_sweep_page(analysis: SweepAnalysis) -> Path:
    """Write OUT/scaling.html and return its path."""
    path = analysis.sweep.path / "scaling.html"
    write_text(path, render_page("scaling", "sweep.html", **sweep_page_contents(analysis)))
    return path


def sweep_page_contents(analysis: SweepAnalysis) -> dict[str, Any]:
    """Everything the template shows."""
    sweep, shown = analysis.sweep, analysis.fit_for(PRIMARY_COUNT)
    checked = load_checks(sweep.path)
    return {
        "title": sweep.path.name,
        "counts": shown.counts,
        "tiles": sweep_tiles(analysis, checked),
        "budgets": [(i % COLOR_COUNT, format_flops(bowl.budget)) for i, bowl in enumerate(shown.isoflop.curves)],
        "bowls": [
            ("isoFLOP bowls: bits per byte against N", isoflop_chart(shown, sweep.runs)),
            ("The surface on the same runs", surface_chart(shown, sweep.runs)),
        ],
        "frontier": frontier_charts(shown, sweep.runs, checked),
        "residuals": [
            ("Surface: measured / fitted - 1", residual_chart(shown, sweep.runs)),
            (f"Held out: predicted / measured - 1 at {format_flops(shown.held_out.budget)}", held_out_chart(analysis)),
        ],
        "fits": fit_rows(analysis.fits),
        "bowl_rows": [isoflop_row(bowl) for bowl in shown.isoflop.curves],
        "runs": [run_row(run) for run in sweep.runs],
        "checks": [check_row(one) for one in checked],
        "epochs": f"{sweep.epochs:.1f}",
        "laws": law_rows(
            analysis, [*(bowl.budget for bowl in shown.isoflop.curves), *(one.run.budget for one in checked)]
        ),
    }


def format_estimate(value: Estimate, say: str = "{:.3g}") -> str:
    """An estimate as `1.23 (1.10 to 1.40)`."""
    if math.isnan(value.low):
        return say.format(value.value)
    return f"{say.format(value.value)} ({say.format(value.low)} to {say.format(value.high)})"


def format_count_estimate(value: Estimate) -> str:
    """An estimated count as `1.23M (1.10M to 1.40M)`."""
    if math.isnan(value.low):
        return format_count(value.value)
    return f"{format_count(value.value)} ({format_count(value.low)} to {format_count(value.high)})"


# ---- tables --------------------------------------------------------------------------------------


def sweep_tiles(analysis: SweepAnalysis, checked: Sequence[CheckResult]) -> list[tuple[str, str, str]]:
    """The sweep at a glance: (figure, what it is, small print)."""
    sweep, shown = analysis.sweep, analysis.fit_for(PRIMARY_COUNT)
    sizes, budgets = {run.depth for run in sweep.runs}, {run.budget for run in sweep.runs}
    made = [(str(len(sweep.runs)), "runs", f"{len(sizes)} sizes, {len(budgets)} budgets")]
    best = min(sweep.runs, key=lambda run: run.bits_per_byte)
    made.append((f"{best.bits_per_byte:.3f}", "bits per byte", f"the best run, {best.name}"))
    if shown.isoflop.N:
        made.append((f"C^{shown.isoflop.N.law.exponent:.2f}", "best size", f"N: {shown.counts}"))
    made.append((f"{100 * shown.held_out.mean_error:.2f} %", "held-out error", "the largest budget from the others"))
    for one in checked[-1:]:
        kept = "inside" if one.within_interval else "outside"
        made.append((f"{100 * one.error:+.2f} %", "error of the check", f"{one.run.name}, {kept} the interval"))
    return made


def fit_rows(fits: Sequence[SweepFit]) -> list[tuple[str, ...]]:
    """The surface, exponents and held-out error as rows, a column for each way of counting N; the first is the head."""
    rows = [("", *(one.counts for one in fits))]
    rows += [(name, *(format_estimate(one.surface.intervals[name]) for one in fits)) for name in COEFFICIENTS]
    bowls = (one.isoflop.N for one in fits)
    errors = (max(map(abs, one.held_out.errors)) for one in fits)
    return [
        *rows,
        ("noise of a run", *(f"{100 * one.surface.noise:.2f} %" for one in fits)),
        ("N ~ C^a, surface", *(format_estimate(one.exponents()[0], "{:.2f}") for one in fits)),
        ("N ~ C^a, bowls", *(format_estimate(trend.exponent, "{:.2f}") if trend else "–" for trend in bowls)),
        ("held out, mean error", *(f"{100 * one.held_out.mean_error:.2f} %" for one in fits)),
        ("held out, worst", *(f"{100 * error:.2f} %" for error in errors)),
    ]


def isoflop_row(bowl: IsoFlopCurve) -> tuple[str, ...]:
    """One budget: its minimum."""
    where = "between the sizes run" if bowl.is_interior else "beyond the sizes run"
    ratio = f"{bowl.D.value / bowl.N.value:.3g}"
    return (
        format_flops(bowl.budget),
        format_count_estimate(bowl.N),
        format_count_estimate(bowl.D),
        ratio,
        format_estimate(bowl.loss, "{:.3f}"),
        where,
    )


def run_row(run: SweepRun) -> tuple[str, ...]:
    """One run."""
    measured = f"{run.bits_per_byte:.4f}"
    return (
        run.name,
        format_count(run.parameters[PRIMARY_COUNT]),
        format_count(run.tokens),
        format_flops(run.flops),
        measured,
        f"{run.seconds:.0f} s",
    )


def check_row(one: CheckResult) -> tuple[str, ...]:
    """A prediction beside its run."""
    said, optimum = one.prediction["bits_per_byte"], one.prediction["optimum"]
    interval = f"{said['low']:.3f} to {said['high']:.3f}" if said["low"] is not None else "–"
    return (
        one.run.name,
        f"{said['value']:.4f}",
        interval,
        f"{one.run.bits_per_byte:.4f}",
        f"{100 * one.error:+.2f} %",
        "inside" if one.within_interval else "outside",
        format_count(optimum["N"]["value"]),
    )


def law_rows(analysis: SweepAnalysis, budgets: Sequence[float]) -> list[tuple[str, ...]]:
    """What this sweep and the published laws advise for the sweep's budgets: (law, which N, N for each budget)."""
    shown = analysis.fit_for(PRIMARY_COUNT)
    rows = [("this sweep, surface", shown.counts, *(format_count(shown.optimum(C)[0]) for C in budgets))]
    if shown.isoflop.N:
        rows.append(("this sweep, bowls", shown.counts, *(format_count(shown.isoflop.N.law(C)) for C in budgets)))
    for law in LAWS.values():
        rows.append((law.name, law.counts, *(format_count(law.optimum(C)[0]) for C in budgets)))
    return [("", "N", *map(format_flops, budgets)), *rows]


# ---- drawings ------------------------------------------------------------------------------------


def log10_ticks(values: Sequence[float], say: Callable[[float], str]) -> list[tuple[float, str]]:
    """Ticks of an axis of log10: 1, 2 and 5 times the powers of ten that the values span."""
    low, high = math.log10(min(values)), math.log10(max(values))
    units = (1, 2, 5) if high - low < 2.5 else (1,)
    places = [math.log10(unit) + power for power in range(math.floor(low), math.ceil(high) + 1) for unit in units]
    return [(place, say(10**place)) for place in places if low - 0.05 <= place <= high + 0.05]


def log10_axis(values: Sequence[float], label: str, say: Callable[[float], str] = format_count) -> dict[str, Any]:
    """The x-axis of a chart over log10."""
    return {"x_label": label, "x_ticks": log10_ticks(values, say), "format_x": lambda x: say(10**x)}


def log_spaced(low: float, high: float) -> list[float]:
    """Evenly spaced logarithms: `CURVE` numbers from low to high."""
    return [low * (high / low) ** (i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]


def isoflop_chart(one: SweepFit, runs: Sequence[SweepRun]) -> Any:
    """Runs of each budget as dots, their parabola, and its minimum."""
    lines, sizes = [], [run.parameters[one.count_name] for run in runs]
    for i, bowl in enumerate(one.isoflop.curves):
        there = [run for run in runs if run.budget == bowl.budget]
        ns = [run.parameters[one.count_name] for run in there]
        curve = log_spaced(min(*ns, bowl.N.value), max(*ns, bowl.N.value))
        name = f"{format_flops(bowl.budget)} FLOPs"
        lines.append(Line(name, list(map(math.log10, curve)), list(map(bowl.loss_at, curve)), color=i % COLOR_COUNT))
        lines.append(
            _dots(name, ns, [run.bits_per_byte for run in there], i % COLOR_COUNT, [run.name for run in there])
        )
        at = f"minimum, N {format_count(bowl.N.value)}"
        lines.append(_dots("minimum", [bowl.N.value], [bowl.loss.value], 6, [at]))
        sizes.append(bowl.N.value)
    return render_chart(
        Chart("isoFLOP bowls", lines, format_y=lambda y: f"{y:.2f}", **log10_axis(sizes, "N, parameters"))
    )


def surface_chart(one: SweepFit, runs: Sequence[SweepRun]) -> Any:
    """The fitted surface along each budget, beside the runs it was fitted to."""
    lines, sizes = [], [run.parameters[one.count_name] for run in runs]
    first, second = one.flops_per_N
    for i, bowl in enumerate(one.isoflop.curves):
        there = [run for run in runs if run.budget == bowl.budget]
        ns = [run.parameters[one.count_name] for run in there]
        curve = log_spaced(min(ns), max(ns))
        ys = [one.surface.law.loss(N, bowl.budget / (math.exp(first) * N**second)) for N in curve]
        name = f"{format_flops(bowl.budget)} FLOPs"
        lines.append(Line(name, list(map(math.log10, curve)), ys, color=i % COLOR_COUNT))
        lines.append(
            _dots(name, ns, [run.bits_per_byte for run in there], i % COLOR_COUNT, [run.name for run in there])
        )
    return render_chart(
        Chart("fitted surface", lines, format_y=lambda y: f"{y:.2f}", **log10_axis(sizes, "N, parameters"))
    )


def frontier_charts(one: SweepFit, runs: Sequence[SweepRun], checked: Sequence[CheckResult]) -> list[tuple[str, Any]]:
    """Best size and best loss against the budget, with what published laws say of the size."""
    budgets = [bowl.budget for bowl in one.isoflop.curves]
    reach = log_spaced(min(budgets), max([*budgets, *(outcome.run.budget for outcome in checked)]) * 1.5)
    logs, xs = list(map(math.log10, reach)), [math.log10(budget) for budget in budgets]
    where = log10_axis(reach, "C, FLOPs", format_flops)
    best = [one.optimum_interval(C) for C in reach]
    losses = [
        _band("surface", logs, [loss for _, loss in best], 0),
        _dots("all runs", [run.budget for run in runs], [run.bits_per_byte for run in runs], 1, [r.name for r in runs]),
        _dots("bowls", budgets, [bowl.loss.value for bowl in one.isoflop.curves], 6, []),
    ]
    losses += [_dots("check", [o.run.budget], [o.run.bits_per_byte], 3, [o.run.name]) for o in checked]
    sizes = [_band("surface", logs, [N for N, _ in best], 0)]
    sizes += [
        Line(name, logs, [LAWS[name].optimum(C)[0] for C in reach], color=2, faint=True, dashed=True)
        for name in PUBLISHED_LAWS
    ]
    if one.isoflop.N:
        sizes.append(Line("bowls", logs, [one.isoflop.N.law(C) for C in reach], color=6))
    minima = [bowl.N for bowl in one.isoflop.curves]
    sizes.append(Line("minima", xs, [N.value for N in minima], color=6, connected=False))
    return [
        (
            "Loss at the best size, bits per byte",
            render_chart(Chart("frontier", losses, format_y=lambda y: f"{y:.2f}", **where)),
        ),
        ("Best size N", render_chart(Chart("best size", sizes, format_y=format_count, logarithmic=True, **where))),
    ]


def residual_chart(one: SweepFit, runs: Sequence[SweepRun]) -> Any:
    """Measured over fitted, per run, against N."""
    lines = []
    for i, bowl in enumerate(one.isoflop.curves):
        there = [run for run in runs if run.budget == bowl.budget]
        ys = [run.bits_per_byte / one.surface.law.loss(run.parameters[one.count_name], run.tokens) - 1 for run in there]
        ns = [run.parameters[one.count_name] for run in there]
        lines.append(_dots(f"{format_flops(bowl.budget)} FLOPs", ns, ys, i % COLOR_COUNT, [run.name for run in there]))
    return _errors("residuals", lines, [run.parameters[one.count_name] for run in runs])


def held_out_chart(analysis: SweepAnalysis) -> Any:
    """Predicted over measured for the runs of the largest budget, in every way of counting N."""
    lines, sizes = [], [run.parameters[PRIMARY_COUNT] for run, _ in analysis.fit_for(PRIMARY_COUNT).held_out.runs]
    for i, one in enumerate(analysis.fits):
        names = [run.name for run, _ in one.held_out.runs]
        ns = [run.parameters[PRIMARY_COUNT] for run, _ in one.held_out.runs]
        lines.append(_dots(one.counts, ns, one.held_out.errors, i % COLOR_COUNT, names))
    return _errors("held-out errors", lines, sizes)


def _errors(title: str, lines: Sequence[Line], sizes: Sequence[float]) -> Any:
    """A chart of relative errors around zero."""
    ends = [math.log10(min(sizes)), math.log10(max(sizes))]
    zero = Line("no error", ends, [0.0, 0.0], color=1, faint=True)
    return render_chart(
        Chart(title, [zero, *lines], format_y=lambda y: f"{100 * y:+.2g} %", **log10_axis(sizes, "N, parameters"))
    )


def _dots(label: str, xs: Sequence[float], ys: Sequence[float], colour: int, points: Sequence[str]) -> Line:
    return Line(label, list(map(math.log10, xs)), list(ys), color=colour, connected=False, point_labels=points)


def _band(label: str, xs: Sequence[float], values: Sequence[Estimate], colour: int) -> Line:
    known = not math.isnan(values[0].low)
    lows, highs = ([v.low for v in values], [v.high for v in values]) if known else ((), ())
    return Line(label, xs, [v.value for v in values], lows, highs, color=colour)
