"""The interpreter: values, limits, and a worker that is reused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fledgling.sandbox.interpreter import MAX_VALUE_CHARS, TOOL_LIMITS
from tests.sandbox.patient import evaluate_code


@pytest.mark.parametrize(
    "code, value, output",
    [
        ("1 + 2", "3", ""),
        ("print('hello')", None, "hello\n"),
        ("words = 'a b a'.split()\nlen(set(words))", "2", ""),
        ("import math\nmath.comb(10, 3)", "120", ""),
        ("'x' * 20000", "'" + "x" * (MAX_VALUE_CHARS - 1), ""),
    ],
)
def test_values_and_output_are_those_of_python(code, value, output):
    result = evaluate_code(code)
    assert (result.value, result.output, result.error) == (value, output, "")


@pytest.mark.parametrize(
    "code, error",
    [
        ("1 / 0", "ZeroDivisionError"),
        ("(", "SyntaxError"),
        ("undefined", "NameError"),
        ("10 ** 5000", "digits"),
        ("#" * 70_000, "too long"),
        ("[0] * 10 ** 10", "MemoryError"),
    ],
)
def test_an_error_is_a_short_text(code, error):
    result = evaluate_code(code)
    assert error in result.error and len(result.error) <= 300 and result.value is None


def test_time_is_limited():
    result = evaluate_code("while True: pass", limits=replace(TOOL_LIMITS, timeout=0.2))
    assert "TimeoutError" in result.error


def test_calls_share_nothing_and_random_numbers_repeat():
    evaluate_code("variable = 1")
    assert "NameError" in evaluate_code("variable").error
    assert (
        evaluate_code("import random\nrandom.random()").value == evaluate_code("import random\nrandom.random()").value
    )


def test_many_threads_share_the_workers():
    with ThreadPoolExecutor(4) as pool:
        assert {result.value for result in pool.map(evaluate_code, ["1 + 2"] * 60)} == {"3"}
