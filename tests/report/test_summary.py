"""Tests the numbers of the report."""

import io
import json

import pytest
from rich.console import Console

from fledgling.record import Recorder
from fledgling.report import make_evals_table, summarize_run
from fledgling.report.run_data import load_run_data
from fledgling.report.run_page import eval_rows

from .synthetic_run import PEAK_FLOPS, make_run


def test_a_summary_has_the_last_value_of_each_stage_with_its_baseline(run):
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
        "tools",
        "clusters",
        "cluster_unit",
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


def test_what_answers_could_call_is_shown_with_their_scores(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain", "midtrain"), scale=0.02)
    with Recorder(run / "midtrain", "midtrain", 10, quiet=True) as recorder:
        recorder.log_evaluation(10, "arithmetic", 0.9, n=200, tools="calculator")
    assert make_evals_table(run).caption.plain == "tools in answers: calculator"
    rows = [row["name"] for row in eval_rows(load_run_data(run))]
    assert "arithmetic, train wordings, with calculator" in rows and "bits per byte" in rows
    with Recorder(run / "midtrain", "midtrain", 10, quiet=True) as recorder:
        recorder.log_evaluation(10, "arc_easy", 0.3, n=200, tools="none")
    assert "tools in answers of arc easy: none" in make_evals_table(run).caption.plain


@pytest.mark.parametrize("name", ["questions:glossary.jsonl", "questions:rabbits.jsonl", "chat:loss/tokens.jsonl"])
def test_an_exam_of_any_name_is_shown_in_percent(tmp_path, name):
    run = make_run(tmp_path / "run", stages=("sft",), scale=0.05)
    with open(run / "sft" / "evals.jsonl", "a") as file:
        for entry in ({"name": name, "value": 0.25}, {"name": "perplexity_per_word", "value": 0.75}):
            file.write(json.dumps({"step": 20, **entry, "low": 0.1, "high": 0.9, "n": 60}) + "\n")
    cells = {row["name"]: row["cells"][0] for row in eval_rows(load_run_data(run))}
    assert cells[name]["value"] == "25.0 %" and cells[name]["bar"]
    assert cells["perplexity per word"]["value"] == "0.750" and not cells["perplexity per word"]["bar"]


def test_the_terminal_of_80_columns_shows_whole_names(tmp_path):
    """Four stages with intervals leave eleven columns for a name: the longest word of the exams and its comma."""
    run = make_run(tmp_path / "run", scale=0.02)
    for stage in ("pretrain", "midtrain", "sft", "rl"):
        with Recorder(run / stage, stage, 10, quiet=True) as recorder:
            facts = {"clusters": 64, "cluster_unit": "wordings", "tools": "calculator"}
            recorder.log_evaluation(400, "arithmetic_test", 0.5, 0.4, 0.6, 200, 0.1, **facts)
    console = Console(width=80, file=io.StringIO())
    console.print(make_evals_table(run))
    assert "arithmetic," in console.file.getvalue() and "…" not in console.file.getvalue()
