"""Tool calls: what runs, what is inserted, and the python tool next to the calculator."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.infer.tools import (
    CALCULATOR,
    MAX_RESULT_CHARACTERS,
    PYTHON,
    Tool,
    ToolState,
    run_python,
)
from fledgling.text.calculator import calculate


@given(st.text(alphabet="0123456789.,+-*/() ", min_size=1, max_size=40))
def test_the_python_tool_gives_the_calculators_result_where_there_is_one(expression) -> None:
    result = calculate(expression)
    if not result.startswith("error"):
        assert run_python(expression) == result


@pytest.mark.parametrize(
    "code, result",
    [
        ("max(1, 2)", "2"),
        ("print('a'); 'b'", "a\n'b'"),
        ("'strawberry'.count('r')", "3"),
        ("9**9**9**9", "error: exponent too large"),
        ("x = 1", ""),
        ("undefined", "error: NameError: name 'undefined' is not defined"),
        ("'x' * 1000", "'" + "x" * (MAX_RESULT_CHARACTERS - 1)),
    ],
)
def test_the_python_tool_runs_text_that_is_no_calculation(code, result) -> None:
    assert run_python(code) == result


def call_result(tokenizer, tool: Tool, code: str) -> str:
    """Returns the text that a tool call of `code` inserts into the answer."""
    state, forced = ToolState(tokenizer, tool), []
    for token in [tokenizer.python_start, *tokenizer.encode(code), tokenizer.python_end]:
        forced = state.feed(token)
    assert forced[0] == tokenizer.output_start and forced[-1] == tokenizer.output_end
    return tokenizer.decode(forced[1:-1])


def test_a_call_runs_the_tool_unless_it_is_too_long(tokenizer) -> None:
    assert call_result(tokenizer, CALCULATOR, "max(1,2)") == "error: invalid syntax"
    assert call_result(tokenizer, PYTHON, "max(1,2)") == "2"
    ran = []
    tool = Tool(lambda code: ran.append(code) or "ran", max_call_tokens=5)
    assert call_result(tokenizer, tool, "12345") == "ran"
    assert call_result(tokenizer, tool, "123456") == "error: too long" and ran == ["12345"]


def test_the_engine_calculates_unless_set_otherwise(adder) -> None:
    assert adder.tool is CALCULATOR
