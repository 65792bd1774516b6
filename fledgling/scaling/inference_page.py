"""One page about more samples: accuracy against k, the law beside it, accuracy at equal FLOPs. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from pathlib import Path
from typing import Any

from fledgling.record import write_text
from fledgling.record.progress_bar import format_count
from fledgling.report.chart import Chart, Line, render_chart
from fledgling.report.template import render_page
from fledgling.scaling.fits import Estimate
from fledgling.scaling.inference import SELECTION_METHODS, SamplingResult
from fledgling.scaling.sweep_page import format_estimate, log10_axis, log_spaced

METHOD_LABELS = {"coverage": "pass@k (a verifier)", "best": "best of k by log-probability", "majority": "majority vote"}


def build_inference_page(found: Sequence[SamplingResult], task: str, path: Path) -> Path:
    """Write the page and return its path."""
    write_text(path, render_page("scaling", "inference.html", **inference_page_contents(found, task)))
    return path


def inference_page_contents(found: Sequence[SamplingResult], task: str) -> dict[str, Any]:
    """Everything the template shows."""
    return {
        "title": f"{task}: more samples",
        "kinds": [(colour, METHOD_LABELS[kind]) for colour, kind in enumerate(SELECTION_METHODS)],
        "models": [(colour % 4, one.samples.name) for colour, one in enumerate(found)],
        "curves": [(one.samples.name, accuracy_chart(one)) for one in found],
        "trade": [("pass@k at equal FLOPs a question", equal_flops_chart(found))],
        "rows": [row for one in found for row in accuracy_rows(one)],
        "laws": [coverage_law_row(one) for one in found if one.law],
    }


def _line(label: str, xs: Sequence[float], values: Sequence[Estimate], colour: int) -> Line:
    lows, highs = [value.low for value in values], [value.high for value in values]
    return Line(label, [log10(x) for x in xs], [v.value for v in values], lows, highs, colour, dots=True)


def accuracy_chart(one: SamplingResult) -> Any:
    """Accuracy against k: three ways to choose, and the law, dashed."""
    lines = [
        _line(METHOD_LABELS[kind], one.ks, one.accuracy[kind], colour) for colour, kind in enumerate(SELECTION_METHODS)
    ]
    if one.law:
        xs = log_spaced(one.ks[0], one.ks[-1])
        lines.append(Line("law", [log10(x) for x in xs], [one.law.coverage_at(x) for x in xs], color=3, dashed=True))
    return render_chart(
        Chart(f"{one.samples.name}: accuracy", lines, floor=0.0, **log10_axis(one.ks, "k", lambda k: f"{k:.0f}"))
    )


def equal_flops_chart(found: Sequence[SamplingResult]) -> Any:
    """Coverage of every model against the FLOPs of one question: a larger model, or more samples."""
    lines = [_line(one.samples.name, one.flops, one.accuracy["coverage"], i % 4) for i, one in enumerate(found)]
    spans = [flops for one in found for flops in one.flops]
    return render_chart(
        Chart("pass@k", lines, floor=0.0, **log10_axis(spans, "FLOPs a question", lambda value: f"{value:.0e}"))
    )


def accuracy_rows(one: SamplingResult) -> list[tuple[str, ...]]:
    """A model's figures, a row for each k."""
    return [
        (
            one.samples.name,
            str(k),
            *(format_estimate(one.accuracy[kind][i], "{:.3f}") for kind in SELECTION_METHODS),
            format_count(one.tokens[i]),
            f"{one.flops[i]:.2e}",
        )
        for i, k in enumerate(one.ks)
    ]


def coverage_law_row(one: SamplingResult) -> tuple[str, ...]:
    """The law's coefficients and its error where it was not fitted."""
    law = one.law
    held = "; ".join(
        f"k {k}: {measured:.3f}, predicted {format_estimate(told, '{:.3f}')}" for k, measured, told in law.held_out
    )
    return one.samples.name, format_estimate(law.a), format_estimate(law.b), held, f"{law.error:.4f}"
