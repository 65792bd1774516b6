"""One page about more samples: accuracy against k, the law beside it, accuracy at equal FLOPs. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from pathlib import Path
from typing import Any

from fledgling.record import write_text
from fledgling.record.progress import short
from fledgling.report.chart import Chart, Line, draw
from fledgling.report.template import render
from fledgling.scaling.fit import Estimate
from fledgling.scaling.inference import KINDS, Outcome
from fledgling.scaling.page import axis, between, words

WORDS = {"coverage": "pass@k (a verifier)", "best": "best of k by log-probability", "majority": "majority vote"}


def build(found: Sequence[Outcome], task: str, path: Path) -> Path:
    """Write the page and return its path."""
    write_text(path, render("scaling", "inference.html", **contents(found, task)))
    return path


def contents(found: Sequence[Outcome], task: str) -> dict[str, Any]:
    """Everything the template shows."""
    return {
        "title": f"{task}: more samples",
        "kinds": [(colour, WORDS[kind]) for colour, kind in enumerate(KINDS)],
        "models": [(colour % 4, one.draws.name) for colour, one in enumerate(found)],
        "curves": [(one.draws.name, against_k(one)) for one in found],
        "trade": [("pass@k at equal FLOPs a question", trade(found))],
        "rows": [row for one in found for row in rows(one)],
        "laws": [law_row(one) for one in found if one.law],
    }


def _line(label: str, xs: Sequence[float], values: Sequence[Estimate], colour: int) -> Line:
    lows, highs = [value.low for value in values], [value.high for value in values]
    return Line(label, [log10(x) for x in xs], [v.value for v in values], lows, highs, colour, dots=True)


def against_k(one: Outcome) -> Any:
    """Accuracy against k: three ways to choose, and the law, dashed."""
    lines = [_line(WORDS[kind], one.ks, one.accuracy[kind], colour) for colour, kind in enumerate(KINDS)]
    if one.law:
        xs = between(one.ks[0], one.ks[-1])
        lines.append(Line("law", [log10(x) for x in xs], [one.law.at(x) for x in xs], colour=3, dashed=True))
    return draw(Chart(f"{one.draws.name}: accuracy", lines, floor=0.0, **axis(one.ks, "k", lambda k: f"{k:.0f}")))


def trade(found: Sequence[Outcome]) -> Any:
    """Coverage of every model against the FLOPs of one question: a larger model, or more samples."""
    lines = [_line(one.draws.name, one.flops, one.accuracy["coverage"], i % 4) for i, one in enumerate(found)]
    spans = [flops for one in found for flops in one.flops]
    return draw(Chart("pass@k", lines, floor=0.0, **axis(spans, "FLOPs a question", lambda value: f"{value:.0e}")))


def rows(one: Outcome) -> list[tuple[str, ...]]:
    """A model's figures, a row for each k."""
    return [
        (
            one.draws.name,
            str(k),
            *(words(one.accuracy[kind][i], "{:.3f}") for kind in KINDS),
            short(one.tokens[i]),
            f"{one.flops[i]:.2e}",
        )
        for i, k in enumerate(one.ks)
    ]


def law_row(one: Outcome) -> tuple[str, ...]:
    """The law's coefficients and its error where it was not fitted."""
    law = one.law
    held = "; ".join(f"k {k}: {measured:.3f}, predicted {words(told, '{:.3f}')}" for k, measured, told in law.held)
    return one.draws.name, words(law.a), words(law.b), held, f"{law.error:.4f}"
