"""Options that take a list: values separated by commas, or the option repeated, the same in every verb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, get_args

from cyclopts import Parameter, Token


def parse_list(type_: Any, tokens: Sequence[Token]) -> tuple[Any, ...]:
    """Returns the values of a list option, each converted to the item type of `type_` (tuple[int, ...]).

    Raises ValueError, which the command prints with the option's name, for a list without a value, and for a value that
    cannot be converted.
    """
    item = get_args(type_)[0]
    words = [word.strip() for token in tokens for word in token.value.split(",") if word.strip()]
    if not words:
        raise ValueError("got no value; expected one or more, separated by commas")
    try:
        return tuple(item(word) for word in words)
    except ValueError:
        expected = "whole numbers, such as 1,2,4" if item is int else "numbers, such as 1e13,2e13"
        raise ValueError(f"got {','.join(words)}; expected {expected}") from None


_OPEN = Parameter(converter=parse_list, negative=(), show_default=False)
_SHOWN = Parameter(converter=parse_list, negative=(), show_default=lambda values: ",".join(map(str, values)))
_SPACED = Parameter(consume_multiple=True)  # for verbs without an argument that a list could take for its own

NameList = Annotated[tuple[str, ...], _OPEN]
NumberList = Annotated[tuple[float, ...], _OPEN]
CountList = Annotated[tuple[int, ...], _OPEN]
SpacedNameList = Annotated[tuple[str, ...], _OPEN, _SPACED]
SpacedCountList = Annotated[tuple[int, ...], _SHOWN, _SPACED]
