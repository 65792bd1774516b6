"""CORE's metric against hand computation and the published tables of GPT-2."""

import math
import os
from dataclasses import asdict, replace

import pytest

from fledgling.evals.core import zip_prompts
from fledgling.evals.core_results import (
    CoreTaskResult,
    ItemResult,
    compute_core,
    compute_task_result,
    is_correct,
    list_core_measurements,
)
from fledgling.evals.measurement import wilson_interval
from fledgling.files import resolve_data_root
from fledgling.tasks.core import find_core_bundle, read_core_items, read_core_tasks


def make_item(logprobs=(), tokens=(), gold=0, greedy=False, cropped=0, category="") -> ItemResult:
    return ItemResult(0, category, gold, logprobs, tokens, greedy, cropped)


def test_the_best_mean_logprob_wins_and_the_first_of_equal_ones():
    assert is_correct("multiple_choice", make_item((-4.0, -3.0), (4, 2), gold=0)), "-1 a token beats -1.5"
    assert not is_correct("multiple_choice", make_item((-4.0, -3.0), (4, 2), gold=1))
    assert is_correct("schema", make_item((-2.0, -4.0), (1, 2), gold=0)) and not is_correct(
        "schema", make_item((-2, -4), (1, 2), 1)
    )
    assert is_correct("language_modeling", make_item(greedy=True)) and not is_correct(
        "language_modeling", make_item(greedy=False)
    )


def test_an_empty_choice_counts_as_in_the_published_evaluator():
    """A choice that all others begin with has no scored token: its mean is NaN, and NaN is never smaller."""
    losses = [float("nan"), 1.0]
    assert losses.index(min(losses)) == 0 and is_correct("multiple_choice", make_item((0.0, -1.0), (0, 1), gold=0))
    assert is_correct("multiple_choice", make_item((-1.0, 0.0), (1, 0), gold=0))


def test_accuracy_is_centered_on_guessing(core_tasks):
    task = core_tasks["choice"]
    result = compute_task_result(
        task,
        [make_item((-1.0, -2.0, -3.0), (1, 1, 1), gold=0)] * 3 + [make_item((-1, -2, -3), (1, 1, 1), 2)],
        "nanochat",
    )
    assert (result.n, result.correct, result.accuracy) == (4, 3, 0.75)
    assert (result.low, result.high) == wilson_interval(3, 4)
    saved = asdict(result)
    older = {"right" if name == "correct" else name: value for name, value in saved.items()}
    assert CoreTaskResult.from_json(saved) == CoreTaskResult.from_json(older) == result
    assert result.centered[0] == pytest.approx((0.75 - 0.33) / 0.67)


def make_task_result(label: str, accuracy: float, baseline: float, n: int) -> CoreTaskResult:
    low, high = wilson_interval(accuracy * n, n)
    return CoreTaskResult(label, "schema", 0, n, round(accuracy * n), accuracy, low, high, baseline, 0, 0, 0, 0.0)


def test_core_is_the_mean_of_centered_accuracies():
    results = [make_task_result("a", 0.75, 0.5, 400), make_task_result("b", 0.1, 0.0, 1000)]
    core = compute_core(results)
    assert core.value == pytest.approx((0.5 + 0.1) / 2) and core.n == 1400
    above = [r.centered[2] - r.centered[0] for r in results]
    assert core.high - core.value == pytest.approx(math.hypot(*above) / 2)
    assert [m.name for m in list_core_measurements(results, True)] == ["core", "core_a", "core_b"]
    assert [m.name for m in list_core_measurements(results, False)] == ["core_a", "core_b"]


def test_items_on_one_passage_are_one_cluster_and_tasks_on_one_file_add_up(core_tasks):
    task = core_tasks["language"]
    marks = [index < 40 for index in range(60) for _ in range(4)]
    results = [replace(make_item(greedy=mark), passage=i // 4) for i, mark in enumerate(marks)]
    shared = compute_task_result(task, results, "nanochat")
    separate = compute_task_result(task, [replace(result, passage=-1) for result in results], "nanochat")
    assert (shared.n, shared.passages, separate.passages) == (240, 60, 240)
    assert (separate.low, separate.high) == wilson_interval(160, 240)
    assert shared.high - shared.low > 1.8 * (separate.high - separate.low)
    once = make_task_result("hellaswag", 0.6, 0.25, 500)
    same, other = replace(once, file="h.jsonl"), replace(once, file="i.jsonl")
    twice, both = compute_core([same, same]), compute_core([same, other])
    assert twice.high - twice.low == pytest.approx(once.centered[2] - once.centered[1])
    assert (both.high - both.low) * 2**0.5 == pytest.approx(twice.high - twice.low) and both.value == twice.value


def test_the_published_table_of_gpt2_is_centered_the_same_way():
    """The mean of centered accuracies of the published files is the CORE they state."""
    folder = find_core_bundle(resolve_data_root()) if os.environ.get("FLEDGLING_DATA") else None
    if folder is None:
        pytest.skip("FLEDGLING_DATA is not set")
    baselines = {task.label: task.baseline for task in read_core_tasks(resolve_data_root())}
    tables = sorted((folder / "reference_gpt2").glob("*.csv"))
    assert tables
    for table in tables:
        lines = [[cell.strip() for cell in line.split(",")] for line in table.read_text().splitlines()[1:]]
        stated = {name: (accuracy, centered) for name, accuracy, centered in lines}
        scores = [make_task_result(n, float(a), baselines[n], 1000) for n, (a, _) in stated.items() if n in baselines]
        assert len(scores) == 22 and compute_core(scores).value == pytest.approx(float(stated["CORE"][1]), abs=1e-5)


def test_foundry_averages_over_categories_and_draws_examples_within(core_tasks):
    task = core_tasks["language"]
    results = [make_item(greedy=True, category="a")] * 3 + [make_item(greedy=False, category="b")]
    assert (
        compute_task_result(task, results, "nanochat").accuracy == 0.75
        and compute_task_result(task, results, "foundry").accuracy == 0.5
    )
    many = [make_item(greedy=True, category="a")] * 180 + [make_item(greedy=False, category="b")] * 20
    plain, mean = (compute_task_result(task, many, convention) for convention in ("nanochat", "foundry"))
    assert plain.accuracy == 0.9 and mean.accuracy == 0.5 and 0 <= mean.low < 0.5 < mean.high <= 1
    # (mean of the categories' squared half-widths: .019 below 1 of 180, .16 above 0 of 20) / 2
    assert mean.low == pytest.approx(0.4895, abs=1e-3) and mean.high == pytest.approx(0.5806, abs=1e-3)
    for item, prompt in zip_prompts(task, read_core_items(task), "foundry"):
        assert prompt.examples == "", f"no other item is of category {item.category}"


def test_the_values_of_another_convention_have_other_names():
    result = CoreTaskResult("squad", "language_modeling", 10, 4, 2, 0.5, 0.1, 0.9, 0.0, 0, 0, 0, 0.0)
    names = {
        convention: {m.name for m in list_core_measurements([result], True, convention)}
        for convention in ("nanochat", "foundry")
    }
    assert names == {"nanochat": {"core", "core_squad"}, "foundry": {"core_foundry", "core_foundry_squad"}}
