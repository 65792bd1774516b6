"""Measures what running model-written code costs: a call of the interpreter, of the process, a verdict, HumanEval.

Each figure is compared with a fresh Python process for every program, timed in the same run without any restriction.
HumanEval is graded twice: with every reference solution, and with every one whose return values are broken, by type (a
pair instead) or by one (the neighboring value).
"""

from __future__ import annotations

import ast
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from fledgling.files import resolve_data_root
from fledgling.sandbox.interpreter import evaluate_code
from fledgling.sandbox.process import get_layers, run_program
from fledgling.sandbox.verdict import ProgramCheck, Verdict, check_program, check_programs

HUMAN_EVAL = Path("evals/humaneval/HumanEval.jsonl.gz")
COMPARED = """
def _beside(value):
    if value is None or isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return value + type(value)(["!"]) if isinstance(value, (list, tuple)) else f"{value}!"
"""


def measure_sandbox(data_dir: str | Path | None = None, calls: int = 200, seconds: float = 10.0) -> dict[str, Any]:
    """Time `calls` calls of each way, one after another, and HumanEval where its file is.

    Returns layers, cores, load; `ms`: way -> median and p95 in milliseconds; `human_eval` (None without the file):
    {reference, pair, beside} -> passed, of, seconds. `seconds` bounds each program of HumanEval.
    """
    program, tests = "def double(number):\n    return 2 * number", "assert double(21) == 42"
    ways: dict[str, Callable[[], object]] = {
        "interpreter": lambda: evaluate_code("1 + 2"),
        "process": lambda: run_program("1 + 2"),
        "verdict": lambda: check_program(program, tests, "double"),
        "fresh python": lambda: subprocess.run([sys.executable, "-S", "-c", "1 + 2"], check=True),
    }
    result: dict[str, Any] = {
        "layers": get_layers(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "ms": {name: _timed(call, calls) for name, call in ways.items()},
        "human_eval": None,
    }
    path = resolve_data_root(data_dir) / HUMAN_EVAL
    if path.is_file():
        rows = read(path)
        programs = {"reference": [row["prompt"] + row["canonical_solution"] for row in rows]}
        programs |= {how: [broken(row, how) for row in rows] for how in ("pair", "beside")}
        result["human_eval"] = {}
        for how, codes in programs.items():
            start = perf_counter()
            passed = sum(verdict.passed for verdict in grade(rows, codes, seconds))
            result["human_eval"][how] = {"passed": passed, "of": len(rows), "seconds": perf_counter() - start}
    return result


def format_sandbox(result: dict[str, Any]) -> str:
    """Return a result of `measure` as text."""
    lines = [
        f"{result['cores']} cores, load {result['load']:.1f}; " + ", ".join(map(" ".join, result["layers"].items()))
    ]
    lines.append(f"{'ms a call':14}{'median':>9}{'p95':>9}")
    lines += [f"  {name:12}{time['median']:9.2f}{time['p95']:9.2f}" for name, time in result["ms"].items()]
    for how, found in (result["human_eval"] or {}).items():
        lines.append(f"HumanEval {how}: {found['passed']} of {found['of']} pass, {found['seconds']:.1f} s")
    if not result["human_eval"]:
        lines.append(f"HumanEval: no {HUMAN_EVAL} under FLEDGLING_DATA")
    return "\n".join(lines)


def read(path: Path) -> list[dict]:
    """Return the rows of a HumanEval file: task_id, prompt, canonical_solution, test, entry_point."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def grade(rows: list[dict], programs: list[str], seconds: float) -> list[Verdict]:
    """Return the verdict on each row's program."""
    pairs = zip(rows, programs, strict=True)
    return check_programs(
        [ProgramCheck(code, row["test"], row["entry_point"], row["prompt"]) for row, code in pairs], seconds
    )


def broken(row: dict, how: str) -> str:
    """Return a row's reference solution with what its function returns broken: "pair" or "beside"."""
    tree = ast.parse(row["prompt"] + row["canonical_solution"])
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == row["entry_point"]:
            node.body = [_Break(how).visit(line) for line in node.body]
    return COMPARED + ast.unparse(ast.fix_missing_locations(tree))


class _Break(ast.NodeTransformer):
    """Replaces the value of every return statement."""

    def __init__(self, how: str) -> None:
        self.how = how

    def visit_Return(self, node: ast.Return) -> ast.Return:
        value = node.value or ast.Constant(None)
        if self.how == "pair":
            return ast.Return(ast.Tuple([ast.Constant("wrong"), value], ast.RecipeLoader()))
        return ast.Return(ast.Call(ast.Name("_beside", ast.RecipeLoader()), [value], []))


def _timed(call: Callable[[], object], calls: int) -> dict[str, float]:
    """Return median and 95th percentile of a call, in milliseconds."""
    call()
    times = []
    for _ in range(calls):
        start = perf_counter()
        call()
        times.append((perf_counter() - start) * 1e3)
    return {"median": median(times), "p95": quantiles(times, n=20, method="inclusive")[-1]}
