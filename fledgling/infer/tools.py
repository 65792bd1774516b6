"""The tools that a model can call inside an answer: the calculator, and Python in the sandbox.

What a model writes is untrusted text. The calculator parses it with a small grammar that bounds every number, power,
nesting and length, so the most expensive expression takes microseconds; an error becomes a short text for the model to
read. The result returns as ordinary text, never as control tokens. The calculator has no names and evaluates no Python;
`run_python` passes what the grammar refuses to the sandbox's interpreter, which runs in another process.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer

MAX_CHARACTERS = 200  # of an expression
MAX_LITERAL_DIGITS = 30  # of one number in an expression
MAX_DEPTH = 16  # of nested brackets, signs and powers
MAX_EXPONENT = 256
MAX_BITS = 1024  # of the numerator or denominator of an intermediate value
MAX_DIGITS = 40  # before the decimal point of a result
DECIMALS = 6  # after the decimal point of a result
MAX_RESULT_CHARACTERS = 200  # of the result of the python tool

_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)|(?P<sign>\*\*|[-+*/()]))", re.ASCII)
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?", re.ASCII)


class CalculationError(Exception):
    """Why an expression has no value; the message is shown to the model."""


@dataclass(frozen=True)
class Tool:
    """A function that answers the text between `python_start` and `python_end`."""

    run: Callable[[str], str]  # never raises
    max_call_tokens: int  # a longer call is not run


def calculate(expression: str) -> str:
    """Returns the value of an expression over + - * / ** ( ), integers and decimals, as text; or "error: reason".

    Arithmetic is exact, on fractions; only the result is rounded, to six decimals without trailing zeros. Commas are
    accepted between groups of three digits. Signs and powers have the precedence of Python.
    """
    try:
        return _format_number(_Parser(_tokenize_expression(expression)).parse())
    except CalculationError as error:
        return f"error: {error}"


def _tokenize_expression(expression: str) -> list[str]:
    """Splits an expression into numbers and operators."""
    if len(expression) > MAX_CHARACTERS:
        raise CalculationError("too long")
    expression = expression.strip()
    symbols, position = [], 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise CalculationError("invalid syntax")
        symbols.append(match["number"] or match["sign"])
        position = match.end()
    return symbols


def _parse_number(literal: str) -> Fraction:
    if "," in literal and not _GROUPED.fullmatch(literal):
        raise CalculationError("misplaced comma")
    literal = literal.replace(",", "")
    if len(literal) > MAX_LITERAL_DIGITS:
        raise CalculationError("number too large")
    return Fraction(literal)


def _check_size(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise CalculationError("number too large")
    return value


def _format_number(value: Fraction) -> str:
    if abs(value) >= 10**MAX_DIGITS:
        raise CalculationError("number too large")
    scaled = round(abs(value) * 10**DECIMALS)  # nearest, ties to even
    whole, decimals = divmod(scaled, 10**DECIMALS)
    sign = "-" if value < 0 and scaled else ""
    return f"{sign}{whole}.{decimals:0{DECIMALS}d}".rstrip("0").rstrip(".")


class _Parser:
    """Recursive descent: sum of products of signed powers; `depth` bounds the recursion."""

    def __init__(self, symbols: list[str]) -> None:
        self.symbols = symbols
        self.position = 0
        self.depth = 0

    def parse(self) -> Fraction:
        value = self._sum()
        if self.position != len(self.symbols):
            raise CalculationError("invalid syntax")
        return value

    def _peek(self) -> str:
        return self.symbols[self.position] if self.position < len(self.symbols) else ""

    def _next(self) -> str:
        symbol = self._peek()
        self.position += 1
        return symbol

    def _sum(self) -> Fraction:
        value = self._product()
        while self._peek() in ("+", "-"):
            value = _check_size(value + self._product() if self._next() == "+" else value - self._product())
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while self._peek() in ("*", "/"):
            if self._next() == "*":
                value = _check_size(value * self._signed())
                continue
            divisor = self._signed()
            if divisor == 0:
                raise CalculationError("division by zero")
            value = _check_size(value / divisor)
        return value

    def _signed(self) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise CalculationError("nested too deeply")
        if self._peek() in ("+", "-"):
            value = self._signed() if self._next() == "+" else -self._signed()
        else:
            value = self._power()
        self.depth -= 1
        return value

    def _power(self) -> Fraction:
        base = self._atom()
        if self._peek() != "**":
            return base
        self.position += 1
        exponent = self._signed()
        if exponent.denominator != 1:
            raise CalculationError("exponent is not an integer")
        power = exponent.numerator
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(power) > MAX_EXPONENT or abs(power) * bits > 2 * MAX_BITS:
            raise CalculationError("exponent too large")
        if base == 0 and power < 0:
            raise CalculationError("division by zero")
        return _check_size(base**power)

    def _atom(self) -> Fraction:
        symbol = self._next()
        if symbol == "(":
            value = self._sum()
            if self._next() != ")":
                raise CalculationError("unbalanced brackets")
            return value
        if not symbol or symbol in "+-**/)":
            raise CalculationError("invalid syntax")
        return _parse_number(symbol)


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


CALCULATOR = Tool(calculate, MAX_CHARACTERS)
PYTHON = Tool(run_python, 2000)


class ToolState:
    """Detects tool calls in the tokens of one answer: `python_start expression python_end`, and runs them."""

    def __init__(self, tokenizer: Tokenizer, tool: Tool = CALCULATOR) -> None:
        self.tokenizer = tokenizer
        self.tool = tool
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
            result = "error: too long" if len(self.expression) > self.tool.max_call_tokens else self.tool.run(call)
            self.expression = None
            return [self.tokenizer.output_start, *self.tokenizer.encode(result), self.tokenizer.output_end]
        elif self.expression is not None and len(self.expression) <= self.tool.max_call_tokens:
            self.expression.append(token)  # one token over the limit is enough for the error
        return []
