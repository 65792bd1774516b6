"""Fields with ranges: the default is the value, the range is what the loader checks."""

import math
from dataclasses import dataclass, fields

from fledgling.config.fields import choice, count, internal, number, optional, optional_choice


@dataclass
class Table:
    rows: int = count(4, high=8)
    rate: float = number(0.5, above=True)
    way: str = choice("fast", "exact")
    other: str | None = optional_choice("a", "b")
    name: str | None = optional()
    found: int | None = internal()


def test_a_field_has_its_default_and_its_range():
    assert Table() == Table(4, 0.5, "fast", None, None, None)
    assert {field.name: dict(field.metadata) for field in fields(Table)} == {
        "rows": {"low": 1, "high": 8},
        "rate": {"low": 0.0, "high": math.inf, "above": True},
        "way": {"choices": ("fast", "exact")},
        "other": {"choices": ("a", "b")},
        "name": {},
        "found": {"internal": True},
    }
