"""Keeps a run with a deadline to it: how many steps a stage still makes, from the time left for all that is ahead.

With L seconds left, F seconds ahead that do not depend on the steps (evaluations, saves, starts of later stages), and S
seconds of planned steps ahead, all at the speed of the plan, and a machine that takes w times as long as planned:

    q = (L - max(1, w) F) / (w S)

is the share of the planned steps that fits: other work is not faster where steps are. The stage makes q of those that
its schedule has left, up to the limit of its `StageHorizon`, and later stages q of theirs. w is measured over as many
steps as a quarter of those that are left, the planned speed standing in for steps not made yet: a short interruption
changes little, a lasting one as much as it lasts. A stage keeps the steps that the end of its schedule takes
(`count_tail_steps`), whatever the time.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fledgling.plan.stage_seconds import StageSeconds
from fledgling.train.stage_horizon import StageHorizon

MIN_WINDOW = 8  # steps over which the speed is measured at least
MAX_WINDOW = 1 << 12
WINDOW_DIVISOR = 4  # the window is this part of the steps that are left
TOLERANCE = 0.03  # of the steps that are left: smaller changes are not made
CHECK_SECONDS = 3.0  # between two decisions, at most
CHECK_SHARE = 0.05  # of the planned time that is left: a short stage is looked at as often
LAST_RATE = 0.25  # of the full rate, at most, at the last step


@dataclass
class RunClock:
    """The seconds of work that a run has spent, and those of its budget.

    before: seconds that earlier sessions spent; a pause between them does not count.
    """

    budget: float
    before: float = 0.0
    now: Callable[[], float] = time.monotonic
    started: float | None = None

    def __post_init__(self) -> None:
        if self.started is None:
            self.started = self.now()

    @property
    def spent(self) -> float:
        """Seconds of work up to now."""
        return self.before + self.now() - (self.started or 0.0)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left; below 0 after its end."""
        return self.budget - self.spent


def compute_affordable_fraction(left: float, stages: Sequence[StageSeconds], slowdown: float) -> float:
    """Returns q above: the share of the planned steps of `stages` that fits into `left` seconds, at least 0."""
    steps = slowdown * sum(stage.steps * stage.step_seconds for stage in stages)
    fixed = max(1.0, slowdown) * sum(stage.fixed_seconds for stage in stages)
    return max(0.0, left - fixed) / steps if steps > 0 else 1.0


def count_tail_steps(rest: float, decay_fraction: float, planned: float) -> int:
    """Returns the fewest steps in which the rest of a schedule still ends at `LAST_RATE`, if its plan did; at least 1.

    Args:
        rest: the share of the schedule that is left.
        decay_fraction: the last share of it, over which the rate falls.
        planned: steps that the rest has in the plan, beyond which there are none.
    """
    needed = rest / (LAST_RATE * decay_fraction) if decay_fraction > 0 else 1.0
    return max(1, min(math.ceil(needed - 1e-9), math.ceil(planned - 1e-9)))


@dataclass
class StagePace:
    """Chooses the steps of a stage after each of them (`fledgling.train.loop.ChooseSteps`).

    Attributes:
        clock: of the run.
        stage: what was planned of the stage that runs.
        later: the same of the stages after it, and of what follows the last.
        slowdown: the time that this machine takes, as a share of the planned: updated while the stage runs.
        decay_fraction: the last share of the stage's schedule, over which its rate falls.
    """

    clock: RunClock
    stage: StageSeconds
    later: tuple[StageSeconds, ...] = ()
    slowdown: float = 1.0
    decay_fraction: float = 0.0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_WINDOW))
    is_first: bool = True
    decided: float | None = None
    start_slowdown: float = field(init=False)

    def __post_init__(self) -> None:
        self.start_slowdown = self.slowdown

    def __call__(self, horizon: StageHorizon, step: int, seconds: float) -> int:
        if self.is_first:  # of a session: it compiles
            self.is_first = False
            return horizon.steps
        self.seconds.append(seconds)
        rest = 1 - horizon.progress(step)
        now, planned = self.clock.now(), rest * horizon.planned
        interval = min(CHECK_SECONDS, CHECK_SHARE * planned * self.stage.step_seconds * self.slowdown)
        if self.decided is not None and now - self.decided < interval:
            return horizon.steps
        self.decided = now
        slowdown = self.measure_slowdown(planned)
        ahead = self.stage.remaining_part(planned, rest)
        q = compute_affordable_fraction(self.clock.left, (ahead, *self.later), slowdown)
        left = horizon.steps - step
        possible = max(int(planned * q), count_tail_steps(rest, self.decay_fraction, planned))
        possible = min(possible, horizon.limit - step)
        allowed = max(1.0, TOLERANCE * left) * (1 if possible < left else 2)
        return horizon.steps if abs(possible - left) <= allowed else step + max(1, possible)

    def measure_slowdown(self, planned: float) -> float:
        """Returns and keeps the measured time of a step as a share of the planned; planned: steps that are left."""
        self.slowdown = self._measure(int(min(MAX_WINDOW, max(MIN_WINDOW, planned / WINDOW_DIVISOR))))
        return self.slowdown

    @property
    def usual_slowdown(self) -> float:
        """The time of a step as a share of the planned, for the stages that follow.

        It is of the last quarter of this session's steps, and of `MIN_WINDOW` at least. At the end of a stage
        `slowdown` is that of `MIN_WINDOW` steps, which one interruption can double.
        """
        return self._measure(max(MIN_WINDOW, len(self.seconds) // WINDOW_DIVISOR))

    def _measure(self, window: int) -> float:
        recent = list(self.seconds)[-window:]
        missing = (window - len(recent)) * self.stage.step_seconds * self.start_slowdown
        return (sum(recent) + missing) / (window * self.stage.step_seconds)
