"""Forecasts from past runs: intervals that hold as often as they say, and that say what they are from."""

import random
from dataclasses import replace

import pytest

from fledgling.plan.bits_forecast import forecast_bits
from fledgling.plan.depth_choice import choose_laws
from fledgling.plan.exam_forecast import forecast_exam
from fledgling.plan.forecast import forecast_ratio, forecast_run
from fledgling.plan.past_runs import FIRST_BITS
from fledgling.record.forecast_names import BITS, MEMORY, SECONDS
from tests.plan.past_run_samples import DATA, make_run, plan_of


def test_intervals_of_further_runs_hold_about_nine_times_in_ten():
    draw, held = random.Random(1), dict.fromkeys([SECONDS, MEMORY, FIRST_BITS, BITS, "counting"], 0)
    for _ in range(25):
        past, further = [make_run(draw) for _ in range(14)], make_run(draw)
        for forecast in forecast_run(plan_of(further), past, ["counting"]):
            held[forecast.name] += forecast.holds(further.measured[forecast.name])
    assert all(21 <= count <= 25 for count in held.values()), held


@pytest.mark.parametrize("count", [0, 1, 3])
def test_with_few_past_runs_the_forecast_names_what_it_is_from(count):
    draw = random.Random(4)
    past, plan = [make_run(draw) for _ in range(count)], plan_of(make_run(draw))
    bits = forecast_bits(plan, past)
    assert "law nanochat" in bits.note and f"{count} past runs" in bits.note and bits.high > 1.3 * bits.value
    time = forecast_ratio(SECONDS, 60.0, past)
    assert time.runs == count and time.high > 1.1 * 60 and (time.note == "no past run") is (count == 0)
    assert forecast_exam(plan, past, "counting") is None, "no figure without past runs"
    assert {forecast.name for forecast in forecast_run(plan, past)} == {SECONDS, MEMORY, FIRST_BITS}


def test_runs_that_began_in_the_same_way_count_as_one_error_and_do_not_predict_each_other():
    draw = random.Random(5)
    past = [replace(make_run(draw, 0.2, 1_900_000, 10**6 + n), start=f"seed {n}") for n in range(12)]
    repeats = [replace(run, measured={**run.measured, SECONDS: 1.0}) for run in past[:8]]
    plan = plan_of(make_run(draw, parameters=1_900_000, tokens=10**6))
    for forecast in (lambda runs: forecast_run(plan, runs)[-1], lambda runs: forecast_exam(plan, runs, "counting")):
        alone, doubled = forecast(past), forecast([*past, *repeats])
        assert alone.runs == doubled.runs == 12 and doubled.high / doubled.low > 0.8 * alone.high / alone.low
    same = [replace(run, start="seed 1") for run in past[:4]]
    assert "law nanochat: 4 past runs (1 independent)" in forecast_bits(plan, same).note
    assert choose_laws(same, DATA, 1000, True).laws == () and forecast_exam(plan, same, "counting") is None
    assert forecast_ratio(SECONDS, 60.0, same).runs == 4 and forecast_ratio(MEMORY, 1e8, same).runs == 1


def test_exams_of_other_wordings_predict_nothing():
    draw = random.Random(6)
    runs = [make_run(draw, parameters=1_900_000, tokens=10**6 + n) for n in range(12)]
    plan = replace(plan_of(make_run(draw, parameters=1_900_000, tokens=10**6)), wordings="new")
    assert forecast_exam(plan, runs, "counting") is None
    assert forecast_bits(plan, runs) == forecast_bits(replace(plan, wordings=""), runs), "the text is the same"
    again = [replace(run, wordings="new", measured=run.measured | {"counting": 0.9}) for run in runs[:6]]
    first, rest = (
        again[:3],
        [replace(run, measured=run.measured | {BITS: 1.1 * run.measured[FIRST_BITS]}) for run in again],
    )
    ends = [
        forecast_run(plan, [*runs, *some])[-1].value / forecast_bits(plan, [*runs, *some]).value
        for some in (first, rest)
    ]
    assert ends == [pytest.approx(1.01), pytest.approx(1.1)], "six of the same wordings suffice, three do not"
    forecast = forecast_exam(plan, [*runs, *again], "counting")
    assert forecast.runs == 6 and forecast.value == pytest.approx(0.9)


def test_a_disturbed_run_of_another_size_changes_no_interval():
    draw = random.Random(8)
    past = [make_run(draw, parameters=1_900_000, tokens=round(1e6 * draw.uniform(0.8, 1.2))) for _ in range(12)]
    plan = plan_of(make_run(draw, parameters=1_900_000, tokens=1_000_000))
    tiny = make_run(draw, parameters=150_000, tokens=60_000)
    measured = {**tiny.measured, SECONDS: 2 * tiny.predicted[SECONDS], MEMORY: 1.8 * tiny.predicted[MEMORY]}
    tiny = replace(tiny, predicted={**tiny.predicted, MEMORY: 1.5e7}, measured={**measured, "counting": 0.0})
    alone, with_it = forecast_run(plan, past, ["counting"]), forecast_run(plan, [*past, tiny], ["counting"])
    for before, after in zip(alone, with_it, strict=True):
        if before.name in (SECONDS, MEMORY, "counting"):
            assert after == before
    few = forecast_ratio(SECONDS, plan.seconds, [*past[:3], tiny])
    assert few.runs == 4, "with few past runs all count"
