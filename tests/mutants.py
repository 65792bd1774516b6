"""Mutation testing of one package with cosmic-ray: how many small faults the tests of that package notice.

`python -m tests.mutants PACKAGE --count 50 --seed 1` copies the tree, draws `count` of cosmic-ray's mutants of
fledgling/PACKAGE, runs the tests below for each, and prints the share that made them fail and the ones that did not.
The test file of the changed module runs first: most mutants fail there, within seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = {  # what must notice a fault of the package: its own tests, and the invariants that hold its promises
    "optim": "tests/optim tests/invariants/test_one_update.py",
    "train": "tests/train tests/invariants/test_one_update.py tests/invariants/test_sampler_and_trainer.py",
    "infer": "tests/infer tests/invariants/test_decode.py",
    "record": "tests/record",
}
OPERATORS_LEFT_OUT = ("core/NumberReplacer",)  # constants of tuning: most of their mutants change speed only
SOURCE_ORDER = "module_path, start_pos_row, start_pos_col, operator_name, occurrence, operator_args"
CONFIG = """[cosmic-ray]
module-path = "fledgling/{package}"
timeout = {timeout}
excluded-modules = ["fledgling/{package}/__init__.py"]
test-command = "{python} -m tests.mutants {package} --run-tests {original}"
[cosmic-ray.distributor]
name = "local"
"""


def copy_tree(folder: Path) -> Path:
    """Copies what git tracks to `folder`, where sources are mutated; returns the copy."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def changed_module(package: str, original: Path) -> Path | None:
    """Returns the module of fledgling/`package` in the working directory that differs from the one under `original`."""
    for unchanged in sorted((original / "fledgling" / package).rglob("*.py")):
        module = unchanged.relative_to(original)
        if module.read_bytes() != unchanged.read_bytes():
            return module
    return None


def run_tests(package: str, original: Path) -> int:
    """Runs the tests of `package` in the working directory, those of the changed module first; returns the status."""
    named = [Path(name) for name in TESTS[package].split()]
    files = [file for path in named for file in ([path] if path.is_file() else sorted(path.rglob("test_*.py")))]
    module = changed_module(package, original)
    if module is not None:
        files.sort(key=lambda file: file != Path("tests", *module.parts[1:-1], f"test_{module.name}"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *map(str, files)]
    return subprocess.run(command).returncode


def draw_mutants(session: Path, count: int, seed: int) -> int:
    """Leaves `count` random mutants in a cosmic-ray session, chosen by `seed`; returns how many there were."""
    with sqlite3.connect(session) as database:
        rows = database.execute(f"SELECT job_id, operator_name FROM mutation_specs ORDER BY {SOURCE_ORDER}").fetchall()
        useful = [job for job, operator in rows if not operator.startswith(OPERATORS_LEFT_OUT)]
        kept = set(random.Random(seed).sample(useful, min(count, len(useful))))
        for job, _ in rows:
            if job not in kept:
                database.execute("DELETE FROM mutation_specs WHERE job_id = ?", (job,))
                database.execute("DELETE FROM work_items WHERE job_id = ?", (job,))
    return len(useful)


def main() -> int:
    """Runs the campaign, or with --run-tests the tests of one mutant; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=sorted(TESTS))
    parser.add_argument("--count", type=int, default=50, help="mutants drawn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for the tests of one mutant")
    parser.add_argument("--run-tests", type=Path, metavar="TREE", help="only run the tests of a mutant of TREE, here")
    options = parser.parse_args()
    if options.run_tests:
        return run_tests(options.package, options.run_tests)
    runner = Path(sys.executable).with_name("cosmic-ray")
    with tempfile.TemporaryDirectory() as folder:
        tree, config, session = copy_tree(Path(folder)), Path(folder, "mutants.toml"), Path(folder, "session.sqlite")
        values = {"package": options.package, "timeout": options.timeout, "python": sys.executable, "original": ROOT}
        config.write_text(CONFIG.format(**values))
        subprocess.run([runner, "init", str(config), str(session)], cwd=tree, check=True)
        total = draw_mutants(session, options.count, options.seed)
        subprocess.run([runner, "baseline", str(config)], cwd=tree, check=True)  # the tests pass without a mutant
        subprocess.run([runner, "exec", str(config), str(session)], cwd=tree, check=True)
        dumped = subprocess.run([runner, "dump", str(session)], cwd=tree, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in dumped.stdout.splitlines() if line.strip()]
    survivors = [item for item, result in rows if result and result["test_outcome"] == "survived"]
    for item in survivors:
        mutation = item["mutations"][0]
        line, column = mutation["start_pos"]
        print(f"survived: {mutation['module_path']}:{line}:{column} {mutation['operator_name']}")
    killed = len(rows) - len(survivors)
    print(f"{options.package}: {killed} of {len(rows)} mutants noticed ({killed / max(1, len(rows)):.0%}), of {total}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
