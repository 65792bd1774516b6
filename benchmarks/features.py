"""The table of docs/features.md: every optional feature against the plain model, at equal time, at two sizes.

Each size is a race of `fledgling bench learn`: resumable, seeds interleaved. After every run the table of what is
finished is written, so that it can be read while the rest runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fledgling.bench.sized_recipe import PLAIN
from fledgling.config import load_recipe
from fledgling.scaling.ablation import VARIANTS, trains_the_same
from fledgling.scaling.race import RaceSettings, load_race, parse_contestants, run_race
from fledgling.scaling.race_results import format_margin, rank_runs

BASE_SETTINGS = (*PLAIN, "pretrain.decay_fraction=0.4")
SIZES: dict[str, tuple[str, ...]] = {  # overrides of quickstart
    "4x128": (
        *("model.width=128", "model.heads=1", "pretrain.batch_tokens=1024", "pretrain.micro_batch_size=4"),
        *BASE_SETTINGS,
    ),
    "4x256": BASE_SETTINGS,
}
BASE = "base"


def measure_features(
    names: Sequence[str],
    sizes: Sequence[str],
    minutes: float,
    seeds: int,
    out: Path,
    text: str | None,
    clock: str,
    overrides: Sequence[str],
    write: Callable[[dict[str, Any]], object] = lambda values: None,
) -> dict[str, Any]:
    """Runs what is not finished; returns {"minutes", "clock", "sizes": {size: rows}}, a row for each feature.

    Args:
        names: of `ablation.VARIANTS`; none: all.
        write: receives the table after every run.
    """
    table: dict[str, Any] = {"minutes": minutes, "clock": clock, "text": text or "embedded", "sizes": {}}
    for size in sizes:
        settings = (*SIZES[size], *overrides)
        same = list_without_effect(names or list(VARIANTS), settings)
        table.setdefault("same_as_base", {})[size] = same
        words = [f"{BASE}=", *(name for name in names or VARIANTS if name not in same)]
        if len(words) == 1:
            table["sizes"][size] = []
            write(table)
            continue
        contestants = parse_contestants(words, "quickstart", settings)

        def collect(size: str = size, contestants: Sequence[Any] = contestants) -> None:
            runs, copies = load_race(out / size, contestants, seeds, 60 * minutes)
            table.setdefault("left_out", {})[size] = copies
            results = rank_runs(runs, 60 * minutes)
            table["sizes"][size] = [
                {
                    "name": result.name,
                    "bits_per_byte": result.bits,
                    "margin": result.margin,
                    "difference": result.difference,
                    "difference_margin": result.difference_margin,
                    "verdict": result.verdict,
                    "seeds": result.seeds,
                    "parameters": result.runs[0].parameters,
                    "steps": [end.steps for end in result.ends],
                    "tokens": [end.tokens for end in result.ends],
                    "bits": [end.bits for end in result.ends],
                }
                for result in results
            ]
            write(table)

        race = RaceSettings(minutes, text, points=1, held_out_bytes=200_000, clock=clock)
        run_race(contestants, seeds, race, out / size, lambda line: print(line, file=sys.stderr), collect)
    return table


def list_without_effect(names: Sequence[str], settings: Sequence[str]) -> list[str]:
    """Returns those of the features that the base has already at a size, as one head has one group of heads."""
    base = load_recipe("quickstart", settings)
    known = {name: load_recipe("quickstart", (*settings, *VARIANTS[name])) for name in names if name in VARIANTS}
    return [name for name, recipe in known.items() if trains_the_same(recipe, base)]


def format_features(values: dict[str, Any]) -> str:
    """Returns a Markdown table: bits per byte minus the plain model's at each size, with 95 % intervals over seeds."""
    sizes = list(values["sizes"])
    rows: dict[str, list[str]] = {}
    for place, size in enumerate(sizes):
        for row in values["sizes"][size]:
            cells = rows.setdefault(row["name"], ["open"] * len(sizes))
            if row["difference"] is None:
                cells[place] = format_margin(row["bits_per_byte"], row["margin"])
            else:
                interval = format_margin(row["difference"], row["difference_margin"], "+")
                cells[place] = f"{interval} ({row['seeds']}), {row['verdict']}"
        for name in values.get("same_as_base", {}).get(size, []):
            rows.setdefault(name, ["open"] * len(sizes))[place] = "the base has it"
    head = f"| after {60 * values['minutes']:g} s of steps | {' | '.join(sizes)} |"
    lines = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join([head, "|---" * (len(sizes) + 1) + "|", *lines])
