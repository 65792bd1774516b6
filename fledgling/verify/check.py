"""The result of one check."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Check:
    """What was compared, how much of it, and what does not hold.

    checked, total: counts of `unit`; total is None where it is not known. problems: one line for each thing that does
    not hold, which names it. notes: what was not checked, and why.
    """

    name: str
    unit: str
    checked: int = 0
    total: int | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Returns "holds", "FAILS" or "not checked"."""
        return "FAILS" if self.problems else "holds" if self.checked else "not checked"

    def to_json(self) -> dict[str, Any]:
        """Returns the fields and the verdict."""
        return {**asdict(self), "verdict": self.verdict}
