"""What a watcher asks of a run: empty files in RUN/requests, each of which the run takes after its next step.

    RUN/requests/stop        save, then stop as by a signal
    RUN/requests/sample      record samples
    RUN/requests/evaluate    make the stage's evaluations
    RUN/requests/batch       write rows of the step's batch to RUN/<stage>/batch.json

A file is taken once. What is asked between two stages waits for the first step of the next one. A process that starts
removes what was asked of an earlier one, and names it. Without the directory, the usual case, a
step pays one call of the system for it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fledgling.config import UserError

STOP, SAMPLE, EVALUATE, BATCH = ACTIONS = ("stop", "sample", "evaluate", "batch")
DIRECTORY = "requests"


def request_action(run_dir: Path, action: str) -> None:
    """Asks the run for an action. Raises UserError where the run's directory cannot be written."""
    assert action in ACTIONS, action
    try:
        (run_dir / DIRECTORY).mkdir(exist_ok=True)
        (run_dir / DIRECTORY / action).touch()
    except OSError as error:
        raise UserError(f"cannot write {run_dir / DIRECTORY / action}: {os.strerror(error.errno or 0)}") from None


def open_requests(run_dir: Path) -> None:
    """Makes the directory of requests, so that a command such as `touch` can ask too; without it the run goes on."""
    with suppress(OSError):
        (run_dir / DIRECTORY).mkdir(exist_ok=True)


def take_actions(run_dir: Path) -> frozenset[str]:
    """Returns the actions that are requested and removes their files; only the main rank of a run calls it."""
    try:
        requested = frozenset(os.listdir(run_dir / DIRECTORY)) & frozenset(ACTIONS)
    except OSError:
        return frozenset()
    for action in requested:
        with suppress(OSError):
            (run_dir / DIRECTORY / action).unlink()
    return requested
