"""One page about an ablation: every variant's difference to the base with its interval, and all runs. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledgling.record import write_text
from fledgling.report.chart import Chart, Line, render_chart
from fledgling.report.template import render_page
from fledgling.scaling.ablation import BASE, EFFECT_HEADER, Effect, Trial, effect_rows

VERDICT_COLORS = {"better": 2, "worse": 3, "not told apart": 1}


def build_ablation_page(out: Path, trials: Sequence[Trial], found: Sequence[Effect]) -> Path:
    """Write OUT/ablation.html and return its path."""
    path = out / "ablation.html"
    every = [(one.variant, str(one.seed), f"{one.run.bits_per_byte:.4f}", f"{one.run.seconds:.0f} s") for one in trials]
    values = {
        "title": out.name,
        "chart": effect_chart(found),
        "head": EFFECT_HEADER,
        "rows": effect_rows(found),
        "runs": every,
    }
    write_text(path, render_page("scaling", "ablation.html", **values))
    return path


def effect_chart(found: Sequence[Effect]) -> Any:
    """Differences as dots with whiskers, numbered in the order of the table; 0 is the base."""
    shown = [one for one in found if one.variant != BASE]
    ends = [0.5, len(shown) + 0.5]
    lines = [Line(BASE, ends, [0.0, 0.0], color=1, faint=True)]
    for place, one in enumerate(shown, start=1):
        whisker = ([one.low], [one.high]) if one.low is not None else ((), ())
        lines.append(
            Line(
                one.variant,
                [place],
                [one.difference],
                *whisker,
                VERDICT_COLORS[one.verdict],
                connected=False,
                point_labels=[one.variant],
            )
        )
    ticks = [(float(place), str(place)) for place in range(1, len(shown) + 1)]
    words = "variant, in the order of the table"
    return render_chart(Chart("difference to the base", lines, words, format_y=lambda y: f"{y:+.3f}", x_ticks=ticks))
