"""Runs with different budgets, and how often their 90 % intervals held: time, memory, bits per byte, exams.

Every run is a process of its own, as a user starts it, and is forecast from the shipped runs and from those of this
series that were finished before it. A finished run is skipped and an interrupted one is resumed, so that the same
command resumes the series.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.copied_runs import find_copies
from fledgling.config import UserError
from fledgling.record.seal import FORECAST, SPENT
from fledgling.report.forecasts import is_exam, pair_forecasts
from fledgling.report.run_data import finite_number, load_run_data, read_object
from fledgling.scaling.settings import pin_settings

SERIES = "series.toml"  # what all runs of a series share
GROUPS = {
    "seconds": "time",
    "memory": "memory",
    "pretrain bits_per_byte": "bits per byte",
    "bits_per_byte": "bits per byte",
}


def list_cells(minutes: Sequence[float], seeds: int) -> list[tuple[float, int]]:
    """Returns (minutes, seed) of every run; each seed makes all budgets before the next."""
    return [(each, seed) for seed in range(1, seeds + 1) for each in minutes]


def run_budgets(out: Path, minutes: Sequence[float], seeds: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Makes the runs that are left and returns the table of all.

    Raises UserError where a run fails, and for other overrides than those of the series in `out`.
    """
    pin_settings(out / SERIES, f"overrides = {json.dumps(list(overrides))}\n", "a series of budgets")
    environment = os.environ | {"FLEDGLING_CACHE": str((out / "cache").absolute())}
    for each, seed in list_cells(minutes, seeds):
        run_dir = out / f"{each:g}min-seed{seed}"
        if read_object(run_dir / SPENT).get("finished") is True:
            continue
        settings = [f"run.out={run_dir}", f"seed={seed}", *overrides]
        command = [sys.executable, "-m", "fledgling", "speedrun", "--minutes", f"{each:g}"]
        for setting in settings:
            command += ["--set", setting]
        code = subprocess.run(command, env=environment, check=False).returncode
        if code:
            raise UserError(f"{' '.join(command[2:])} ended with exit code {code}: run this again to resume")
    return tabulate_budgets(sorted(path.parent for path in out.glob(f"*/{FORECAST}")))


def tabulate_budgets(runs: Sequence[Path]) -> dict[str, Any]:
    """Returns {"runs", "quantities", "copies"}: each run's figures, how often each quantity's interval held.

    copies: runs that are left out, each with the run that it is a copy of.
    """
    rows, quantities = [], {}  # type: ignore[var-annotated]
    finished = {path: run for path in runs if (run := load_run_data(path)).spent.get("finished") is True}
    copies = find_copies(finished)
    for path, run in finished.items():
        if path in copies:
            continue
        pairs = [pair for pair in pair_forecasts(run) if pair.measured is not None]
        seconds = finite_number(run.forecast.get("budget", {}).get("seconds"))
        rows.append(
            {
                "run": path.name,
                "budget": seconds,
                "pairs": {p.name: [p.value, p.low, p.high, p.measured] for p in pairs},
                "within": sum(bool(pair.holds) for pair in pairs),
                "of": len(pairs),
            }
        )
        for pair in pairs:
            name = GROUPS.get(pair.name, "exams" if is_exam(pair.name) else pair.name)
            entry = quantities.setdefault(name, {"held": 0, "of": 0, "errors": []})
            entry["held"] += bool(pair.holds)
            entry["of"] += 1
            entry["errors"].append(abs(pair.value / pair.measured - 1) if pair.measured else abs(pair.value))
    for entry in quantities.values():
        entry["median_error"] = median(entry.pop("errors"))
    return {"runs": rows, "quantities": quantities, "copies": {path.name: of.name for path, of in copies.items()}}


def format_budgets(values: dict[str, Any]) -> str:
    """Returns Markdown tables: the runs, and the share of the intervals that held."""
    lines = [
        "| run | budget | expected | measured | bits per byte expected | measured | intervals that held |",
        "|---" * 7 + "|",
    ]
    for row in values["runs"]:
        cells = [f"{row['budget']:.0f} s"]
        for name, form in (("seconds", "{:.0f} s"), ("bits_per_byte", "{:.3f}")):
            pair = row["pairs"].get(name) or (row["pairs"].get("pretrain bits_per_byte") if "bits" in name else None)
            cells += [form.format(pair[0]), form.format(pair[3])] if pair else ["-", "-"]
        lines.append(f"| {row['run']} | {' | '.join(cells)} | {row['within']} of {row['of']} |")
    lines += ["", "| quantity | 90 % intervals that held | median error |", "|---|---|---|"]
    for name, entry in values["quantities"].items():
        lines.append(f"| {name} | {entry['held']} of {entry['of']} | {100 * entry['median_error']:.1f} % |")
    lines += [
        f"\n{copy} is left out: it is the same run as {first}" for copy, first in values.get("copies", {}).items()
    ]
    return "\n".join(lines)
