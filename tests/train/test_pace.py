"""A stage with a deadline makes as many steps as fit, with a simulated clock: nothing here waits."""

import pytest

from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.plan.stage_seconds import StageSeconds
from fledgling.train.pace import LAST_RATE, RunClock, StagePace, count_tail_steps
from fledgling.train.stage_horizon import StageHorizon, grow_steps


def run_stage(pace, horizon, clock, speed, step=0, end=0.0):
    """Makes the steps of a stage whose step n takes speed(n) seconds; returns the steps made."""
    while step < horizon.steps:
        seconds = speed(step)
        clock[0] += seconds
        step += 1
        if step < horizon.steps:
            chosen = pace(horizon, step, seconds)
            if chosen != horizon.steps:
                horizon.change(step, min(max(chosen, step + 1), horizon.limit))
    clock[0] += end
    return step


def make(budget, steps=400, later=(), most=0, **stage):
    clock = [0.0]
    pace = StagePace(RunClock(budget, 0.0, lambda: clock[0]), StageSeconds("sft", steps, 1.0, **stage), tuple(later))
    return clock, pace, StageHorizon(steps, most=most)


def test_a_machine_as_fast_as_planned_makes_all_planned_steps():
    clock, pace, horizon = make(405.0)
    assert run_stage(pace, horizon, clock, lambda step: 1.0) == 400 and not horizon.changes


@pytest.mark.parametrize(("step_seconds", "made"), [(0.95, 421), (0.9, 444), (0.7, 460)])
def test_a_machine_faster_than_planned_uses_the_time_up_to_the_most_steps(step_seconds, made):
    clock, pace, horizon = make(400.0, most=grow_steps(400))
    assert run_stage(pace, horizon, clock, lambda step: step_seconds) == pytest.approx(made, rel=0.01)
    assert clock[0] <= 400.0 and horizon.limit == 460
    clock, pace, horizon = make(430.0, most=grow_steps(400), end=30.0)  # its end takes no less than planned
    assert run_stage(pace, horizon, clock, lambda step: step_seconds, end=30.0) == pytest.approx(made, rel=0.01)
    assert clock[0] <= 430.0
    clock, pace, horizon = make(400.0)  # of a stage that cannot grow, such as one of stored predictions
    assert run_stage(pace, horizon, clock, lambda step: step_seconds) == 400


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


def test_the_next_stage_counts_with_the_speed_of_more_than_the_last_few_steps():
    """Three slow steps at the end of pretraining took a quarter of midtraining's."""
    clock, pace, horizon = make(420.0)
    made = run_stage(pace, horizon, clock, lambda step: 3.0 if step >= 395 else 1.0)
    assert made >= 395 and pace.slowdown > 1.5 and pace.usual_slowdown < 1.15
    clock, pace, horizon = make(1000.0)
    run_stage(pace, horizon, clock, lambda step: 2.0 if step >= 300 else 1.0)
    assert pace.usual_slowdown == pytest.approx(2.0), "a machine that became slower stays so"
    _, pace, _ = make(100.0)
    assert pace.usual_slowdown == 1.0, "of no step it is that of the stages before"
    pace.seconds.append(18.0)
    assert pace.usual_slowdown == pytest.approx((18 + 7) / 8), "one slow step counts as an eighth"


def test_a_resumed_stage_has_what_its_earlier_sessions_left():
    clock, pace, horizon = make(400.0)
    pace.clock.before = 200.0
    assert run_stage(pace, horizon, clock, lambda step: 1.0, step=100) == pytest.approx(300, abs=6)
    assert clock[0] <= 204


@pytest.mark.parametrize(("steps", "step_seconds", "decay"), [(30, 0.05, 0.4), (30, 5.0, 0.4), (40, 0.2, 1.0)])
@pytest.mark.parametrize("left", [0.0, 0.3])
def test_a_stage_of_few_steps_ends_with_its_schedule_whatever_the_time(steps, step_seconds, decay, left):
    """A machine that has no time left for a stage that has begun still brings its rate down."""
    clock = [0.0]
    stage = StageSeconds("sft", steps, step_seconds)
    pace = StagePace(RunClock(left * steps * step_seconds, 0.0, lambda: clock[0]), stage, (), 1.0, decay)
    horizon = StageHorizon(steps)
    made = run_stage(pace, horizon, clock, lambda step: 3 * step_seconds)
    last = trapezoidal_schedule(horizon.progress(made - 1), made, decay_fraction=decay)
    planned = trapezoidal_schedule((steps - 1) / steps, steps, decay_fraction=decay)
    assert made < steps and last <= max(LAST_RATE, planned) + 1e-9


def test_a_short_stage_gets_back_the_steps_that_its_first_ones_took():
    """Its steps take a second together: a decision every three seconds would be the only one."""
    clock = [0.0]
    pace = StagePace(RunClock(1.6, 0.0, lambda: clock[0]), StageSeconds("sft", 40, 0.025), (), 1.0, 0.4)
    horizon = StageHorizon(40)
    made = run_stage(pace, horizon, clock, lambda step: 0.25 if step in (1, 2) else 0.025)
    assert made >= 38 and clock[0] < 1.7


def test_the_steps_of_a_tail_are_those_of_its_plan_at_most():
    assert [count_tail_steps(rest, 0.4, 100) for rest in (1.0, 0.5, 0.1, 0.0)] == [10, 5, 1, 1]
    assert (count_tail_steps(1.0, 0.4, 6), count_tail_steps(0.5, 0.0, 9), count_tail_steps(1.0, 1.0, 9)) == (6, 1, 4)
