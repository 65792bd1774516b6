"""The calculator that a model can call inside an answer: exact arithmetic on a text, with every size bounded.

What a model writes is untrusted text. A small grammar bounds every number, power, nesting and length, so the most
expensive expression takes microseconds; an error becomes a short text for the model to read. There are no names and no
Python is evaluated. This file imports the standard library alone: an exported model carries a copy of it.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARACTERS = 200  # of an expression
MAX_LITERAL_DIGITS = 30  # of one number in an expression
MAX_DEPTH = 16  # of nested brackets, signs and powers
MAX_EXPONENT = 256
MAX_BITS = 1024  # of the numerator or denominator of an intermediate value
MAX_DIGITS = 40  # before the decimal point of a result
DECIMALS = 6  # after the decimal point of a result

_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)|(?P<sign>\*\*|[-+*/()]))", re.ASCII)
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?", re.ASCII)


class CalculationError(Exception):
    """Why an expression has no value; the message is shown to the model."""


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
