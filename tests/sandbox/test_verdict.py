"""Verdicts on honest programs, and on HumanEval: every reference passes, every broken variant fails."""

from __future__ import annotations

import pytest

from benchmarks.sandbox import HUMAN_EVAL, broken, grade, read
from fledgling.files import resolve_data_root
from fledgling.sandbox.verdict import ProgramCheck, check_program, check_programs

pytestmark = pytest.mark.usefixtures("layers")


def test_plain_asserts_and_a_check_function():
    program = "def double(number):\n    return 2 * number"
    assert check_program(program, "assert double(2) == 4", "double").passed
    assert check_program(program, "def check(candidate):\n    assert candidate(2) == 4", "double").passed
    verdict = check_program(program, "assert double(2) == 5", "double")
    assert not verdict.passed and verdict.reason == "AssertionError: assert double(2) == 5"


def test_tests_that_call_nothing_pass_no_program():
    for tests in ("", "def check(candidate):\n    pass", "import sys\nsys.exit(0)"):
        assert not check_program("def double(number):\n    return 0", tests, "double").passed


def test_tests_may_expect_an_error():
    tests = (
        "try:\n    root(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\nelse:\n    assert False"
    )
    program = "def root(number):\n    raise {}('negative')"
    assert check_program(program.format("ValueError"), tests, "root").passed
    assert not check_program(program.format("KeyError"), tests, "root").passed
    assert not check_program("def root(number):\n    return 1", tests, "root").passed


def test_helpers_of_the_setup_code_are_not_taken_from_the_program():
    program = "def helper(x):\n    return 0\n\ndef f(x):\n    return 0"
    setup_code = "def helper(x):\n    return x + 1\n"
    assert not check_program(program, "assert f(1) == helper(1)", "f", setup_code=setup_code).passed
    assert check_program(program.replace("0", "x + 1"), "assert f(1) == helper(1)", "f", setup_code=setup_code).passed


def test_a_failure_stays_when_the_tests_catch_every_exception():
    tests = "try:\n    f(1)\nexcept BaseException:\n    pass\nassert True"
    assert not check_program("import os\ndef f(x):\n    os._exit(0)", tests, "f").passed
    assert not check_program("def f(x):\n    return object()", tests, "f").passed


def test_values_are_copies():
    tests = "numbers = [3, 1, 2]\nassert f(numbers) == []\nassert numbers == [3, 1, 2]"
    assert check_program("def f(numbers):\n    numbers.clear()\n    return numbers", tests, "f").passed


def test_verdicts_come_in_order():
    checks = [ProgramCheck(f"def f(x):\n    return {i}", "assert f(0) % 2 == 0", "f") for i in range(12)]
    assert [verdict.passed for verdict in check_programs(checks)] == [i % 2 == 0 for i in range(12)]


@pytest.fixture(scope="module")
def human_eval() -> list[dict]:
    path = resolve_data_root() / HUMAN_EVAL
    if not path.is_file():
        pytest.skip(f"needs {HUMAN_EVAL} under FLEDGLING_DATA")
    return read(path)


def find_passing(rows: list[dict], programs: list[str]) -> list[str]:
    """Returns the ids of the tasks whose program passed."""
    verdicts = zip(rows, grade(rows, programs, seconds=10.0), strict=True)
    return [row["task_id"] for row, verdict in verdicts if verdict.passed]


def test_every_reference_solution_passes(human_eval):
    assert len(human_eval) == 164
    assert len(find_passing(human_eval, [row["prompt"] + row["canonical_solution"] for row in human_eval])) == 164


@pytest.mark.parametrize("how", ["pair", "beside"])
def test_every_broken_variant_fails(human_eval, how):
    assert find_passing(human_eval, [broken(row, how) for row in human_eval]) == []
