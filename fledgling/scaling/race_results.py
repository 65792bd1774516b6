"""Reads the runs of a race and compares them: bits per byte at equal time, intervals over seeds, curves.

A file of results of another program has one JSON object a line, in the order in which they were measured:

    {"steps": 100, "seconds": 61.5, "bits": 2.31}

steps: optimizer steps so far; seconds: of training steps so far, without compilation and evaluation; bits: bits per
byte of the race's held-out documents. Optional: seed (0), tokens and flops so far. Our own points.jsonl is such a file.
Does not import torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from fledgling.config import UserError
from fledgling.files.rows import read_rows
from fledgling.record import write_text
from fledgling.record.progress_bar import format_count
from fledgling.report.chart import Chart, Line, render_chart
from fledgling.report.template import render_page
from fledgling.scaling.ablation import confidence_margin
from fledgling.scaling.results import format_flops

MAX_POINTS = 100_000  # of a file of results
COLORS = 6  # of the style sheet's lines
HEADER = ("contestant", "bits per byte", "difference", "seeds", "parameters", "tokens/s", "steps", "")


@dataclass(frozen=True)
class Point:
    """What a run has reached by `seconds` of training steps; flops and tokens are None where they are unknown."""

    steps: int
    seconds: float
    bits: float
    tokens: float | None = None
    flops: float | None = None


@dataclass(frozen=True)
class RaceRun:
    """One run: its points, ordered by time."""

    name: str
    seed: int
    points: tuple[Point, ...]
    parameters: int | None = None

    def at(self, seconds: float) -> Point | None:
        """Returns the last point within `seconds`, or None."""
        return next((point for point in reversed(self.points) if point.seconds <= seconds * 1.001), None)


@dataclass(frozen=True)
class ContestantResult:
    """What a contestant has reached at the end: means over seeds, and differences to the first one's same seeds.

    margin, difference_margin: half of the 95 % intervals over seeds; None for fewer than two.
    """

    name: str
    bits: float
    margin: float | None
    difference: float | None
    difference_margin: float | None
    seeds: int
    seconds: float
    runs: tuple[RaceRun, ...]
    ends: tuple[Point, ...]

    @property
    def verdict(self) -> str:
        """Returns "better", "worse" or "not significant" than the first; "" for the first itself."""
        if self.difference is None:
            return ""
        if self.difference_margin is None or abs(self.difference) <= self.difference_margin:
            return "not significant"
        return "better" if self.difference < 0 else "worse"


def read_points(path: Path) -> dict[int, list[Point]]:
    """Returns the points of a file of results by seed.

    Raises UserError, with the line, for a value that is missing, not a finite number, or smaller than the one before.
    """
    by_seed: dict[int, list[Point]] = {}
    for number, (row, place) in enumerate(read_rows(path)):
        if number >= MAX_POINTS:
            raise UserError(f"{path}: more than {MAX_POINTS:,} lines; expected some measurements of a run")
        point, seed = _parse_point(row, place)
        earlier = by_seed.setdefault(seed, [])
        if earlier and (point.seconds < earlier[-1].seconds or point.steps < earlier[-1].steps):
            raise UserError(
                f"{place}: {point.seconds:g} seconds, {point.steps} steps are before the line above of seed {seed}; "
                "expected the order of time"
            )
        earlier.append(point)
    if not by_seed:
        raise UserError(f'{path}: no line; expected {{"steps": 100, "seconds": 61.5, "bits": 2.31}}')
    return by_seed


def _parse_point(row: dict[str, Any], place: str) -> tuple[Point, int]:
    """Returns the point of a line and its seed."""
    values = {"seed": 0, "tokens": None, "flops": None, **row}
    for name in ("steps", "seconds", "bits", "seed", "tokens", "flops"):
        value = values.get(name)
        if value is None and name in ("tokens", "flops"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
            found = json.dumps(value, default=str)[:40]
            raise UserError(f'{place}: "{name}" is {found}; expected a number of at least 0')
    point = Point(int(values["steps"]), values["seconds"], values["bits"], values["tokens"], values["flops"])
    return point, int(values["seed"])


def read_race_run(run_dir: Path, name: str, seed: int) -> RaceRun | None:
    """Returns the finished run of a contestant and seed, None if it is not finished."""
    result, points = run_dir / "race.json", run_dir / "points.jsonl"
    if not (result.is_file() and points.is_file()):
        return None
    parameters = int(json.loads(result.read_text(encoding="utf-8"))["parameters"])
    return RaceRun(name, seed, tuple(read_points(points)[seed]), parameters)


def read_results(path: Path, name: str) -> list[RaceRun]:
    """Returns the runs of a file of results."""
    return [RaceRun(name, seed, tuple(points)) for seed, points in sorted(read_points(path).items())]


def drop_copies(runs: Sequence[RaceRun]) -> tuple[list[RaceRun], list[str]]:
    """Returns the runs that differ, and a line for each one whose points are those of another, to the last digit.

    Seconds are measured, so that two runs never have the same ones: such a run is a copy, and no other seed.
    """
    kept, notes = dict[tuple[Point, ...], RaceRun](), list[str]()
    for run in runs:
        first = kept.setdefault(run.points, run)
        if first is not run:
            notes.append(
                f"{run.name}, seed {run.seed} is left out: it has the points of {first.name}, seed {first.seed}, so it "
                "is the same run"
            )
    return list(kept.values()), notes


def explain_late(runs: Sequence[RaceRun], seconds: float) -> list[str]:
    """Returns a line for each run that was not measured within `seconds`, so that it has no place in the race."""
    return [
        f"{run.name}, seed {run.seed} is left out: its first point is at {run.points[0].seconds:,.1f} s, and the race "
        f"ends at {seconds:,.1f} s; measure it earlier, or race for more --minutes"
        for run in runs
        if _find_end_point(run, seconds) is None
    ]


def rank_runs(runs: Sequence[RaceRun], seconds: float) -> list[ContestantResult]:
    """Returns the contestants at the end of the time, the first one first, then the best.

    The last point of a run within `seconds` counts (our own runs end with it; the one step that reaches it may end a
    little later).
    """
    names = list(dict.fromkeys(run.name for run in runs))
    ended = {(run.name, run.seed): end for run in runs if (end := _find_end_point(run, seconds))}
    results = []
    for name in names:
        own = tuple(run for run in runs if run.name == name and (name, run.seed) in ended)
        if not own:
            continue
        ends = tuple(ended[name, run.seed] for run in own)
        pairs = [(ended[name, r.seed], ended[names[0], r.seed]) for r in own if (names[0], r.seed) in ended]
        differences = [one.bits - other.bits for one, other in pairs] if name != names[0] else []
        results.append(
            ContestantResult(
                name,
                mean(end.bits for end in ends),
                confidence_margin([end.bits for end in ends]),
                mean(differences) if differences else None,
                confidence_margin(differences),
                len(own),
                mean(end.seconds for end in ends),
                own,
                ends,
            )
        )
    return sorted(results, key=lambda result: (result.name != names[0], result.bits))


def _find_end_point(run: RaceRun, seconds: float) -> Point | None:
    """Returns the point that counts: of our own runs the last, of others the last within the time."""
    return run.points[-1] if run.parameters is not None else run.at(seconds)


def result_rows(results: Sequence[ContestantResult], seconds: float) -> list[tuple[str, ...]]:
    """Returns the results as cells of HEADER, values with half of their 95 % intervals; the last cell is a note."""
    rows = list[tuple[str, ...]]()
    for s in results:
        parameters, note = s.runs[0].parameters, s.verdict
        if s.seconds < 0.9 * seconds:
            note = f"{note}; only {s.seconds:.0f} s".strip("; ")
        speeds = [point.tokens / point.seconds for point in s.ends if point.tokens and point.seconds]
        rows.append(
            (
                s.name,
                format_margin(s.bits, s.margin),
                "" if s.difference is None else format_margin(s.difference, s.difference_margin, "+"),
                str(s.seeds),
                format_count(parameters) if parameters else "",
                f"{mean(speeds):,.0f}" if speeds else "",
                f"{mean(point.steps for point in s.ends):,.0f}",
                note,
            )
        )
    return rows


def format_margin(value: float, margin: float | None, sign: str = "") -> str:
    """Returns a value with half of its interval, where it has one: 1.7850 ± 0.0120."""
    return f"{value:{sign}.4f}" + ("" if margin is None else f" ± {margin:.4f}")


def results_to_json(results: Sequence[ContestantResult]) -> list[dict[str, Any]]:
    """Returns the results as JSON values, with every run's points."""
    return [
        {
            "name": s.name,
            "bits_per_byte": s.bits,
            "margin": s.margin,
            "difference": s.difference,
            "difference_margin": s.difference_margin,
            "verdict": s.verdict,
            "seeds": s.seeds,
            "seconds": s.seconds,
            "runs": [
                {"seed": run.seed, "parameters": run.parameters, "points": [vars(point) for point in run.points]}
                for run in s.runs
            ],
        }
        for s in results
    ]


def build_race_page(path: Path, results: Sequence[ContestantResult], seconds: float, notes: Sequence[str]) -> None:
    """Writes the table and the curves of a race as one HTML page. notes: lines about runs that are left out."""
    values = {
        "title": path.parent.name,
        "minutes": f"{seconds / 60:g}",
        "head": HEADER,
        "rows": result_rows(results, seconds),
        "names": [(result.name, index % COLORS + 1) for index, result in enumerate(results)],
        "by_time": curve_chart(results, "minutes"),
        "by_flops": curve_chart(results, "FLOPs"),
        "notes": notes,
    }
    write_text(path, render_page("scaling", "race.html", **values))


def curve_chart(results: Sequence[ContestantResult], unit: str) -> Any:
    """Returns bits per byte against minutes or FLOPs: means over seeds, with their 95 % intervals as a band."""
    lines = []
    for index, result in enumerate(results):
        xs, means = list[float](), list[float]()
        lows, highs = list[float | None](), list[float | None]()
        for points in zip(*(run.points for run in result.runs), strict=False):
            values = [point.seconds / 60 if unit == "minutes" else point.flops for point in points]
            if any(value is None for value in values):
                continue
            bits = [point.bits for point in points]
            margin = confidence_margin(bits)
            xs.append(mean(value for value in values if value is not None))
            means.append(mean(bits))
            lows.append(None if margin is None else means[-1] - margin)
            highs.append(None if margin is None else means[-1] + margin)
        if None in lows:
            lows, highs = [], []
        lines.append(Line(result.name, xs, means, lows, highs, color=index % COLORS + 1, dots=True))
    format_x = (lambda x: f"{x:.3g}") if unit == "minutes" else format_flops
    return render_chart(Chart("bits per byte", lines, unit, format_y=lambda y: f"{y:.2f}", format_x=format_x))
