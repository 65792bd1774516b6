"""The sandbox experiment: its broken solutions are wrong, and every kind of call is timed."""

import pytest

from benchmarks.sandbox import break_solution, format_sandbox, grade_programs, measure_sandbox

ROW = {
    "prompt": 'def add(a, b):\n    """Returns the sum."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
}


@pytest.mark.parametrize(("change", "value"), [("pair", ("wrong", 3)), ("changed", 4)])
def test_a_broken_solution_returns_another_value(change, value):
    namespace: dict = {}
    exec(break_solution(ROW, change), namespace)  # our own text, with the function above
    assert namespace["add"](1, 2) == value


def test_the_reference_passes_and_broken_solutions_fail():
    programs = [ROW["prompt"] + ROW["canonical_solution"], break_solution(ROW, "pair"), break_solution(ROW, "changed")]
    assert [verdict.passed for verdict in grade_programs([ROW] * 3, programs, 10.0)] == [True, False, False]


def test_calls_are_timed_without_the_file_of_humaneval(tmp_path):
    result = measure_sandbox(tmp_path, calls=2)
    assert result["human_eval"] is None and set(result["ms"]) == {"interpreter", "process", "verdict", "fresh python"}
    assert all(0 < times["median"] <= times["p95"] for times in result["ms"].values())
    assert "HumanEval: no" in format_sandbox(result)
