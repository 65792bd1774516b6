"""Does a program pass its tests? A verdict that the program cannot write.

(implementation follows; this is the interface)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SECONDS = 3.0


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed, why not in a few words ("" when it passed), and the seconds it took."""

    passed: bool
    reason: str
    seconds: float


@dataclass(frozen=True)
class Check:
    """A program and what it must do.

    program      the candidate's code, whole (HumanEval: prompt + completion).
    tests        code of the task's author. It may define `check(candidate)`, which is then called (HumanEval), or be
                 plain asserts that call the function by its name (MBPP).
    entry_point  the function under test.
    given        code of the task's author that the tests may use (HumanEval: the prompt, whose helper functions some
                 tests call); it is run beside the tests, never taken from the candidate.
    """

    program: str
    tests: str
    entry_point: str
    given: str = ""


def check(program: str, tests: str, entry_point: str, seconds: float = SECONDS, given: str = "") -> Verdict:
    """Return whether `program` passes `tests` within `seconds` of wall clock; see `Check` for the arguments.

    Whatever the program does is a `Verdict`; raises `UserError` only when this machine cannot lock a process up.
    """
    return check_all([Check(program, tests, entry_point, given)], seconds)[0]


def check_all(checks: Iterable[Check], seconds: float = SECONDS, workers: int | None = None) -> list[Verdict]:
    """Return the verdicts in order, `workers` at a time (default: one a core); `seconds` holds for each."""
    raise NotImplementedError
