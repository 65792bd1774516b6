"""The calculator: correct values, and bounded time and output for any input."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.text.calculator import MAX_CHARACTERS, calculate


@pytest.mark.parametrize(
    "expression, value",
    [
        ("1+2*3", "7"),
        (" ( 1 + 2 ) * 3 ", "9"),
        ("7-10", "-3"),
        ("-2**2", "-4"),
        ("2**-2", "0.25"),
        ("2**3**2", "512"),
        ("--3", "3"),
        ("2*-3", "-6"),
        ("7/2", "3.5"),
        ("100/3", "33.333333"),
        ("2/3", "0.666667"),
        ("1/3*3", "1"),
        (".5*4", "2"),
        ("0.1+0.2", "0.3"),
        ("1,234,567.5*2", "2469135"),
        ("-1/10**9", "0"),
        ("10**30", "1" + "0" * 30),
        ("0**0", "1"),
    ],
)
def test_an_expression_has_the_value_of_arithmetic(expression, value) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression, reason",
    [
        ("1/0", "division by zero"),
        ("0**-1", "division by zero"),
        ("9**9**9**9", "exponent too large"),
        ("2**0.5", "exponent is not an integer"),
        ("9" * 31, "number too large"),
        ("10**41", "number too large"),
        ("(" * 90 + "1" + ")" * 90, "nested too deeply"),
        ("-" * 100 + "1", "nested too deeply"),
        ("1+" * 200 + "1", "too long"),
        ("1,23", "misplaced comma"),
        ("12,3456", "misplaced comma"),
        ("max(1,2)", "invalid syntax"),
        ("1,", "misplaced comma"),
        ("(1", "unbalanced brackets"),
        ("1)", "invalid syntax"),
        ("1 2", "invalid syntax"),
        ("", "invalid syntax"),
        ("1+", "invalid syntax"),
        ("7//2", "invalid syntax"),
        ("__import__('os').system('id')", "invalid syntax"),
        ("٣+1", "invalid syntax"),
        ("1e9", "invalid syntax"),
        ("1<2", "invalid syntax"),
    ],
)
def test_an_expression_without_a_value_gives_a_short_reason(expression, reason) -> None:
    assert calculate(expression) == f"error: {reason}"


@given(st.text(alphabet="0123456789.,+-*/() ", max_size=MAX_CHARACTERS + 20))
def test_any_expression_gives_short_plain_text_quickly(expression) -> None:
    start = time.thread_time()
    result = calculate(expression)
    assert time.thread_time() - start < 1  # a bound, not a measurement: a collection of garbage may be in it
    assert len(result) < 60 and result.isascii()


@given(st.text())
def test_any_text_gets_a_result(text) -> None:
    assert calculate(text)


numbers = st.integers(-(10**6), 10**6)


@given(numbers, numbers, numbers, st.sampled_from("+-*"), st.sampled_from("+-*"))
def test_the_calculator_agrees_with_python(a, b, c, first, second) -> None:
    expression = f"({a}){first}({b}){second}({c})"
    assert calculate(expression) == str(eval(expression))


@given(numbers, numbers.filter(bool))
def test_a_quotient_is_rounded_to_the_nearest_millionth(a, b) -> None:
    assert abs(Fraction(calculate(f"{a}/{b}")) - Fraction(a, b)) <= Fraction(1, 2 * 10**6)
