"""Predicted and measured: both numbers of a pair are of the same thing, or the pair says what differs."""

import json

import pytest

from fledgling.report.prediction_pairs import (
    ASSUMED_LENGTHS,
    CHANGED,
    Pair,
    format_quantity,
    make_predictions_table,
    pair_predictions,
)
from fledgling.report.run_data import load_run_data
from fledgling.report.summary import summarize_run
from tests.report.synthetic_run import PEAK_FLOPS, make_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "made", scale=0.05)


@pytest.fixture
def pairs(run_dir):
    return {pair.key: pair for pair in pair_predictions(load_run_data(run_dir))}


def test_hours_and_dollars_are_those_of_the_steps_alone(run_dir, pairs):
    """A plan counts training steps; the whole time of a stage includes evaluations, checkpoints and preparation."""
    plan = json.loads((run_dir / "plan.json").read_text())
    steps = summarize_run(run_dir)["stages"]["pretrain"]["steps"]
    hours = steps * 4096 / 20_000 / 3600
    assert pairs["pretrain.hours"].measured == pytest.approx(hours)
    assert pairs["pretrain.usd"].measured == pytest.approx(hours * plan["cost"]["usd"] / plan["time"]["hours"])
    assert pairs["pretrain.hours"].label == "pretrain time of the steps without compiling"


def test_the_first_step_counts_like_the_others_as_it_compiles(run_dir, pairs):
    data = load_run_data(run_dir)
    for line in data.stages[0].metrics:
        line["training_seconds"] += 30.0
    slower = {pair.key: pair for pair in pair_predictions(data)}
    assert slower["pretrain.hours"].measured == pytest.approx(pairs["pretrain.hours"].measured, rel=0.02)


def test_both_shares_are_of_one_peak(run_dir, pairs):
    """Measured utilization is recorded as a share of another peak when the plan's is the table's."""
    plan = json.loads((run_dir / "plan.json").read_text())
    pair = pairs["pretrain.mfu"]
    speed = summarize_run(run_dir)["stages"]["pretrain"]["tokens_per_second"]
    assert pair.measured == pytest.approx(plan["flops"]["per_token"] * speed / PEAK_FLOPS)
    plan["hardware"]["peak_flops"] *= 4
    data = load_run_data(run_dir)
    moved = {p.key: p for p in pair_predictions(type(data)(**{**vars(data), "plan": plan}))}
    assert moved["pretrain.mfu"].measured == pytest.approx(pair.measured / 4)
    assert moved["pretrain.mfu"].label == "pretrain MFU of the plan's peak"


def test_a_prediction_for_assumed_lengths_has_no_error(run_dir, pairs):
    """The plan of RL assumes the lengths of prompts and answers; an error of +80 % would say that the plan is bad."""
    for quantity in ("tokens", "hours", "usd", "tokens_per_second"):
        assert pairs[f"rl.{quantity}"].differs == ASSUMED_LENGTHS and pairs[f"rl.{quantity}"].error is None
        assert pairs[f"sft.{quantity}"].differs == "" and pairs[f"sft.{quantity}"].error is not None
    found = summarize_run(run_dir)
    assert found["differs"]["rl.tokens"] == ASSUMED_LENGTHS and "rl.tokens" not in found["error"]
    cells = [list(column.cells) for column in make_predictions_table(run_dir).columns]
    assert cells[3][cells[0].index("rl tokens")] == ASSUMED_LENGTHS


def test_every_quantity_of_the_terminal_table_has_its_unit(run_dir):
    cells = [list(column.cells) for column in make_predictions_table(run_dir).columns]
    units = {
        "time of the steps without compiling": ("s", "h"),
        "MFU of the plan's peak": ("%",),
        "peak memory": ("kB", "MB", "GB"),
    }
    for label, *values in zip(*cells[:3], strict=True):
        quantity = str(label).partition(" ")[2]
        assert all(str(value).split()[-1] in units.get(quantity, str(value)) for value in values), (label, values)
        assert quantity != "cost of the steps" or all(str(value).startswith("$") for value in values)
    assert format_quantity("pretrain.hours", 48) == "48 h" and format_quantity("pretrain.hours", 1e-4) == "0.36 s"
    assert format_quantity("rl.mfu", 0.05548) == "5.548 %" and format_quantity("parameters", 124_000) == "124,000"


def test_nothing_computed_by_the_plan_itself_is_called_measured(pairs):
    """FLOPs "measured" as the plan's FLOPs a token times tokens would agree whatever the machine did."""
    assert not [key for key in pairs if key.endswith("flops")]


def test_a_prediction_for_other_settings_has_no_error(tmp_path):
    run = make_run(tmp_path / "changed", stages=("pretrain",), scale=0.02)
    (run / "pretrain" / "plan-2.json").write_text((run / "plan.json").read_text())
    pairs = [pair for pair in pair_predictions(load_run_data(run)) if pair.key.startswith("pretrain.")]
    assert pairs and all(pair.differs == CHANGED and pair.error is None for pair in pairs)


def test_runs_without_the_time_of_their_steps_have_no_pair_of_hours(tmp_path):
    run = make_run(tmp_path / "old", stages=("pretrain",), scale=0.02)
    file = run / "pretrain" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in x.items() if k != "training_seconds"}) + "\n" for x in lines))
    keys = [pair.key for pair in pair_predictions(load_run_data(run))]
    assert "pretrain.hours" not in keys and "pretrain.usd" not in keys and "pretrain.steps" in keys
    assert Pair("pretrain.steps", 1.0, 0.0).error is None
