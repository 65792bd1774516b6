"""What a caller may change of a stage that runs: its evaluations, its stage, its end, its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fledgling.train.loop import ChooseSteps
from fledgling.train.stage import Eval, Stage


@dataclass(frozen=True)
class StageHooks:
    """Functions that `run_stage` calls, and the data that it starts with. The defaults change nothing.

    Attributes:
        select_evals: returns the evaluations to run, of those that the stage has.
        adapt_stage: returns the stage that runs, given the one of the recipe.
        should_stop: is called after every step; True stops the stage as a signal does.
        on_begin: is called when the first step has ended.
        on_saved: is called on the main rank once the first checkpoint with a finished step is complete.
        choose_steps: may change the number of steps while the stage runs (`fledgling.train.stage_horizon`).
        adapt_threads: is called after every step, in place of `follow_free_cores`; returns what to record.
        first_threads: that were in use when the caller's stage before it ended, next to other processes; 0: all.
        is_followed: whether the caller runs another stage next: a stop requested in the last step is then raised too.
        prepared: the prepared data that the stage starts with, as a checkpoint's state records it in "data"; None: as
            its texts are now. A stage that resumes has that of its checkpoint.
    """

    select_evals: Callable[[tuple[Eval, ...]], tuple[Eval, ...]] = tuple
    adapt_stage: Callable[[Stage], Stage] = lambda stage: stage
    should_stop: Callable[[], bool] = lambda: False
    on_begin: Callable[[], None] = lambda: None
    on_saved: Callable[[], None] = lambda: None
    choose_steps: ChooseSteps | None = None
    adapt_threads: Callable[[], dict[str, int]] | None = None
    first_threads: int = 0
    is_followed: bool = False
    prepared: Mapping[str, Any] | None = None


NO_HOOKS = StageHooks()
NO_EVALS = StageHooks(select_evals=lambda evals: ())  # whatever evaluations the stage has
