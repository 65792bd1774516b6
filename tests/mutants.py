"""Mutation testing of one package with cosmic-ray: how many small changes of the code its tests detect.

`python -m tests.mutants PACKAGE --count 50 --seed 1` copies the tree, draws `count` of cosmic-ray's mutants of
fledgling/PACKAGE, runs tests/PACKAGE and what `ALSO` names for each, and prints the survivors, which no test detected,
and the share of the others. The test file of the mutated module runs first, in a fork of a process that has imported
torch: most mutants end there, within seconds.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ALSO = {  # what must detect a change of a package besides its own tests: those that compare it from outside
    "data": "tests/invariants/test_packing.py tests/invariants/test_every_row_before_any_twice.py",
    "infer": "tests/invariants/test_decode.py",
    "model": "tests/invariants/test_decode.py tests/invariants/test_one_update.py",
    "optim": "tests/plan/test_zero3.py tests/invariants/test_one_update.py",
    "train": "tests/invariants/test_one_update.py tests/invariants/test_sampler_and_trainer.py",
}
OPERATORS_LEFT_OUT = ("core/NumberReplacer",)  # constants of tuning: most of their mutants change speed only
SOURCE_ORDER = "module_path, start_pos_row, start_pos_col, operator_name, occurrence, operator_args"
CONFIG = """[cosmic-ray]
module-path = "fledgling/{package}"
timeout = 0
excluded-modules = ["fledgling/{package}/__init__.py"]
test-command = ""
[cosmic-ray.distributor]
name = "local"
"""


@dataclass(frozen=True)
class Mutant:
    """One change: the `occurrence`-th place in `module` where an operator of cosmic-ray applies."""

    module: Path  # relative to the tree
    operator: str
    arguments: dict[str, Any]
    occurrence: int
    line: int


def list_packages() -> list[str]:
    """Returns the packages of fledgling that have tests of their own, by name."""
    folders = (path.parent.name for path in (ROOT / "fledgling").glob("*/__init__.py"))
    return sorted(name for name in folders if (ROOT / "tests" / name).is_dir())


def copy_tree(folder: Path) -> Path:
    """Copies what git tracks to `folder`, where sources are mutated; returns the copy."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def find_annotations(module: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Returns (start, end) of the type annotations of a module, as (line, column): no change there does anything."""
    nodes = list(ast.walk(ast.parse(module.read_text(encoding="utf-8"))))
    found = [node.annotation for node in nodes if isinstance(node, ast.arg | ast.AnnAssign)]
    found += [node.returns for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [((e.lineno, e.col_offset), (e.end_lineno or 0, e.end_col_offset or 0)) for e in found if e is not None]


def draw_mutants(tree: Path, package: str, count: int, seed: int) -> tuple[list[Mutant], int]:
    """Returns `count` random mutants of a package, chosen by `seed`, in the order drawn, and how many there are."""
    config, session = tree / "mutants.toml", tree / "mutants.sqlite"
    config.write_text(CONFIG.format(package=package))
    runner = Path(sys.executable).with_name("cosmic-ray")
    subprocess.run([runner, "init", str(config), str(session)], cwd=tree, check=True)
    columns = "module_path, operator_name, operator_args, occurrence, start_pos_row, start_pos_col"
    with sqlite3.connect(session) as database:
        rows = database.execute(f"SELECT {columns} FROM mutation_specs ORDER BY {SOURCE_ORDER}").fetchall()
    annotations = {module: find_annotations(tree / module) for module in {row[0] for row in rows}}
    useful = [
        Mutant(Path(module), operator, json.loads(json.loads(arguments)), occurrence, line)  # stored as text of JSON
        for module, operator, arguments, occurrence, line, column in rows
        if not operator.startswith(OPERATORS_LEFT_OUT)
        and not any(start <= (line, column) < end for start, end in annotations[module])
    ]
    return random.Random(seed).sample(useful, min(count, len(useful))), len(useful)


def list_test_files(package: str, module: Path, ranks: bool = True) -> list[str]:
    """Returns the test files of a package, that of `module` first, those that start ranks last of the others.

    ranks: False leaves out the files that start ranks, except the module's own.
    """
    named = [ROOT / "tests" / package, *(ROOT / name for name in ALSO.get(package, "").split())]
    files = [file for path in named for file in ([path] if path.is_file() else sorted(path.rglob("test_*.py")))]
    own = ROOT.joinpath("tests", *module.parts[1:-1], f"test_{module.name}")
    starts_ranks = {file: "on_ranks" in file.read_text(encoding="utf-8") for file in files}
    files.sort(key=lambda file: (file != own, starts_ranks[file]))
    return [str(file.relative_to(ROOT)) for file in files if ranks or file == own or not starts_ranks[file]]


def run_tests(tree: Path, files: list[str], timeout: float) -> str:
    """Runs test files of `tree` in a fork of this process; returns "passed", "failed" or "timeout"."""
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(tree)
        os.environ["PYTHONPATH"] = sys.path[0] = str(tree)
        for name in [name for name in sys.modules if name.split(".")[0] in ("fledgling", "tests")]:
            del sys.modules[name]
        nowhere = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nowhere, descriptor)
        import pytest

        status = 1
        try:
            status = int(pytest.main(["-q", "-x", "-n", "0", "-p", "no:cacheprovider", *files]))
        finally:
            os._exit(status)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return "failed" if status else "passed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def try_mutant(tree: Path, mutant: Mutant, files: list[str], timeout: float) -> tuple[str, str]:
    """Applies a mutant to the copy of the tree, runs the tests, and undoes it; returns the outcome and the diff."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    operator = get_operator(mutant.operator)(**mutant.arguments)
    with use_mutation(tree / mutant.module, operator, mutant.occurrence) as (before, after):
        outcome = run_tests(tree, files, timeout)
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return outcome, "\n".join(line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@")


def main() -> int:
    """Runs the campaign; returns 0 when every mutant was tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=list_packages())
    parser.add_argument("--count", type=int, default=50, help="mutants drawn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--skip", type=int, default=0, help="mutants left out at the start, to resume after a stop")
    parser.add_argument("--no-ranks", action="store_true", help="leave out tests on several ranks: a lower bound")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for the tests of one mutant")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import hypothesis  # noqa: F401  # imported once, before the forks
    import numpy  # noqa: F401
    import torch  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder))
        mutants, total = draw_mutants(tree, options.package, options.count, options.seed)
        unchanged = run_tests(
            tree, list_test_files(options.package, Path("none"), not options.no_ranks), 10 * options.timeout
        )
        if unchanged != "passed":
            print(f"{options.package}: the tests {unchanged} without a mutant", file=sys.stderr)
            return 1
        survivors = 0
        for number, mutant in enumerate(mutants[options.skip :], options.skip + 1):
            files = list_test_files(options.package, mutant.module, not options.no_ranks)
            outcome, difference = try_mutant(tree, mutant, files, options.timeout)
            survivors += outcome == "passed"
            print(f"{number} {outcome}: {mutant.module}:{mutant.line} {mutant.operator}", flush=True)
            if outcome == "passed":
                print(difference, flush=True)
    tried = len(mutants) - options.skip
    print(f"{options.package}: {tried - survivors} of {tried} mutants detected, of {total}; {survivors} survived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
