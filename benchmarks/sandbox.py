"""Measures what running model-written code costs: a call of the interpreter, of the process, a verdict, HumanEval.

Each figure is compared with a fresh Python process for every program, timed in the same run without any restriction.
HumanEval is graded with the reference solutions, and with two broken variants of each: every return value becomes a
pair ("pair"), or another value of the same type ("changed").
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
CHANGE_VALUE_CODE = """
def _change_value(value):
    if value is None or isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return value + type(value)(["!"]) if isinstance(value, (list, tuple)) else f"{value}!"
"""


def measure_sandbox(data_dir: str | Path | None = None, calls: int = 200, seconds: float = 10.0) -> dict[str, Any]:
    """Times `calls` calls of each kind, one after another, and grades HumanEval if its file exists.

    Args: seconds: time limit of each program of HumanEval.

    Returns:
        layers, cores, load; "ms": for each kind of call the median and 95th percentile in milliseconds; "human_eval"
        (None without the file): {reference, pair, changed} -> passed, of, seconds.
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
        "ms": {name: _time_calls(call, calls) for name, call in ways.items()},
        "human_eval": None,
    }
    path = resolve_data_root(data_dir) / HUMAN_EVAL
    if path.is_file():
        rows = read_human_eval(path)
        programs = {"reference": [row["prompt"] + row["canonical_solution"] for row in rows]}
        programs |= {change: [break_solution(row, change) for row in rows] for change in ("pair", "changed")}
        result["human_eval"] = {}
        for change, codes in programs.items():
            start = perf_counter()
            passed = sum(verdict.passed for verdict in grade_programs(rows, codes, seconds))
            result["human_eval"][change] = {"passed": passed, "of": len(rows), "seconds": perf_counter() - start}
    return result


def format_sandbox(result: dict[str, Any]) -> str:
    """Returns the result of `measure_sandbox` as text."""
    lines = [
        f"{result['cores']} cores, load {result['load']:.1f}; " + ", ".join(map(" ".join, result["layers"].items()))
    ]
    lines.append(f"{'ms a call':14}{'median':>9}{'p95':>9}")
    lines += [f"  {name:12}{time['median']:9.2f}{time['p95']:9.2f}" for name, time in result["ms"].items()]
    for change, found in (result["human_eval"] or {}).items():
        lines.append(f"HumanEval {change}: {found['passed']} of {found['of']} pass, {found['seconds']:.1f} s")
    if not result["human_eval"]:
        lines.append(f"HumanEval: no {HUMAN_EVAL} under FLEDGLING_DATA")
    return "\n".join(lines)


def read_human_eval(path: Path) -> list[dict]:
    """Returns the rows of a HumanEval file: task_id, prompt, canonical_solution, test, entry_point."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def grade_programs(rows: list[dict], programs: list[str], seconds: float) -> list[Verdict]:
    """Returns the verdict on each row's program."""
    pairs = zip(rows, programs, strict=True)
    return check_programs(
        [ProgramCheck(code, row["test"], row["entry_point"], row["prompt"]) for row, code in pairs], seconds
    )


def break_solution(row: dict, change: str) -> str:
    """Returns a row's reference solution with broken return values; change: "pair" or "changed"."""
    tree = ast.parse(row["prompt"] + row["canonical_solution"])
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == row["entry_point"]:
            node.body = [_Break(change).visit(line) for line in node.body]
    return CHANGE_VALUE_CODE + ast.unparse(ast.fix_missing_locations(tree))


class _Break(ast.NodeTransformer):
    """Replaces the value of every return statement."""

    def __init__(self, change: str) -> None:
        self.change = change

    def visit_Return(self, node: ast.Return) -> ast.Return:
        value = node.value or ast.Constant(None)
        if self.change == "pair":
            return ast.Return(ast.Tuple([ast.Constant("wrong"), value], ast.Load()))
        return ast.Return(ast.Call(ast.Name("_change_value", ast.Load()), [value], []))


def _time_calls(call: Callable[[], object], calls: int) -> dict[str, float]:
    """Returns the median and 95th percentile of a call in milliseconds, after one call that is not timed."""
    call()
    times = []
    for _ in range(calls):
        start = perf_counter()
        call()
        times.append((perf_counter() - start) * 1e3)
    return {"median": median(times), "p95": quantiles(times, n=20, method="inclusive")[-1]}
