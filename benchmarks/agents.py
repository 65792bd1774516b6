"""Learning curves of the shipped environments: fine-tuned on careless players, then reinforced, seed after seed.

Each run is `fledgling speedrun guessing` with its environment in place of the guessing game, in a folder of its own, so
the command can be interrupted and resumed. All figures are read from the runs' own records.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.copied_runs import find_copies
from fledgling.config import UserError
from fledgling.record import read_jsonl
from fledgling.report.chart import Chart, Line, render_chart
from fledgling.tasks.environments import ENVIRONMENTS, load_environment_task

LAST_ROUNDS = 5  # whose mean number of calls is shown
STEPS = {"file_tree": 60, "database": 40, "web_shop": 40}  # of rl; the recipe's own are for the guessing game


def run_agents(folder: Path, environments: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> None:
    """Trains each environment with each seed, unless it is done. Raises UserError if one does not finish."""
    for seed in seeds:
        for name in environments:
            source, limit = f"env:{name}", load_environment_task(name, name).max_new_tokens
            settings = [
                f"run.out={folder / f'{name}-{seed}'}",
                f"seed={seed}",
                f'sft.mixture={{"{source}" = 1.0}}',
                f'rl.tasks={{"{source}" = 1.0}}',
                f"rl.max_new_tokens={limit}",
                *([f"rl.steps={STEPS[name]}"] if name in STEPS else []),
                *overrides,
            ]
            options = [word for setting in settings for word in ("--set", setting)]
            command = [sys.executable, "-m", "fledgling", "speedrun", "guessing", *options]
            if code := subprocess.run(command).returncode:
                raise UserError(f"{name}, seed {seed}: exit code {code}; the same command resumes this run")


def collect_agents(folder: Path) -> list[dict[str, Any]]:
    """Returns what each run in `folder` has so far: curve, scores of held-out instances, calls, seconds.

    A copy of a run is no run of another seed, and is passed over, as is a directory without a seed in its name.
    """
    runs = []
    for name in ENVIRONMENTS:
        seeded = [path for path in folder.glob(f"{name}-*") if path.name.rpartition("-")[2].isdecimal()]
        seeded.sort(key=lambda path: int(path.name.rpartition("-")[2]))
        copies = find_copies(seeded)
        for run in (path for path in seeded if path not in copies):
            curve = [line for line in _read_lines(run / "rl" / "evals.jsonl") if line["name"] == f"env:{name}_dev"]
            metrics = _read_lines(run / "rl" / "metrics.jsonl")
            runs.append(
                {
                    "environment": name,
                    "seed": int(run.name.rpartition("-")[2]),
                    "curve": [[line["step"], line["value"]] for line in curve],
                    "after_sft": _read_final_score(run / "sft", name),
                    "after_rl": _read_final_score(run / "rl", name),
                    "rounds": len(metrics),
                    "calls": round(mean(line["tool_calls"] for line in metrics[-LAST_ROUNDS:]), 2) if metrics else None,
                    "seconds": round(
                        sum(
                            line["seconds"]
                            for stage in ("sft", "rl")
                            for line in _read_lines(run / stage / "metrics.jsonl")
                        )
                    ),
                }
            )
    return runs


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.exists() else []


def _read_final_score(stage: Path, name: str) -> list[float] | None:
    """Returns score, bounds and number of the test after a finished stage; None before that."""
    if not (stage / "done.json").exists():
        return None
    last = [line for line in _read_lines(stage / "evals.jsonl") if line["name"] == f"env:{name}_test"][-1]
    return [last["value"], last["low"], last["high"], last["n"]]


def draw_agents(runs: Sequence[dict[str, Any]]) -> str:
    """Returns the curves as one SVG file: of each environment a color, of each seed a line."""
    order = list(ENVIRONMENTS)
    lines = [
        Line(
            run["environment"],
            [step for step, _ in run["curve"]],
            [value for _, value in run["curve"]],
            color=order.index(run["environment"]),
        )
        for run in runs
    ]
    chart = Chart("held-out instances that are won", lines, "steps of rl", floor=0.0, ceiling=1.0)
    style = (files("fledgling.report") / "style.css").read_text(encoding="utf-8")
    names = "".join(
        f'<text x="{52 + 80 * i}" y="14" style="fill: var(--c{i})">{name}</text>' for i, name in enumerate(order)
    )
    drawing = str(render_chart(chart)).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, _, body = drawing.partition(">")
    return f"{head}><style>{style}</style>{names}{body}\n"


def format_agents(runs: Sequence[dict[str, Any]]) -> str:
    """Returns a Markdown table: a row for each run."""
    lines = ["| environment | seed | n | after SFT | after RL | calls an episode | steps | minutes |", "|---" * 8 + "|"]
    for run in runs:
        sft, rl = run["after_sft"], run["after_rl"]
        cells = [_format_score(score) for score in (sft, rl)]
        calls = "-" if run["calls"] is None else f"{run['calls']:.1f}"
        lines.append(
            f"| {run['environment']} | {run['seed']} | {(rl or sft or [0] * 4)[3] or '-'} | {' | '.join(cells)} | "
            f"{calls} | {run['rounds']} | {run['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def _format_score(score: Sequence[float] | None) -> str:
    if score is None:
        return "not finished"
    value, low, high, _ = score
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
