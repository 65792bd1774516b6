"""A stage with a deadline makes as many steps as fit, with a simulated clock: nothing here waits."""

import pytest

from fledgling.plan.stage_seconds import StageSeconds
from fledgling.train.pace import RunClock, StagePace
from fledgling.train.stage_horizon import StageHorizon


def run_stage(pace, horizon, clock, speed, step=0, end=0.0):
    """Makes the steps of a stage whose step n takes speed(n) seconds; returns the steps made."""
    while step < horizon.steps:
        seconds = speed(step)
        clock[0] += seconds
        step += 1
        if step < horizon.steps:
            chosen = pace(horizon, step, seconds)
            if chosen != horizon.steps:
                horizon.change(step, min(max(chosen, step + 1), horizon.planned))
    clock[0] += end
    return step


def make(budget, steps=400, later=(), **stage):
    clock = [0.0]
    pace = StagePace(RunClock(budget, 0.0, lambda: clock[0]), StageSeconds("sft", steps, 1.0, **stage), tuple(later))
    return clock, pace, StageHorizon(steps)


def test_a_machine_as_fast_as_planned_makes_all_planned_steps():
    clock, pace, horizon = make(405.0)
    assert run_stage(pace, horizon, clock, lambda step: 1.0) == 400 and not horizon.changes


@pytest.mark.parametrize("begins", [0, 150, 320])
def test_a_machine_that_slows_down_ends_in_time_with_fewer_steps(begins):
    clock, pace, horizon = make(420.0, end=10.0)
    made = run_stage(pace, horizon, clock, lambda step: 2.0 if step >= begins else 1.0, end=20.0)
    expected = begins + (420 - begins - 20) / 2
    assert made == pytest.approx(expected, rel=0.05) and clock[0] <= 1.02 * 420


def test_a_short_interruption_takes_back_what_it_took():
    """Ten steps of five seconds: the horizon falls a little, and not by the factor of five that they are slower."""
    clock, pace, horizon = make(410.0)
    made = run_stage(pace, horizon, clock, lambda step: 5.0 if 100 <= step < 110 else 1.0)
    assert 340 <= made <= 375 and clock[0] <= 1.02 * 410
    assert min(steps for _, steps in horizon.changes) > 250  # five times slower for all of the rest: 160


def test_what_follows_is_shortened_by_the_same_share():
    later = StageSeconds("rl", 100, 4.0, start=5.0)
    clock, pace, horizon = make(805.0, later=[later])
    run_stage(pace, horizon, clock, lambda step: 2.0)
    assert horizon.steps == pytest.approx(200, rel=0.08)
    assert pace.slowdown == pytest.approx(2.0, rel=0.02)


def test_a_resumed_stage_has_what_its_earlier_sessions_left():
    clock, pace, horizon = make(400.0)
    pace.clock.before = 200.0
    assert run_stage(pace, horizon, clock, lambda step: 1.0, step=100) == pytest.approx(300, abs=6)
    assert clock[0] <= 204
