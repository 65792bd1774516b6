"""Builds the HTML page of a sweep: isoFLOP curves, frontier, residuals, fits with intervals, predictions.

The page shows measurements (dots) apart from fits (lines), for one way of counting N, and the numbers for all ways in a
table. Drawings are made by `fledgling.report.chart`, the layout is sweep.html. Does not import torch.
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

COLOR_COUNT = 4  # in style.css; more budgets reuse them
PUBLISHED_LAWS = ("chinchilla-3", "refit-2024", "kaplan")
ISOFLOP_HEADER = ("budget", "best N", "best D", "D / N", "bits per byte", "minimum")
CURVE_POINTS = 40  # points of a curve


def build_sweep_page(analysis: SweepAnalysis) -> Path:
    """Writes OUT/scaling.html and returns its path."""
    path = analysis.sweep.path / "scaling.html"
    write_text(path, render_page("scaling", "sweep.html", **sweep_page_contents(analysis)))
    return path


def sweep_page_contents(analysis: SweepAnalysis) -> dict[str, Any]:
    """Returns the values of the template."""
    sweep, fit = analysis.sweep, analysis.fit_for(PRIMARY_COUNT)
    checks = load_checks(sweep.path)
    return {
        "title": sweep.path.name,
        "counts": fit.counts,
        "tiles": sweep_tiles(analysis, checks),
        "budgets": [(i % COLOR_COUNT, format_flops(curve.budget)) for i, curve in enumerate(fit.isoflop.curves)],
        "isoflop": [
            ("IsoFLOP curves: bits per byte against N", isoflop_chart(fit, sweep.runs)),
            ("The surface on the same runs", surface_chart(fit, sweep.runs)),
        ],
        "frontier": frontier_charts(fit, sweep.runs, checks),
        "residuals": [
            ("Surface: measured / fitted - 1", residual_chart(fit, sweep.runs)),
            (f"Held out: predicted / measured - 1 at {format_flops(fit.held_out.budget)}", held_out_chart(analysis)),
        ],
        "fits": fit_rows(analysis.fits),
        "isoflop_rows": [isoflop_row(curve) for curve in fit.isoflop.curves],
        "runs": [run_row(run) for run in sweep.runs],
        "notes": sweep.notes,
        "checks": [check_row(check) for check in checks],
        "epochs": "an unknown number of" if sweep.epochs is None else f"{sweep.epochs:.1f}",
        "laws": law_rows(
            analysis, [*(curve.budget for curve in fit.isoflop.curves), *(check.run.budget for check in checks)]
        ),
    }


def format_interval(value: Estimate, template: str = "{:.3g}") -> str:
    """Returns an estimate as `1.23 (1.10 to 1.40)`."""
    if math.isnan(value.low):
        return template.format(value.value)
    return f"{template.format(value.value)} ({template.format(value.low)} to {template.format(value.high)})"


def format_count_estimate(value: Estimate) -> str:
    """Returns an estimated count as `1.23M (1.10M to 1.40M)`."""
    if math.isnan(value.low):
        return format_count(value.value)
    return f"{format_count(value.value)} ({format_count(value.low)} to {format_count(value.high)})"


# ---- tables ----


def sweep_tiles(analysis: SweepAnalysis, checks: Sequence[CheckResult]) -> list[tuple[str, str, str]]:
    """Returns the headline numbers: (number, what it is, small print)."""
    sweep, fit = analysis.sweep, analysis.fit_for(PRIMARY_COUNT)
    sizes, budgets = {run.depth for run in sweep.runs}, {run.budget for run in sweep.runs}
    tiles = [(str(len(sweep.runs)), "runs", f"{len(sizes)} sizes, {len(budgets)} budgets")]
    best = min(sweep.runs, key=lambda run: run.bits_per_byte)
    tiles.append((f"{best.bits_per_byte:.3f}", "bits per byte", f"the best run, {best.name}"))
    if fit.isoflop.N:
        tiles.append((f"C^{fit.isoflop.N.law.exponent:.2f}", "best size", f"N: {fit.counts}"))
    held_out = f"mean of the {len(fit.held_out.errors)} runs of the largest budget, predicted from the others"
    tiles.append((f"{100 * fit.held_out.mean_error:.2f} %", "held-out error", held_out))
    for check in checks[-1:]:
        position = "inside" if check.within_interval else "outside"
        tiles.append(
            (f"{100 * check.error:+.2f} %", "error of the check", f"{check.run.name}, {position} the interval")
        )
    return tiles


def fit_rows(fits: Sequence[SweepFit]) -> list[tuple[str, ...]]:
    """Returns surface, exponents and held-out error as rows, one column per way of counting N; first the header."""
    rows = [("", *(fit.counts for fit in fits))]
    rows += [(name, *(format_interval(fit.surface.intervals[name]) for fit in fits)) for name in COEFFICIENTS]
    trends = (fit.isoflop.N for fit in fits)
    errors = (max(map(abs, fit.held_out.errors)) for fit in fits)
    return [
        *rows,
        ("noise of a run", *(f"{100 * fit.surface.noise:.2f} %" for fit in fits)),
        ("N ~ C^a, surface", *(format_interval(fit.exponents()[0], "{:.2f}") for fit in fits)),
        ("N ~ C^a, isoFLOP", *(format_interval(trend.exponent, "{:.2f}") if trend else "–" for trend in trends)),
        ("held out, mean error", *(f"{100 * fit.held_out.mean_error:.2f} %" for fit in fits)),
        ("held out, worst", *(f"{100 * error:.2f} %" for error in errors)),
    ]


def isoflop_row(curve: IsoFlopCurve) -> tuple[str, ...]:
    """Returns the minimum of one budget as cells."""
    position = "inside the trained sizes" if curve.is_interior else "outside the trained sizes: an extrapolation"
    ratio = f"{curve.D.value / curve.N.value:.3g}"
    return (
        format_flops(curve.budget),
        format_count_estimate(curve.N),
        format_count_estimate(curve.D),
        ratio,
        format_interval(curve.loss, "{:.3f}"),
        position,
    )


def run_row(run: SweepRun) -> tuple[str, ...]:
    """Returns one run as cells."""
    measured = f"{run.bits_per_byte:.4f}"
    return (
        run.name,
        format_count(run.parameters[PRIMARY_COUNT]),
        format_count(run.tokens),
        format_flops(run.flops),
        measured,
        f"{run.seconds:.0f} s",
    )


def check_row(check: CheckResult) -> tuple[str, ...]:
    """Returns a prediction and its run as cells."""
    predicted, optimum = check.prediction["bits_per_byte"], check.prediction["optimum"]
    interval = f"{predicted['low']:.3f} to {predicted['high']:.3f}" if predicted["low"] is not None else "–"
    return (
        check.run.name,
        f"{predicted['value']:.4f}",
        interval,
        f"{check.run.bits_per_byte:.4f}",
        f"{100 * check.error:+.2f} %",
        "inside" if check.within_interval else "outside",
        format_count(optimum["N"]["value"]),
    )


def law_rows(analysis: SweepAnalysis, budgets: Sequence[float]) -> list[tuple[str, ...]]:
    """Returns the optimal N of this sweep and of the published laws: (law, which N, N for each budget)."""
    fit = analysis.fit_for(PRIMARY_COUNT)
    rows = [("this sweep, surface", fit.counts, *(format_count(fit.optimum(C)[0]) for C in budgets))]
    if fit.isoflop.N:
        rows.append(("this sweep, isoFLOP", fit.counts, *(format_count(fit.isoflop.N.law(C)) for C in budgets)))
    for law in LAWS.values():
        rows.append((law.name, law.counts, *(format_count(law.optimum(C)[0]) for C in budgets)))
    return [("", "N", *map(format_flops, budgets)), *rows]


# ---- drawings ----


def log10_ticks(values: Sequence[float], format_tick: Callable[[float], str]) -> list[tuple[float, str]]:
    """Returns the ticks of a log10 axis: 1, 2 and 5 times the powers of ten that the values span."""
    low, high = math.log10(min(values)), math.log10(max(values))
    units = (1, 2, 5) if high - low < 2.5 else (1,)
    positions = [math.log10(unit) + power for power in range(math.floor(low), math.ceil(high) + 1) for unit in units]
    return [(position, format_tick(10**position)) for position in positions if low - 0.05 <= position <= high + 0.05]


def log10_axis(
    values: Sequence[float], label: str, format_tick: Callable[[float], str] = format_count
) -> dict[str, Any]:
    """Returns the arguments of a chart with a log10 x-axis."""
    return {"x_label": label, "x_ticks": log10_ticks(values, format_tick), "format_x": lambda x: format_tick(10**x)}


def log_spaced(low: float, high: float) -> list[float]:
    """Returns `CURVE_POINTS` numbers from low to high, evenly spaced in their logarithm."""
    return [low * (high / low) ** (i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]


def isoflop_chart(fit: SweepFit, runs: Sequence[SweepRun]) -> Any:
    """Returns the runs of each budget as dots, their parabola, and its minimum."""
    lines: list[Line] = []
    sizes = [float(run.parameters[fit.count_name]) for run in runs]
    for i, curve in enumerate(fit.isoflop.curves):
        same_budget = [run for run in runs if run.budget == curve.budget]
        run_sizes = [run.parameters[fit.count_name] for run in same_budget]
        xs = log_spaced(min(*run_sizes, curve.N.value), max(*run_sizes, curve.N.value))
        name = f"{format_flops(curve.budget)} FLOPs"
        lines.append(Line(name, list(map(math.log10, xs)), list(map(curve.loss_at, xs)), color=i % COLOR_COUNT))
        lines.append(
            _make_dots(
                name,
                run_sizes,
                [run.bits_per_byte for run in same_budget],
                i % COLOR_COUNT,
                [run.name for run in same_budget],
            )
        )
        label = f"minimum, N {format_count(curve.N.value)}"
        lines.append(_make_dots("minimum", [curve.N.value], [curve.loss.value], 6, [label]))
        sizes.append(curve.N.value)
    return render_chart(
        Chart("isoFLOP curves", lines, format_y=lambda y: f"{y:.2f}", **log10_axis(sizes, "N, parameters"))
    )


def surface_chart(fit: SweepFit, runs: Sequence[SweepRun]) -> Any:
    """Returns the fitted surface along each budget, with the runs it was fitted to."""
    lines, sizes = [], [run.parameters[fit.count_name] for run in runs]
    first, second = fit.flops_per_N
    for i, curve in enumerate(fit.isoflop.curves):
        same_budget = [run for run in runs if run.budget == curve.budget]
        run_sizes = [run.parameters[fit.count_name] for run in same_budget]
        xs = log_spaced(min(run_sizes), max(run_sizes))
        ys = [fit.surface.law.loss(N, curve.budget / (math.exp(first) * N**second)) for N in xs]
        name = f"{format_flops(curve.budget)} FLOPs"
        lines.append(Line(name, list(map(math.log10, xs)), ys, color=i % COLOR_COUNT))
        lines.append(
            _make_dots(
                name,
                run_sizes,
                [run.bits_per_byte for run in same_budget],
                i % COLOR_COUNT,
                [run.name for run in same_budget],
            )
        )
    return render_chart(
        Chart("fitted surface", lines, format_y=lambda y: f"{y:.2f}", **log10_axis(sizes, "N, parameters"))
    )


def frontier_charts(fit: SweepFit, runs: Sequence[SweepRun], checks: Sequence[CheckResult]) -> list[tuple[str, Any]]:
    """Returns optimal size and loss against the budget, with the sizes of published laws."""
    budgets = [curve.budget for curve in fit.isoflop.curves]
    range_budgets = log_spaced(min(budgets), max([*budgets, *(outcome.run.budget for outcome in checks)]) * 1.5)
    logs, xs = list(map(math.log10, range_budgets)), [math.log10(budget) for budget in budgets]
    axis = log10_axis(range_budgets, "C, FLOPs", format_flops)
    optima = [fit.optimum_interval(C) for C in range_budgets]
    losses = [
        _make_band("surface", logs, [loss for _, loss in optima], 0),
        _make_dots(
            "all runs", [run.budget for run in runs], [run.bits_per_byte for run in runs], 1, [r.name for r in runs]
        ),
        _make_dots("isoFLOP curves", budgets, [curve.loss.value for curve in fit.isoflop.curves], 6, []),
    ]
    losses += [_make_dots("check", [o.run.budget], [o.run.bits_per_byte], 3, [o.run.name]) for o in checks]
    sizes = [_make_band("surface", logs, [N for N, _ in optima], 0)]
    sizes += [
        Line(name, logs, [LAWS[name].optimum(C)[0] for C in range_budgets], color=2, faint=True, dashed=True)
        for name in PUBLISHED_LAWS
    ]
    if fit.isoflop.N:
        sizes.append(Line("isoFLOP curves", logs, [fit.isoflop.N.law(C) for C in range_budgets], color=6))
    minima = [curve.N for curve in fit.isoflop.curves]
    sizes.append(Line("minima", xs, [N.value for N in minima], color=6, connected=False))
    return [
        (
            "Loss at the best size, bits per byte",
            render_chart(Chart("frontier", losses, format_y=lambda y: f"{y:.2f}", **axis)),
        ),
        ("Best size N", render_chart(Chart("best size", sizes, format_y=format_count, logarithmic=True, **axis))),
    ]


def residual_chart(fit: SweepFit, runs: Sequence[SweepRun]) -> Any:
    """Returns measured over fitted, per run, against N."""
    lines = []
    for i, curve in enumerate(fit.isoflop.curves):
        same_budget = [run for run in runs if run.budget == curve.budget]
        ys = [
            run.bits_per_byte / fit.surface.law.loss(run.parameters[fit.count_name], run.tokens) - 1
            for run in same_budget
        ]
        run_sizes = [run.parameters[fit.count_name] for run in same_budget]
        lines.append(
            _make_dots(
                f"{format_flops(curve.budget)} FLOPs", run_sizes, ys, i % COLOR_COUNT, [run.name for run in same_budget]
            )
        )
    return _chart_errors("residuals", lines, [run.parameters[fit.count_name] for run in runs])


def held_out_chart(analysis: SweepAnalysis) -> Any:
    """Returns predicted over measured for the runs of the largest budget, for every way of counting N."""
    lines, sizes = [], [run.parameters[PRIMARY_COUNT] for run, _ in analysis.fit_for(PRIMARY_COUNT).held_out.runs]
    for i, fit in enumerate(analysis.fits):
        names = [run.name for run, _ in fit.held_out.runs]
        run_sizes = [run.parameters[PRIMARY_COUNT] for run, _ in fit.held_out.runs]
        lines.append(_make_dots(fit.counts, run_sizes, fit.held_out.errors, i % COLOR_COUNT, names))
    return _chart_errors("held-out errors", lines, sizes)


def _chart_errors(title: str, lines: Sequence[Line], sizes: Sequence[float]) -> Any:
    """Returns a chart of relative errors around zero."""
    ends = [math.log10(min(sizes)), math.log10(max(sizes))]
    zero = Line("no error", ends, [0.0, 0.0], color=1, faint=True)
    return render_chart(
        Chart(title, [zero, *lines], format_y=lambda y: f"{100 * y:+.2g} %", **log10_axis(sizes, "N, parameters"))
    )


def _make_dots(label: str, xs: Sequence[float], ys: Sequence[float], color: int, points: Sequence[str]) -> Line:
    return Line(label, list(map(math.log10, xs)), list(ys), color=color, connected=False, point_labels=points)


def _make_band(label: str, xs: Sequence[float], values: Sequence[Estimate], color: int) -> Line:
    known = not math.isnan(values[0].low)
    lows, highs = ([v.low for v in values], [v.high for v in values]) if known else ((), ())
    return Line(label, xs, [v.value for v in values], lows, highs, color=color)
