"""Errors of a body in one line: the field, what was expected, and what was given.

pydantic reports an error for each branch of a union, with the branch's name among the steps of its place. Here a step
is a field only if the body has it there, and of a union the branch that came farthest is reported: "at most 4 items, 5
given" rather than that a list is no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fledgling.serve.json_body import shorten_text

KINDS = {  # pydantic's type errors: what was expected
    "string_type": "text",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
BOUNDS = {  # the name of the bound in pydantic's context, and how it is written
    "greater_than_equal": ("ge", "expected {} or more"),
    "greater_than": ("gt", "expected more than {}"),
    "less_than_equal": ("le", "expected at most {}"),
    "less_than": ("lt", "expected less than {}"),
}


def describe_value(value: Any) -> str:
    """Returns a JSON value as an error shows it: short, and never the whole of a long one."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"text {shorten_text(value)!r}"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return "an object"
    return shorten_text(repr(value)) if isinstance(value, float) else shorten_text(hex_or_decimal(value))


def hex_or_decimal(value: int) -> str:
    """Returns an integer in decimal digits, a very long one by its length (Python does not convert it)."""
    return str(value) if value.bit_length() < 256 else f"an integer of {value.bit_length():,} bits"


def describe_invalid_field(errors: Sequence[dict[str, Any]], body: Any) -> tuple[str | None, str]:
    """Returns the first invalid field, as a path with dots, and the message for it.

    Args:
        errors: pydantic's errors, with input and context.
        body: the value that was validated.
    """
    places = [_find_place(error, body) for error in errors]
    first = places[0][:1]
    group = [(place, error) for place, error in zip(places, errors, strict=True) if place[:1] == first]
    # The branch of a union that came farthest: a bound rather than a wrong kind, then the longest place.
    place, error = max(group, key=lambda item: (item[1]["type"] not in KINDS, len(item[0]), item[0]))
    same_place = [other for other_place, other in group if other_place == place]
    field = ".".join(shorten_text(str(step)) for step in place) or None
    return field, f"{field or 'the body'}: {_describe_field_error(error, same_place)}"


def _find_place(error: dict[str, Any], body: Any) -> tuple[Any, ...]:
    """Returns the steps of an error's place that are keys and indices of the body, and a missing field."""
    place: list[Any] = []
    for number, step in enumerate(error["loc"]):
        in_object = isinstance(body, dict) and step in body
        if in_object or (isinstance(body, list) and isinstance(step, int) and 0 <= step < len(body)):
            body = body[step]
        elif not (error["type"] == "missing" and number == len(error["loc"]) - 1):
            continue  # the name of a branch of a union
        place.append(step)
    return tuple(place)


def _describe_field_error(error: dict[str, Any], same_place: Sequence[dict[str, Any]]) -> str:
    kind, context, value = error["type"], error.get("ctx") or {}, error.get("input")
    if kind in KINDS:
        expected = dict.fromkeys(KINDS[other["type"]] for other in same_place if other["type"] in KINDS)
        if "a number" in expected:
            expected.pop("an integer", None)
        return f"expected {' or '.join(expected)}, got {describe_value(value)}"
    if kind == "missing":
        return "required"
    if kind in BOUNDS:
        name, text = BOUNDS[kind]
        return f"{text.format(context[name])}, got {describe_value(value)}"
    if kind in ("too_long", "too_short"):
        bound = "at most" if kind == "too_long" else "at least"
        count = len(value) if isinstance(value, list | dict) else context.get("actual_length")
        items = "keys" if isinstance(value, dict) else "items"
        return f"{bound} {context['max_length' if kind == 'too_long' else 'min_length']:,} {items}, {count:,} given"
    if kind in ("string_too_long", "string_too_short"):
        bound, name = ("at most", "max_length") if kind == "string_too_long" else ("at least", "min_length")
        return f"{bound} {context[name]:,} characters, {len(value or ''):,} given"
    if kind == "literal_error":
        return f"expected {context['expected']}, got {describe_value(value)}"
    return shorten_text(str(error["msg"]).removeprefix("Value error, "))
