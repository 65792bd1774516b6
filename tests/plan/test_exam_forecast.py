"""Exams are forecast by a line: its level of the same wordings, its slope of all."""

import math
import random
from dataclasses import replace

import pytest

from fledgling.plan.exam_forecast import forecast_exam
from tests.plan.past_run_samples import make_run, plan_of

EXAM = "spelling"


def _make_series(draw, wordings, level, sizes, count=5):
    """Past runs whose logit is 1.5 times the logarithm of their FLOPs over 1e12, plus a level of the wordings."""
    runs = []
    for number, flops in enumerate(sizes * count):
        flops *= draw.uniform(0.95, 1.05)
        logit = level + 1.5 * math.log(flops / 1e12) + draw.gauss(0, 0.05)
        run = replace(make_run(draw, tokens=200_000 + 1000 * number), start=f"{wordings} {number}", wordings=wordings)
        runs.append(replace(run, later_flops=flops, measured={EXAM: 1 / (1 + math.exp(-logit))}))
    return runs


def test_runs_of_one_size_take_the_slope_of_other_wordings():
    """Five runs of twelve minutes let expect 84 % for a machine of a quarter of their speed, which reached 52 %."""
    draw = random.Random(7)
    new = _make_series(draw, "new", 0.0, [1e12])
    old = [run for n in range(3) for run in _make_series(draw, f"old {n}", n - 1.0, [2.5e11, 1e12], 3)]
    plan = replace(plan_of(new[0]), later_flops=2.5e11, wordings="new")
    share = 1 / (1 + 4**1.5)
    alone, together = forecast_exam(plan, new, EXAM), forecast_exam(plan, [*new, *old], EXAM)
    assert alone.value > 0.35 and together.value == pytest.approx(share, abs=0.03) and together.holds(share)
    assert together.runs == 5, "the level is of the same wordings alone"
    at_their_size = replace(plan, later_flops=1e12)
    assert forecast_exam(at_their_size, [*new, *old], EXAM).value == pytest.approx(0.5, abs=0.02)


def test_a_slope_that_differs_between_wordings_widens_the_interval_away_from_their_size():
    draw = random.Random(8)
    new, alike = _make_series(draw, "new", 0.0, [1e12]), _make_series(draw, "old", 0.0, [2e11, 4e11, 1e12], 2)
    flat = [replace(run, wordings="flat", measured={EXAM: 0.5}) for run in alike]
    plan = replace(plan_of(new[0]), later_flops=4e11, wordings="new")
    agreed = forecast_exam(plan, [*new, *alike, *(replace(run, wordings="again") for run in alike)], EXAM)
    disputed = forecast_exam(plan, [*new, *alike, *flat], EXAM)
    assert disputed.high - disputed.low > 1.5 * (agreed.high - agreed.low)
    near = replace(plan, later_flops=1e12)
    assert forecast_exam(near, [*new, *alike, *flat], EXAM).high < 0.62


def test_an_interval_that_reaches_the_end_of_an_exam_includes_it():
    """Shares of 0 and of .005 are the same point of the fit, so that 0 is no surprise where .005 is none."""
    draw = random.Random(3)
    runs = [replace(make_run(draw, tokens=200_000 + 1000 * n), start=f"seed {n}") for n in range(12)]
    runs = [replace(run, measured=run.measured | {EXAM: draw.choice([0.0, 0.03, 0.6])}) for run in runs]
    plan = plan_of(runs[0])
    forecast = forecast_exam(plan, runs, EXAM)
    assert forecast.low == 0.0 < forecast.value and forecast.holds(0.0)


def test_no_interval_of_an_exam_is_narrower_than_two_hundred_questions_make_it():
    """Five past runs gave 100 % to 100 % for an exam that runs of 12 minutes answered at 96 %."""
    draw = random.Random(4)
    runs = [replace(make_run(draw, tokens=200_000 + 1000 * n), start=f"seed {n}", later_flops=1e12) for n in range(6)]
    for share, radius in ((0.5, 0.057), (0.96, 0.02)):
        same = [replace(run, measured=run.measured | {EXAM: share}) for run in runs]
        forecast = forecast_exam(plan_of(same[0]), same, EXAM)
        assert forecast.low <= share - radius and forecast.high >= share + 0.6 * radius
    points = [replace(run, later_flops=4.0**n, measured={EXAM: 0.1 + 0.17 * n}) for n, run in enumerate(runs)]
    far = forecast_exam(replace(plan_of(runs[0]), later_flops=4.0**12), points, EXAM)
    assert far.value > 0.99 and far.low < 0.98
