"""The tools, and the state machine that lets a model use one in the middle of an answer.

The one idea: what a model writes is hostile text. It is parsed by a small grammar whose every number,
power, nesting and length has a bound, so the worst expression costs microseconds; whatever goes wrong
becomes a short text for the model to read. The result returns as ordinary text, never as control tokens.

The calculator is not Python: nothing is evaluated, and there are no names. The python tool asks it first and gives
what its grammar refuses to the sandbox's interpreter, in another process; nothing is ever evaluated in this one.
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
MAX_LITERAL_DIGITS = 30  # of one number as written
MAX_DEPTH = 16  # of brackets, signs and towers of powers
MAX_EXPONENT = 256
MAX_BITS = 1024  # of a numerator or denominator on the way
MAX_DIGITS = 40  # before the point, as printed
DECIMALS = 6  # after the point, as printed
MAX_RESULT_CHARACTERS = 200  # characters of what the python tool answers

_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)|(?P<sign>\*\*|[-+*/()]))", re.ASCII)
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?", re.ASCII)


class CalculationError(Exception):
    """Why an expression has no value, in a few words."""


@dataclass(frozen=True)
class Tool:
    """What runs between `python_start` and `python_end`: text to text, never raising.

    A call of more than `longest` tokens is not run.
    """

    run: Callable[[str], str]
    max_call_tokens: int


def calculate(expression: str) -> str:
    """The value of an expression over + - * / ** ( ), integers and decimals, as text; or "error: reason".

    Arithmetic is exact, on fractions; only printing rounds, to six decimals without trailing zeros.
    Commas are accepted between groups of three digits. Signs and powers bind as they do in Python.
    """
    try:
        return _format_number(_Parser(_tokenize_expression(expression)).parse())
    except CalculationError as error:
        return f"error: {error}"


def _tokenize_expression(expression: str) -> list[str]:
    if len(expression) > MAX_CHARACTERS:
        raise CalculationError("too long")
    expression = expression.strip()
    pieces, place = [], 0
    while place < len(expression):
        match = _TOKEN.match(expression, place)
        if match is None:
            raise CalculationError("invalid syntax")
        pieces.append(match["number"] or match["sign"])
        place = match.end()
    return pieces


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
    scaled = round(abs(value) * 10**DECIMALS)  # to the nearest, ties to even
    whole, decimals = divmod(scaled, 10**DECIMALS)
    sign = "-" if value < 0 and scaled else ""
    return f"{sign}{whole}.{decimals:0{DECIMALS}d}".rstrip("0").rstrip(".")


class _Parser:
    """Recursive descent: sum of products of signed powers; `depth` bounds the recursion."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces
        self.place = 0
        self.depth = 0

    def parse(self) -> Fraction:
        value = self._sum()
        if self.place != len(self.pieces):
            raise CalculationError("invalid syntax")
        return value

    def _peek(self) -> str:
        return self.pieces[self.place] if self.place < len(self.pieces) else ""

    def _next(self) -> str:
        piece = self._peek()
        self.place += 1
        return piece

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
        self.place += 1
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
        piece = self._next()
        if piece == "(":
            value = self._sum()
            if self._next() != ")":
                raise CalculationError("unbalanced brackets")
            return value
        if not piece or piece in "+-**/)":
            raise CalculationError("invalid syntax")
        return _parse_number(piece)


def run_python(code: str) -> str:
    """What the calculator says; where its grammar refuses, what the sandbox's interpreter prints and returns.

    A number that the calculator finds too large stays so: only what is no calculation becomes a program.
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
    """Watches the tokens of one answer; after `python_start expression python_end` it asks for the result.

    `feed` takes each token in turn, forced ones too, and returns the tokens that must follow it: most
    often none, else `output_start`, the result as ordinary text, `output_end`.
    """

    def __init__(self, tokenizer: Tokenizer, tool: Tool = CALCULATOR) -> None:
        self.tokenizer = tokenizer
        self.tool = tool
        self.start, self.end = tokenizer.python_start, tokenizer.python_end
        self.expression: list[int] | None = None  # None: outside a call

    @property
    def collecting(self) -> bool:
        return self.expression is not None

    def feed(self, token: int) -> list[int]:
        if token == self.start:
            self.expression = []
        elif self.expression is not None and token == self.end:
            expression = self.tokenizer.decode_bytes(self.expression).decode("utf-8", "replace")
            result = (
                "error: too long" if len(self.expression) > self.tool.max_call_tokens else self.tool.run(expression)
            )
            self.expression = None
            return [self.tokenizer.output_start, *self.tokenizer.encode(result), self.tokenizer.output_end]
        elif self.expression is not None and len(self.expression) <= self.tool.max_call_tokens:
            self.expression.append(token)  # one over the bound is enough to be refused
        return []
