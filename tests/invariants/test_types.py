"""The whole package and its benchmarks pass the type checker."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_the_package_has_no_type_errors():
    command = [sys.executable, "-m", "mypy", "fledgling", "benchmarks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_package_tells_type_checkers_that_it_is_typed():
    assert (ROOT / "fledgling" / "py.typed").is_file()
