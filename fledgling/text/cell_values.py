"""What a cell of a row holds: text, a number, or a list that is written as text, as tables have it."""

from __future__ import annotations

import ast
import json
import re
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from fledgling.config import UserError

MAX_LITERAL = 1 << 20  # characters of a list as Python writes it
MESSAGE_START = re.compile(r"""\s*(\[?)\s*\{\s*["'](role|from|content|value)["']\s*:""")
UNJOINED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\}\s+\{""")  # a string, or two objects without a comma


def read_scalar(value: Any) -> Any:
    """Returns the text of a number, or of true or false as JSON writes it; any other value unchanged."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float | Decimal) else value


def parse_list(value: Any) -> Any:
    """Returns the list or object that a text is, as JSON or Python writes it, or `value` itself where it is none."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    # numpy writes no comma between two objects
    for text in (value, UNJOINED.sub(lambda match: match[1] or "}, {", value)) if len(value) <= MAX_LITERAL else ():
        try:
            with warnings.catch_warnings(action="ignore"):
                return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return value


def parse_messages(value: Any) -> Any:
    """Returns the message or messages that a text is, or `value` itself: a text may be JSON that is no message.

    Raises UserError for a text that begins as messages do and cannot be read.
    """
    start = MESSAGE_START.match(value) if isinstance(value, str) else None
    if start is None:
        return value
    parsed = parse_list(value)
    if parsed is value and (start[1] or start[2] == "role"):
        raise UserError(f"text that begins as messages do is no list of JSON or Python: {value[:40]!r}")
    return parsed if any(map(is_message, parsed if isinstance(parsed, list) else [parsed])) else value


def describe_kind(value: Any) -> str:
    """Returns a value's kind, and its beginning."""
    return f"{type(value).__name__} {(value[:40] if isinstance(value, str) else reprlib.repr(value)[:40])!r}"


def is_list(value: Any) -> bool:
    """Returns whether a value is a sequence other than text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def is_message(value: Any) -> bool:
    """Returns whether a value has the keys of a message, OpenAI's or ShareGPT's."""
    if not isinstance(value, Mapping):
        return False
    return ("role" in value and bool({"content", "tool_calls", "function_call"} & value.keys())) or (
        "from" in value and "value" in value
    )
