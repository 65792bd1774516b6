"""`fledgling verify`: shows that a run's files are those that were written, and that its steps can be replayed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fledgling.cli.options import Json
from fledgling.config import UserError

if TYPE_CHECKING:
    from rich.table import Table

MAX_SHOWN = 10  # problems, or notes, of one check
Root = Annotated[str | None, Parameter(show_default=False)]


def verify(
    run: Path,
    /,
    *,
    steps: int = 20,
    seconds: float = 60.0,
    evals: int = 4,
    seed: int | None = None,
    root: Root = None,
    as_json: Json = False,
) -> int:
    """Check every file of a run, its report, and steps drawn at random that are replayed from the data.

    Exits with 1 if something does not hold, and names it, or if no step could be replayed. Nothing is written into
    the run.

    Parameters
    ----------
    run
        A run directory, finished or not.
    steps
        Steps that are drawn at random.
    seconds
        How long steps are replayed and scores recomputed.
    evals
        Scores of exams that are drawn at random and recomputed, those that no seal has first.
    seed
        Of the draw; printed, so that it can be repeated.
    root
        The digest of the run's seals that its publisher states.
    """
    from fledgling.verify import verify_run

    if not (steps >= 1 and 0 < seconds < math.inf and evals >= 0):
        raise UserError(
            f"got --steps {steps} --seconds {seconds:g} --evals {evals}: expected at least 1 step, more than 0 "
            "seconds, and 0 or more scores"
        )
    result = verify_run(run, steps, seconds, seed, show_progress=True, evals=evals)
    if root is not None and root != result["root"]:
        result |= {"holds": False, "verdict": "FAILS", "stated_root": root}
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print_result(result)
    return 0 if result["holds"] else 1


def _shorten_list(lines: Sequence[str]) -> list[str]:
    """Returns the first lines of a check, and how many more there are: those of other checks shall be seen too."""
    more = len(lines) - MAX_SHOWN
    return [*lines[:MAX_SHOWN], *([f"and {more} more, which --json lists"] if more > 0 else [])]


def _print_result(result: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(make_table(result))
    for check in result["checks"]:
        for problem in _shorten_list(check["problems"]):
            console.print(f"FAILS  {check['name']}: {problem}", markup=False)
    for check in result["checks"]:
        for note in _shorten_list(check["notes"]):
            console.print(f"note   {check['name']}: {note}", markup=False)
    for key, (then, now) in result["machine"].items():
        console.print(f"note   another machine: {key} was {then}, is {now}", markup=False)
    if result["tolerance"]:
        text = f"steps are compared within {result['tolerance']:g} of their values, not bit by bit"
        console.print(f"note   {text}", markup=False)
    if "stated_root" in result:
        console.print(f"FAILS  root {result['root']}, stated was {result['stated_root']}", markup=False)
    console.print(
        f"{result['run']}: {result['verdict']}; root {result['root']}; drawn with --seed {result['seed']}", markup=False
    )


def make_table(result: dict[str, Any]) -> Table:
    """Returns the checks as a table for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for name in ("", "checked", "of", "", "verdict"):
        table.add_column(name, justify="right" if name in ("checked", "of") else "left")
    for check in result["checks"]:
        total = "" if check["total"] is None else f"{check['total']:,}"
        table.add_row(check["name"], f"{check['checked']:,}", total, check["unit"], check["verdict"])
    return table
