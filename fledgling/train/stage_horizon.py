"""The number of steps of a stage, which a run may change while it trains, and the progress of its schedule then.

A run with a deadline (`fledgling.train.pace`) makes fewer steps where its machine slows down, and more where it is
faster than planned. Its schedule is then run through faster or slower instead of being cut off: after a change at step
s from S to S' steps, the progress rises linearly from what it was at s to 1 at S'. So the learning rate has no jump,
and decays to its end whatever the schedule's form.

Every change is in the checkpoints and is a function of the step alone, so that a resumed run continues with it and
`fledgling verify` makes the same steps again. When the stage has ended, the run's recipe.toml has the steps that it
made (`keep_made_steps`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fledgling.config import STAGES, Recipe

MAX_GROWTH = 1.15  # of the planned steps of a stage, which is begun with conversations for about as many


@dataclass
class StageHorizon:
    """The steps of a stage.

    Attributes:
        planned: steps that the stage was built for.
        changes: (finished steps when it was made, steps from then on) in order.
        is_recorded: the changes are those of a finished record, which no checkpoint replaces.
        earlier: the changes of other plans, by the steps that were planned: a user has set another number since.
        most: steps to which a change may raise them; fewer than `planned`: not at all.
    """

    planned: int
    changes: list[tuple[int, int]] = field(default_factory=list)
    is_recorded: bool = False
    earlier: dict[str, list[list[int]]] = field(default_factory=dict)
    most: int = 0

    @property
    def steps(self) -> int:
        """The steps that the stage makes, as far as is known now."""
        return self.changes[-1][1] if self.changes else self.planned

    @property
    def limit(self) -> int:
        """The largest number of steps that the stage may make."""
        return max(self.planned, self.most)

    def change(self, step: int, steps: int) -> None:
        """Sets the steps of the stage, after `step` of them; at least one follows, and none beyond the limit."""
        assert step < steps <= self.limit, f"{steps} steps after {step} of {self.limit}"
        self.changes = [change for change in self.changes if change[0] < step] + [(step, steps)]

    def progress(self, step: int) -> float:
        """Returns the share of the schedule, in [0, 1], that is run through after `step` steps."""
        start, reached, steps = 0, 0.0, self.planned
        for after, changed in self.changes:
            if after > step:
                break
            if after > start:
                reached += (1 - reached) * (after - start) / (steps - start)
            start, steps = after, changed
        if not start and not reached:
            return step / steps
        return min(1.0, reached + (1 - reached) * (step - start) / (steps - start))

    def state_dict(self) -> dict[str, Any]:
        """Returns the changes as JSON values, by the planned steps that they are changes of."""
        return self.earlier | ({str(self.planned): [list(change) for change in self.changes]} if self.changes else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken; changes of another plan are only kept."""
        known = {planned: [list(change) for change in changes] for planned, changes in state.items()}
        own = known.pop(str(self.planned), [])
        self.earlier = known
        if not self.is_recorded:
            self.changes = read_changes(own)


def grow_steps(steps: int) -> int:
    """Returns the steps to which a deadline may raise those of a stage."""
    return round(MAX_GROWTH * steps)


def read_changes(values: Iterable[Iterable[int]]) -> list[tuple[int, int]]:
    """Returns the changes that a checkpoint's state records."""
    return [(int(after), int(steps)) for after, steps in values]


def count_made_steps(state: Mapping[str, Any], planned: int | None) -> int | None:
    """Returns the steps of the stage whose checkpoint has this state, if it has ended and was changed; else `planned`.

    planned: the steps that its recipe says.
    """
    try:
        changes = read_changes(state["horizon"][str(planned)])
    except (LookupError, TypeError, ValueError):
        return planned
    return changes[-1][1] if changes and changes[-1][1] == state.get("step") else planned


def keep_made_steps(recipe: Recipe, state: Mapping[str, Any]) -> Recipe:
    """Returns a recipe with the steps that the stage of a checkpoint has made, if a budget has ended it earlier."""
    stage = state.get("stage")
    if stage not in STAGES:
        return recipe
    table = recipe.stage_config(stage)
    changed: dict[str, Any] = {stage: replace(table, steps=count_made_steps(state, table.steps))}
    return replace(recipe, **changed)
