"""Tests the numbers of the report."""

import pytest

from fledgling.report import summarize_run

from .synthetic_run import PEAK_FLOPS, make_run


def test_the_last_value_of_each_stage_with_its_baseline(run):
    found = summarize_run(run)
    values = {(e["stage"], e["name"]): e for e in found["evals"]}
    assert len(values) == len(found["evals"])
    last = {(e["stage"], e["name"]): e for e in found["history"]}
    assert values == last
    assert set(values["sft", "counting"]) == {
        "stage",
        "step",
        "name",
        "value",
        "low",
        "high",
        "n",
        "baseline",
    }
    assert values["sft", "counting"]["baseline"] == 0.6 and values["sft", "counting"]["step"] == 40
    assert list(found["stages"]) == ["pretrain", "midtrain", "sft", "rl"]
    pretrain = found["stages"]["pretrain"]
    assert pretrain["steps"] == 50 and pretrain["tokens"] == 50 * 4096 and pretrain["finished"]
    assert 17_000 < pretrain["tokens_per_second"] < 19_000, "the compiling step was counted"
    assert pretrain["saving"] == pytest.approx({"stall": 2 * 0.01 + 0.21, "writer": 3 * 0.2})
    assert pretrain["hours"] == pytest.approx(50 * 4096 / 18_000 / 3600, rel=0.2)


def test_predicted_and_measured_have_the_same_keys(run, tmp_path):
    found = summarize_run(run)
    assert set(found["predicted"]) == set(found["measured"]) >= {"pretrain.hours", "pretrain.tokens", "pretrain.usd"}
    bare = summarize_run(make_run(tmp_path / "bare", scale=0.05, planned=False))
    assert bare["predicted"] == bare["measured"] == {}


def test_the_whole_time_and_the_time_of_the_steps_are_two_numbers(run):
    pretrain = summarize_run(run)["stages"]["pretrain"]
    assert pretrain["training_hours"] == pytest.approx(50 * 4096 / 20_000 / 3600)
    assert pretrain["hours"] > pretrain["training_hours"], "evaluations and checkpoints are in the whole time alone"
    assert pretrain["peak_flops"] == [PEAK_FLOPS, PEAK_FLOPS]
