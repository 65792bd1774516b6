"""The error that a user's mistake raises, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_NAME = 80


class UserError(Exception):
    """A user's mistake, in one line: what was given, what was expected, what to do. Any other exception is a bug."""


def require_number(name: str, value: float, most: float, example: str = "") -> float:
    """Returns `value`; raises UserError, with the whole range, unless it is above 0 and at most `most`.

    name: how the user gives it, e.g. "--minutes".
    """
    if not 0 < value <= most:
        such_as = f", such as {example}" if example else ""
        raise UserError(f"{name} {value:g}: expected a number above 0 and at most {most:,.10g}{such_as}")
    return value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ` - did you mean "x"?` for the closest of `known`, or the empty string when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' - did you mean "{show_name(close[0])}"?' if close else ""


def show_name(name: object, limit: int = MAX_NAME) -> str:
    """Returns a name for a message, a user's file's or one in it: one line of printable characters, cut at `limit`."""
    text = str(name)
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:limit])
    return shown if len(text) <= limit else f"{shown}..."
