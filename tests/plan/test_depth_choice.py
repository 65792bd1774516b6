"""The choice between depths: by what is expected at worst, which counts how far the law reaches."""

import random
from dataclasses import replace

from fledgling.plan import bits_forecast
from fledgling.plan.comparable_runs import MAX_FITTED
from fledgling.plan.depth_choice import MAX_COMPARED, SizeComparison, choose_laws
from fledgling.plan.shifted_loss import ShiftedLoss, fit_laws
from tests.plan.past_run_samples import DATA, make_run, plan_of, with_vocabulary


def test_sizes_are_compared_by_the_runs_of_those_features_that_most_have():
    draw, smeared = random.Random(6), f"{DATA}; smear"
    plain = [make_run(draw) for _ in range(6)]
    other = [replace(make_run(draw), data=smeared) for _ in range(5)]
    for runs, kind in ((plain + other, DATA), (plain[:5] + other, smeared)):
        assert {run.data for run in choose_laws(runs, smeared, 4_000_000, True).runs} == {kind}


def test_sizes_are_compared_by_runs_with_another_vocabulary_where_there_are_none_of_the_own():
    """With 2,048 entries, twelve minutes had taken depth 4 by no law at all: 515 steps of pretraining."""
    draw, data = random.Random(6), with_vocabulary(3072)
    runs = [make_run(draw) for _ in range(6)]
    assert data != DATA and {run.data for run in choose_laws(runs, data, 4_000_000, True).runs} == {DATA}
    assert not choose_laws(runs, DATA.replace("rows of 256", "rows of 512"), 4_000_000, True).laws


def test_of_many_past_runs_and_depths_few_are_fitted_so_that_a_plan_takes_no_longer(monkeypatch):
    draw = random.Random(0)
    runs = [replace(make_run(draw), start=str(n)) for n in range(1_500)]
    read = []
    monkeypatch.setattr(
        bits_forecast, "fit_laws", lambda sizes, *rest: read.append(len(sizes)) or fit_laws(sizes, *rest)
    )
    assert choose_laws(runs, DATA, 1_900_000, True).laws
    assert len(read) <= MAX_FITTED + 1 and max(read) <= MAX_FITTED
    comparison = choose_laws(runs, DATA, 1_900_000, True)
    found = {depth: replace(plan_of(runs[0]), parameters=1_000_000 * depth) for depth in range(1, 40)}
    read.clear()
    assert comparison.choose(found, 4) in found
    assert len(read) <= (MAX_COMPARED + 1) * (MAX_FITTED + 1)


def plan_size(parameters, tokens):
    """Returns a plan with later stages as long as pretraining."""
    plan = plan_of(make_run(random.Random(0)))
    return replace(plan, parameters=parameters, tokens=tokens, later_flops=6.0 * parameters * tokens)


def test_a_depth_beyond_its_past_runs_is_taken_only_if_it_is_better_even_at_worst():
    """Three minutes became 149 steps of a depth whose past runs had read three times as much: 1.88 instead of 1.65."""
    draw = random.Random(3)
    past = [make_run(draw, 0.02, 655_360, tokens) for tokens in (1.7e6, 2e6, 2.3e6)]
    past += [make_run(draw, 0.02, 1_720_320, tokens) for tokens in (1.9e6, 3.5e6, 3.7e6)]
    comparison = choose_laws(past, DATA, 3_670_016, True)
    short = {2: plan_size(655_360, 2_000_000), 3: plan_size(1_720_320, 600_000), 4: plan_size(3_670_016, 200_000)}
    hopeful = replace(comparison, laws=tuple(replace(law, B=law.B / 500) for law in comparison.laws))
    for laws in (comparison, hopeful):  # by the latter the deepest is the best
        assert laws.choose(short, 4) == laws.choose(short, 3) == 2
    deepest = min(short, key=lambda depth: hopeful.losses(short[depth])[0])
    assert deepest == 4
    within = {2: plan_size(655_360, 2_200_000), 3: plan_size(1_720_320, 2_200_000)}
    assert comparison.choose(within, 2) == 3, "of the same text the larger one, within its past runs"


def test_the_recipes_depth_stays_unless_all_laws_find_another_better():
    draw = random.Random(4)
    past = [make_run(draw, 0.02, parameters, tokens) for parameters in (655_360, 3_670_016) for tokens in (1e6, 4e6)]
    comparison = choose_laws(past, DATA, 3_670_016, True)
    near = {3: plan_size(3_600_000, 4_000_000), 4: plan_size(3_670_016, 4_000_000)}
    assert [comparison.choose(near, own) for own in (3, 4)] == [3, 4], "too near to tell apart"
    assert replace(comparison, laws=()).choose(near, 4) == 4 and comparison.choose({3: near[3]}, 4) == 3
    far = {4: plan_size(3_670_016, 10**9), 8: plan_size(28_000_000, 130_000_000)}  # no higher than the same past run
    assert comparison.choose(far, 4) == 8, "all laws find it better"
    doubt = replace(comparison, laws=(*comparison.laws, ShiftedLoss(0.4, 7e8, 1.3e13)))
    assert doubt.choose(far, 4) == 4, "one of them does not"
    published = SizeComparison((ShiftedLoss(0.4, 7e8, 1.3e10),), "published")
    assert [published.choose(near, own) for own in (3, 4)] == [3, 4] and published.choose(far, 4) == 8
