"""The sizes of past runs, and which of them count."""

import random
from dataclasses import replace

from fledgling.plan.comparable_runs import (
    MAX_FITTED,
    effective_tokens,
    thin_runs,
)
from tests.plan.past_run_samples import make_run


def test_repeated_text_counts_less_and_never_nothing():
    values = [effective_tokens(passes * 1e6, passes) for passes in (0.5, 1, 2, 8, 64, 1000)]
    assert values[:2] == [0.5e6, 1e6] and values == sorted(values) and values[2] > 1.9e6 and values[-1] < 17e6


def test_many_past_runs_are_thinned_over_their_sizes_so_that_a_plan_takes_no_longer():
    draw = random.Random(0)
    runs = [replace(make_run(draw), start=str(n)) for n in range(1_500)]
    repeated = [replace(runs[0], start="again", run=str(n)) for n in range(1_500)]
    kept = thin_runs([*repeated, *runs])
    assert len(kept) == MAX_FITTED == len({run.start for run in kept}) and kept == thin_runs(kept)
    sizes = [(run.parameters, run.tokens) for run in (*repeated, *runs)]
    assert {min(sizes), max(sizes)} <= {(run.parameters, run.tokens) for run in kept}
    assert len(thin_runs(repeated)) == 1, "they are one beginning"
