"""The sweeps of learning rates: which runs there are, what each runs with, and how the rule is compared with them."""

from pathlib import Path

import pytest

from benchmarks.rates import (
    SMALL,
    RateRun,
    draw_rates,
    format_rates,
    make_run_recipe,
    make_runs,
    summarize,
    summarize_decays,
)
from fledgling.config import UserError, load_recipe
from fledgling.config.scaling_rules import width_rates

RECIPE = load_recipe("scaling", SMALL)


def make_rows(role="all", decay=1.0, depth=2, **losses):
    run = {"depth": depth, "batch_tokens": 1024, "tokens": 200_000, "role": role, "decay": decay}
    return [
        {**run, "multiple": float(key[1:].replace("_", ".")), "bits_per_byte": loss} for key, loss in losses.items()
    ]


def test_a_sweep_has_the_rule_and_its_multiples_nearest_first_and_each_run_once():
    runs = make_runs([4, 2], [0.5, 4, 1], [1024], 200_000, ["all", "head"])
    assert [(run.depth, run.role, run.multiple) for run in runs[:5]] == [
        *[(2, "all", 1.0), (2, "all", 0.5), (2, "all", 4.0)],
        *[(2, "head", 0.5), (2, "head", 4.0)],
    ]
    assert len({run.name for run in runs}) == len(runs) == 10
    larger = make_runs([2], [1], [4096], 200_000, ["all"])
    assert [run.multiple for run in larger] == [2.0, 1.0], "what rule 8 gives for the batch is a run too"


def test_a_run_has_its_multiple_of_the_rules_rates_and_the_decay_that_follows():
    rule = width_rates(128)
    one, other, head = (
        make_run_recipe(RECIPE, RateRun(4, 1024, 200_000, role, multiple), 32, Path("out")).optimizer
        for role, multiple in (("all", 1.0), ("all", 2.0), ("head", 2.0))
    )
    assert (one.matrix_lr, one.embedding_lr, one.head_lr) == (rule["matrix"], rule["embedding"], rule["head"])
    assert other.matrix_lr == 2 * one.matrix_lr and other.weight_decay == pytest.approx(one.weight_decay / 2)
    assert head.head_lr == 2 * one.head_lr and head.matrix_lr == one.matrix_lr


def test_the_summary_says_how_far_the_rule_is_from_the_best_of_its_sweep():
    rows = make_rows(x0_5=2.02, x1=2.0, x2=2.04) + make_rows("head", x0_5=1.9, x2=2.1)
    whole, head = summarize(rows)
    assert (whole["best"], whole["excess"]) == (1.0, 0.0)
    assert head["best"] == 0.5 and head["excess"] == pytest.approx(2.0 / 1.9 - 1), "the rule's own run is shared"
    assert summarize(make_rows(x0_5=2.0, x2=2.0, x4=2.0)) == [], "without the rule's run nothing is compared"
    decays = summarize_decays(rows + make_rows(decay=0.0, x1=2.1, x2=1.0))
    assert [each["losses"] for each in decays] == [{1.0: 2.0, 0.0: 2.1}], "at the rule's rates alone"
    result = {"summary": [whole, head], "decays": decays, "missing": ["d4-b1024-t200000-all-1"]}
    table = format_rates(result).splitlines()
    assert table[-2].endswith("depth 2, 1,024 tokens a step, 200,000 tokens: x 1 2.0000, x 0 2.1000")
    assert table[2] == "| 2 | 1,024 | 200,000 | all | 2.0200 | 2.0000 | 2.0400 | x 1 | x 1 | 0.00% |"
    assert "1 runs are open" in table[-1] and draw_rates(rows).count("<polyline") == 1


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (([0], [1.0], [1024], 200_000, ["all"]), "--depths: got [0], expected numbers above 0, such as 2 4 6"),
        (([2], [-1.0], [1024], 200_000, ["all"]), "--multiples: got [-1.0]"),
        (([2], [1.0], [1024], 2_000, ["all"]), "--tokens: got 2,000, expected at least 20 steps of 1,024 tokens"),
        (([2], [1.0], [1024], 200_000, ["heads"]), "--roles: got heads, expected some of all, matrix"),
    ],
)
def test_a_sweep_that_cannot_be_made_is_one_line(grid, words):
    with pytest.raises(UserError) as caught:
        make_runs(*grid)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_batch_of_incomplete_rows_is_one_line():
    with pytest.raises(UserError, match="--batch-tokens: got 1000, expected whole rows of 128"):
        make_run_recipe(RECIPE, RateRun(2, 1000, 200_000), 32, Path("out"))
