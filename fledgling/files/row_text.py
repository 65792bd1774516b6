"""Finds text in a row that UTF-8 cannot write, so that nothing after the reader meets it."""

from __future__ import annotations

from typing import Any

from fledgling.config.errors import show_name
from fledgling.files.values import Unreadable

MAX_DEPTH = 100  # of lists and objects in a row
CONTEXT_CHARACTERS = 20  # on each side of what is not UTF-8


def find_bad_text(row: dict[str, Any] | list[Any], is_table: bool) -> Unreadable | None:
    """Returns why a row cannot be used: a name or text at any depth is not UTF-8, or it is nested too deeply.

    is_table: the row is of a .csv or .tsv file, in whose text bytes that are not UTF-8 are lone surrogates; in JSON
    those are escapes such as "\\ud83d".
    """
    level: list[Any] = [row]
    for _ in range(MAX_DEPTH):
        values: list[Any] = []
        for value in level:
            if isinstance(value, str):
                if not value.isascii() and (start := _find_surrogate(value)) is not None:
                    return _describe(row, value, start, is_table)
            elif isinstance(value, dict):
                values += value
                values += value.values()
            elif isinstance(value, list | tuple):
                values += value
        if not values:
            return None
        level = values
    return Unreadable(f"nested more than {MAX_DEPTH} levels deep")


def _find_surrogate(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _describe(row: dict[str, Any] | list[Any], text: str, start: int, is_table: bool) -> Unreadable:
    if not is_table:
        return Unreadable(f"{ascii(text[start])[1:-1]} is half of a character (a surrogate without the other one)")
    context = text[max(0, start - CONTEXT_CHARACTERS) : start + CONTEXT_CHARACTERS]
    shown = show_name(context.encode("utf-8", "surrogateescape").decode("ascii", "backslashreplace"))
    column = next((name for name, value in row.items() if value is text), None) if isinstance(row, dict) else None
    where = "the name of a column" if column is None else f'the column "{show_name(column)}"'
    return Unreadable(f"not UTF-8 ({where} has {shown})", undecodable=True)
