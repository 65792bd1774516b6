"""Measures the speed-up of several ranks over one: the same step by one process and by several, in turn.

Runs `fledgling bench train` as a separate process for each number of ranks, in turn and several times, so that other
load on the machine affects all alike. On a CPU the cores and rows are shared (strong scaling); on GPUs each rank keeps
its rows (weak scaling).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from fledgling.config import UserError
from fledgling.runtime.world import choose_device


def measure_rank_scaling(
    ranks: Sequence[int], batch: int, threads: int | None, options: Sequence[str], repeats: int, device: str = "auto"
) -> dict[str, Any]:
    """Runs `bench train` with each number of ranks, `repeats` times; returns medians, and ratios to the first number.

    Args:
        batch: rows in a step; on GPUs, of each rank.
        threads: of all ranks together; None is the number of cores.
        options: command-line options of `bench train`.

    Raises:
        UserError: rows or threads cannot be divided by a number of ranks, or a run fails.
    """
    kind = choose_device(device)
    threads = threads or os.cpu_count() or 1
    for count in ranks:
        if kind == "cpu" and (batch % count or threads % count):
            raise UserError(f"{batch} rows and {threads} threads on {count} ranks: expected numbers that it divides")
    runs_by_count: dict[int, list[dict]] = {count: [] for count in ranks}
    for repeat in range(repeats):
        for count in ranks:
            print(f"\rrepeat {repeat + 1} of {repeats}: {count} rank(s)   ", end="", file=sys.stderr, flush=True)
            rows, share = (batch // count, threads // count) if kind == "cpu" else (batch, threads)
            arguments = ["--gpus", str(count), "--batch", str(rows), *options, "--set", f"run.device={kind}", "--json"]
            runs_by_count[count].append(_run_bench_train([*arguments, "--set", f"run.threads={share}"], share))
    print(file=sys.stderr)
    table = [_row(count, runs_by_count[count]) for count in ranks]
    for row in table:
        row["speedup"] = row["tokens_per_second"] / table[0]["tokens_per_second"]
        row["efficiency"] = row["speedup"] * (1 if kind == "cpu" else table[0]["ranks"] / row["ranks"])
    return {"device": kind, "scaling": "strong" if kind == "cpu" else "weak", "threads": threads, "rows": table}


def _run_bench_train(arguments: Sequence[str], threads: int) -> dict:
    command = [sys.executable, "-m", "fledgling", "bench", "train", *arguments]
    run = subprocess.run(
        command, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=False,
    )  # fmt: skip
    if run.returncode:
        last = run.stderr.strip().splitlines()[-1:] or ["no output"]
        raise UserError(f"bench train {' '.join(arguments)} failed: {last[0]}")
    return json.loads(run.stdout)


def _row(ranks: int, runs: Sequence[dict]) -> dict[str, Any]:
    speeds = [run["tokens_per_second"] for run in runs]
    shares = [run["seconds"]["communication"] / run["seconds"]["step"] for run in runs]
    return {
        "ranks": ranks,
        "threads_each": runs[0]["threads"],
        "tokens_per_second": statistics.median(speeds),
        "low": min(speeds),
        "high": max(speeds),
        "communication_share": statistics.median(shares),
        "dtype": runs[0]["dtype"],
        "compiled": runs[0]["compiled"],
    }


def format_rank_scaling(result: dict[str, Any]) -> str:
    """Returns the result of `measure_rank_scaling` as a table."""
    first = result["rows"][0]
    how = f"{first['dtype']}, {'compiled' if first['compiled'] else 'eager'}"
    lines = [
        f"{result['scaling']} scaling on {result['device']}, {how}",
        "ranks  threads each    tokens/s  (lowest to highest)  speed-up  efficiency  communication",
    ]
    for row in result["rows"]:
        spread = f"{row['low']:,.0f} to {row['high']:,.0f}"
        lines.append(
            f"{row['ranks']:5}  {row['threads_each']:12}  {row['tokens_per_second']:10,.0f}  {spread:>19}  "
            f"{row['speedup']:7.2f}x  {row['efficiency']:10.0%}  {row['communication_share']:13.1%}"
        )
    return "\n".join(lines)
