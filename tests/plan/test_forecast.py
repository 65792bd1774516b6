"""Forecasts from past runs: intervals that hold as often as they say, and that widen where nothing is known."""

import math
import random
from dataclasses import replace

import pytest

from fledgling.config import load_recipe
from fledgling.plan import forecast as forecast_module
from fledgling.plan.forecast import (
    BITS,
    FIRST_BITS,
    MAX_FITTED,
    MEMORY,
    SECONDS,
    Planned,
    choose_laws,
    effective_tokens,
    fit_runs,
    forecast_bits,
    forecast_exam,
    forecast_last_bits,
    forecast_ratio,
    forecast_run,
    quantile_radius,
    thin_runs,
)
from fledgling.plan.past_runs import PastRun, describe_data
from fledgling.plan.shifted_loss import ShiftedLoss, fit_laws

DATA = describe_data(load_recipe("quickstart", ["model.preset=nanochat-2025"]))


TRUTH = ShiftedLoss(0.4, 7e8, 1.3e10)


def make_run(draw, noise=0.01, parameters=None, tokens=None):
    parameters = parameters or draw.choice([655_000, 1_900_000, 3_700_000, 11_000_000])
    tokens = tokens or round(10 ** draw.uniform(5.3, 6.7))
    later = 6.0 * parameters * tokens
    loss = TRUTH.loss(parameters, tokens) * math.exp(draw.gauss(0, noise))
    share = 1 / (1 + math.exp(-(math.log(later) - 30 + draw.gauss(0, 0.3))))
    seconds, memory = 60 * tokens / 1e5, 1e8 + 30 * parameters
    return PastRun(
        *("2026-11-27", "quickstart", DATA, "cpu", seconds, parameters, tokens, 1.0, later),
        predicted={SECONDS: seconds, MEMORY: memory},
        measured={
            SECONDS: 1.05 * seconds * math.exp(draw.gauss(0, 0.03)),
            MEMORY: memory * math.exp(draw.gauss(0, 0.02)),
            FIRST_BITS: loss,
            BITS: 1.01 * loss,
            "counting": share,
        },
    )


def plan_of(run):
    return Planned(
        *(run.data, run.parameters, run.tokens, run.passes, run.later_flops),
        *(run.predicted[SECONDS], run.predicted[MEMORY]),
    )


def test_intervals_of_further_runs_hold_about_nine_times_in_ten():
    draw, held = random.Random(1), dict.fromkeys([SECONDS, MEMORY, FIRST_BITS, BITS, "counting"], 0)
    for _ in range(25):
        past, further = [make_run(draw) for _ in range(14)], make_run(draw)
        for forecast in forecast_run(plan_of(further), past, ["counting"]):
            held[forecast.name] += forecast.holds(further.measured[forecast.name])
    assert all(21 <= count <= 25 for count in held.values()), held


def test_the_law_of_the_past_runs_is_found():
    draw = random.Random(2)
    found = fit_runs([make_run(draw, noise=0.0) for _ in range(8)])[0]
    assert pytest.approx((TRUTH.E, TRUTH.A, TRUTH.B), rel=1e-6) == (found.E, found.A, found.B) and found.shift == 0


def test_a_law_asked_beyond_its_runs_says_so_and_its_interval_is_wider():
    draw = random.Random(3)
    past = [make_run(draw) for _ in range(12)]
    past += [make_run(draw, parameters=3_700_000, tokens=tokens) for tokens in (200_000, 5_000_000)]
    inside = plan_of(make_run(draw, parameters=3_700_000, tokens=1_000_000))
    widths = []
    for factor in (1, 10, 100, 1000):
        far = Planned(DATA, inside.parameters, inside.tokens * factor, 1.0, inside.later_flops, 60.0, 1e9)
        forecast = forecast_bits(far, past)
        widths.append(math.log(forecast.high / forecast.low))
        assert ("beyond the past runs" in forecast.note) is (factor > 1)
    assert widths == sorted(widths) and widths[-1] > 3 * widths[0]


def test_runs_with_other_features_count_until_enough_have_the_same():
    draw = random.Random(5)
    config = load_recipe("quickstart", ["model.preset=nanochat-2025", "model.smear=true"])
    data = describe_data(config)
    plain, other = [make_run(draw) for _ in range(8)], [replace(make_run(draw), data=data) for _ in range(5)]
    plan = replace(plan_of(make_run(draw)), data=data)
    few, enough = forecast_bits(plan, plain + other[:3]), forecast_bits(plan, plain + other)
    assert few.runs == 11 and "other features" in few.note and few.high > 1.09 * few.value
    assert enough.runs == 5 and "other features" not in enough.note
    assert forecast_bits(replace(plan, data=data.replace("256", "512")), plain).runs == 0, "another text"


def test_sizes_are_compared_by_the_runs_of_those_features_that_most_have():
    draw, smeared = random.Random(6), f"{DATA}; smear"
    plain = [make_run(draw) for _ in range(6)]
    other = [replace(make_run(draw), data=smeared) for _ in range(5)]
    for runs, kind in ((plain + other, DATA), (plain[:5] + other, smeared)):
        assert {run.data for run in choose_laws(runs, smeared, 4_000_000, True).runs} == {kind}


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


def test_the_quantile_is_that_of_conformal_prediction():
    errors = [0.01 * n for n in range(1, 20)]
    assert quantile_radius(errors) == pytest.approx(0.18)  # the 18th of 19: (19 + 1) x .9
    assert quantile_radius(errors[:4]) > 0.04, "four runs cannot give a 90 % quantile: the largest error is not enough"


def test_repeated_text_counts_less_and_never_nothing():
    values = [effective_tokens(passes * 1e6, passes) for passes in (0.5, 1, 2, 8, 64, 1000)]
    assert values[:2] == [0.5e6, 1e6] and values == sorted(values) and values[2] > 1.9e6 and values[-1] < 17e6


def test_runs_that_began_in_the_same_way_count_as_one_error_and_do_not_predict_each_other():
    draw = random.Random(5)
    past = [replace(make_run(draw, noise=0.2), start=f"seed {n}") for n in range(12)]
    repeats = [replace(run, measured={**run.measured, SECONDS: 1.0}) for run in past[:8]]
    plan = plan_of(make_run(draw))
    for forecast in (lambda runs: forecast_last_bits(plan, runs), lambda runs: forecast_exam(plan, runs, "counting")):
        alone, doubled = forecast(past), forecast([*past, *repeats])
        assert alone.runs == doubled.runs == 12 and doubled.high / doubled.low > 0.8 * alone.high / alone.low
    same = [replace(run, start="seed 1") for run in past[:4]]
    assert "law nanochat: 4 past runs (1 independent)" in forecast_bits(plan, same).note
    assert choose_laws(same, DATA, 1000, True).laws == () and forecast_exam(plan, same, "counting") is None
    assert forecast_ratio(SECONDS, 60.0, same).runs == 4 and forecast_ratio(MEMORY, 1e8, same).runs == 1


def test_an_interval_that_reaches_the_end_of_an_exam_includes_it():
    """Shares of 0 and of .005 are the same point of the fit, so that 0 is no surprise where .005 is none."""
    draw = random.Random(3)
    runs = [replace(make_run(draw, tokens=200_000 + 1000 * n), start=f"seed {n}") for n in range(12)]
    runs = [replace(run, measured=run.measured | {"spelling": draw.choice([0.0, 0.03, 0.6])}) for run in runs]
    plan = plan_of(runs[0])
    forecast = forecast_exam(plan, runs, "spelling")
    assert forecast.low == 0.0 < forecast.value and forecast.holds(0.0)


def test_many_past_runs_are_thinned_over_their_sizes_so_that_a_plan_takes_no_longer(monkeypatch):
    draw = random.Random(0)
    runs = [replace(make_run(draw), start=str(n)) for n in range(1_500)]
    repeated = [replace(runs[0], start="again", run=str(n)) for n in range(1_500)]
    kept = thin_runs([*repeated, *runs])
    assert len(kept) == MAX_FITTED == len({run.start for run in kept}) and kept == thin_runs(kept)
    sizes = [(run.parameters, run.tokens) for run in (*repeated, *runs)]
    assert {min(sizes), max(sizes)} <= {(run.parameters, run.tokens) for run in kept}
    assert len(thin_runs(repeated)) == 1, "they are one beginning"
    read = []
    monkeypatch.setattr(
        forecast_module, "fit_laws", lambda sizes, *rest: read.append(len(sizes)) or fit_laws(sizes, *rest)
    )
    assert choose_laws(runs, DATA, 1_900_000, True).laws
    assert len(read) <= MAX_FITTED + 1 and max(read) <= MAX_FITTED
