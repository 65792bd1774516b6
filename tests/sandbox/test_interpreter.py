"""The interpreter way: answers, bounds, and a worker that is used again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from fledgling.sandbox.interpreter import MAX_VALUE_CHARS, TOOL_LIMITS, evaluate_code
from fledgling.sandbox.process import Limits


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
def test_answers(code, value, output):
    end = evaluate_code(code)
    assert (end.value, end.output, end.error) == (value, output, "")


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
def test_what_goes_wrong_is_a_short_text(code, error):
    end = evaluate_code(code)
    assert error in end.error and len(end.error) <= 300 and end.value is None


def test_time_is_bounded():
    end = evaluate_code("while True: pass", Limits(0.2, TOOL_LIMITS.memory_bytes, TOOL_LIMITS.output_bytes))
    assert "TimeoutError" in end.error and end.seconds < 2


def test_calls_share_nothing_and_random_numbers_repeat():
    evaluate_code("kept = 1")
    assert "NameError" in evaluate_code("kept").error
    assert (
        evaluate_code("import random\nrandom.random()").value == evaluate_code("import random\nrandom.random()").value
    )


def test_many_threads():
    with ThreadPoolExecutor(4) as pool:
        assert {end.value for end in pool.map(evaluate_code, ["1 + 2"] * 60)} == {"3"}
