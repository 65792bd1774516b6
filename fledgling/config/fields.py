"""Fields of the recipe's dataclasses: a default together with the range that `load.py` checks.

Each function returns `dataclasses.field(...)`, typed Any so that the annotation of the attribute states its type.
"""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any

WEIGHTS = {"low": 0.0}  # metadata of a dictionary of names with weights, relative to each other


def count(default: int | None, low: int = 1, high: int = 2**63 - 1) -> Any:
    """A whole number in [low, high]; what counts has 64 bits."""
    return field(default=default, metadata={"low": low, "high": high})


def number(default: float | None, low: float = 0.0, high: float = math.inf, *, above: bool = False) -> Any:
    """A finite number in [low, high], or in (low, high] with `above`."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def choice(default: str, *others: str) -> Any:
    """One of a few words."""
    return field(default=default, metadata={"choices": (default, *others)})


def optional_choice(*names: str) -> Any:
    """One of a few words, or None."""
    return field(default=None, metadata={"choices": names})


def optional() -> Any:
    """A value of the annotated type, or None."""
    return field(default=None)


def internal() -> Any:
    """A value that is None in a recipe, and that no recipe sets."""
    return field(default=None, metadata={"internal": True})
