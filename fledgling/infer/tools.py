"""The tools that a model can call inside an answer: the calculator, and Python in the sandbox.

What a model writes is untrusted text. The result returns as ordinary text, never as control tokens. `calculate` (in
fledgling/text/calculator.py) bounds what an expression costs; `run_python` passes what its grammar rejects to the
sandbox's interpreter, which runs in another process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fledgling.text.calculator import MAX_CHARACTERS, calculate

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer

MAX_RESULT_CHARACTERS = 200  # of the result of the python tool


@dataclass(frozen=True)
class Tool:
    """A function that answers the text between `python_start` and `python_end`."""

    run: Callable[[str], str]  # never raises
    max_call_tokens: int  # a longer call is not run
    name: str = "custom"  # as scores that were reached with it are labelled


def run_python(code: str) -> str:
    """Returns the calculator's result; for text outside its grammar, that of the sandbox's interpreter.

    Text that the calculator cannot parse, or finds too long, is run as a program. Its other errors, such as a number
    that is too large, are returned. The interpreter's answer is cut at `MAX_RESULT_CHARACTERS`.
    """
    result = calculate(code)
    if result.removeprefix("error: ") not in ("invalid syntax", "misplaced comma", "unbalanced brackets", "too long"):
        return result
    from fledgling.sandbox.interpreter import evaluate_code

    outcome = evaluate_code(code)
    parts = [outcome.output.rstrip("\n"), outcome.value or "", f"error: {outcome.error}" if outcome.error else ""]
    return "\n".join(part for part in parts if part)[:MAX_RESULT_CHARACTERS]


CALCULATOR = Tool(calculate, MAX_CHARACTERS, "calculator")
PYTHON = Tool(run_python, 2000, "python")


def select_tool(python: bool) -> Tool:
    """Returns PYTHON or CALCULATOR. Raises UserError where the sandbox's interpreter is not installed."""
    if python:
        from fledgling.sandbox.interpreter import import_monty

        import_monty()
    return PYTHON if python else CALCULATOR


class ToolState:
    """Detects tool calls in the tokens of one answer: `python_start expression python_end`, and runs them.

    With `client_calls`, a call that begins with a brace is one of a client's tools (text/turns.py): it is not run.
    """

    def __init__(self, tokenizer: Tokenizer, tool: Tool = CALCULATOR, client_calls: bool = False) -> None:
        self.tokenizer = tokenizer
        self.tool = tool
        self.client_calls = client_calls
        self.start, self.end = tokenizer.python_start, tokenizer.python_end
        self.expression: list[int] | None = None  # None: outside a call

    def feed(self, token: int) -> list[int]:
        """Takes the next sampled token of the answer and returns the tokens that must follow it.

        These are none, or after a call: `output_start`, the result as ordinary text, `output_end`. The caller
        does not pass these to this method.
        """
        if token == self.start:
            self.expression = []
        elif self.expression is not None and token == self.end:
            call = self.tokenizer.decode_bytes(self.expression).decode("utf-8", "replace")
            if self.client_calls and call.startswith("{"):
                self.expression = None
                return []
            result = "error: too long" if len(self.expression) > self.tool.max_call_tokens else self.tool.run(call)
            self.expression = None
            return [self.tokenizer.output_start, *self.tokenizer.encode(result), self.tokenizer.output_end]
        elif self.expression is not None and len(self.expression) <= self.tool.max_call_tokens:
            self.expression.append(token)  # one token over the limit is enough for the error
        return []
