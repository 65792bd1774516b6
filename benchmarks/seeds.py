"""Compares finished runs of one recipe that differ in their seed: the median and the range of every final evaluation.

One run's interval is of its questions alone; another seed moves the weights too, often by more.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.copied_runs import find_copies
from fledgling.config import UserError
from fledgling.plan.budgeted_run import read_budgeted_run
from fledgling.record.evaluation_names import format_cases
from fledgling.report.run_data import load_run_data
from fledgling.report.summary import final_evaluations, format_score, is_share


def collect_seeds(runs: list[Path]) -> dict[str, Any]:
    """Returns {"seeds", "stages", "rows"}; a row is an evaluation, with its values by stage, one for each run.

    Runs with a budget are of one recipe where they were given the same, even if they made different numbers of steps.

    Raises UserError where the runs are not of one recipe, share a seed, or lack an evaluation that another has, and for
    a copy of a run, whatever seed its recipe.toml states.
    """
    recipes = [_read_given_recipe(run) for run in runs]
    seeds = [recipe.pop("seed", None) for recipe in recipes]
    settings = [{**recipe, "run": None} for recipe in recipes]
    if len(set(seeds)) < len(seeds) or any(setting != settings[0] for setting in settings):
        raise UserError(f"{len(runs)} runs with seeds {seeds}; expected one recipe with different seeds")
    if copies := find_copies(runs):
        copy, first = next(iter(copies.items()))
        raise UserError(f"{copy} and {first} have the same first step, so they are one run; expected different seeds")
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        for one in final_evaluations(load_run_data(run)):
            row = rows.setdefault(
                one.name,
                {"n": format_cases(one.n, one.clusters, one.cluster_unit), "constant": one.baseline, "values": {}},
            )
            row["values"].setdefault(one.stage, []).append(one.value)
    for name, row in rows.items():
        counts = {len(values) for values in row["values"].values()}
        if counts != {len(runs)}:
            raise UserError(f"{name} is measured {sorted(counts)} times in {len(runs)} runs; expected finished runs")
    stages = list(dict.fromkeys(stage for row in rows.values() for stage in row["values"]))
    return {"seeds": seeds, "stages": stages, "rows": rows}


def _read_given_recipe(run: Path) -> dict[str, Any]:
    """Returns the recipe of a run as it was given, and its budget if it has one."""
    budgeted = read_budgeted_run(run)
    if budgeted is None:
        return tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    return {**tomllib.loads(budgeted.given), "budget": asdict(budgeted.budget)}


def format_seeds(values: dict[str, Any]) -> str:
    """Returns a Markdown table: of every evaluation and stage the median, and the smallest and largest value."""
    lines = [
        f"| seeds {', '.join(map(str, values['seeds']))} | {' | '.join(values['stages'])} | constant answer | n |",
        "|---" * (len(values["stages"]) + 3) + "|",
    ]
    for name, row in values["rows"].items():
        share = is_share(name, [value for found in row["values"].values() for value in found])
        cells = [_format_cell(row["values"].get(stage), share) for stage in values["stages"]]
        lines.append(f"| {name} | {' | '.join(cells)} | {format_score(row['constant'], share) or '-'} | {row['n']} |")
    return "\n".join(lines)


def _format_cell(values: list[float] | None, share: bool) -> str:
    if not values:
        return "-"
    low, mid, high = (format_score(value, share) for value in (min(values), median(values), max(values)))
    return f"{mid} ({low} to {high})"
