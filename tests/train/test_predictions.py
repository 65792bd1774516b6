"""A prediction is written once, before the step that it predicts; changed settings stand next to it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fledgling.cli import main
from fledgling.config import UserError, load_recipe
from fledgling.plan.flops import count_idle_head_flops
from fledgling.record import read_jsonl
from fledgling.record.jsonl import JsonlWriter
from fledgling.report.prediction_pairs import pair_predictions
from fledgling.report.run_data import load_run_data
from fledgling.train import predictions
from fledgling.train.predictions import find_teacher_config, write_predictions
from fledgling.train.run import run_stage
from fledgling.train.source_sizes import count_generated_shares
from tests.fast_run import write_recipe


@pytest.fixture
def recipe(tmp_path):
    return load_recipe(write_recipe(tmp_path))


@pytest.fixture
def speed(monkeypatch):
    """Returns a function that changes what the planner predicts, as a benchmark in between does."""
    make_plan, factor = predictions.make_plan, [1.0]

    def make_scaled_plan(*args, **options):
        plan = make_plan(*args, **options)
        return {**plan, "time": {**plan["time"], "tokens_per_second": factor[0]}}

    monkeypatch.setattr(predictions, "make_plan", make_scaled_plan)
    return lambda value: factor.__setitem__(0, value)


def take_step(run_dir: Path, stage: str, step: int = 1) -> None:
    writer = JsonlWriter(run_dir / stage / "metrics.jsonl")
    writer.append({"step": step, "tokens_per_second": 5.0, "loss": 1.0})
    writer.close()


def read_plans(run_dir: Path) -> dict[str, float]:
    files = sorted(run_dir.rglob("plan*.json"))
    plans = {str(file.relative_to(run_dir)): json.loads(file.read_text()) for file in files}
    return {name: plan["time"]["tokens_per_second"] for name, plan in plans.items()}


def test_a_stage_whose_length_its_data_show_trains_without_a_prediction_of_it(recipe, tmp_path):
    """`pretrain.num_epochs` ended in a KeyError when the plan of the run was written."""
    table = replace(recipe.pretrain, steps=None, num_epochs=0.05)
    epochs = replace(recipe, pretrain=table, stages=("pretrain",))
    assert run_stage(epochs, "pretrain", quiet=True)
    plan = json.loads((tmp_path / "run" / "pretrain" / "plan.json").read_text())
    assert plan["unknown_stages"] == ["pretrain"] and plan["horizon"]["steps"] is None
    lines = read_jsonl(tmp_path / "run" / "pretrain" / "metrics.jsonl")
    assert len(lines) > 1 and lines[-1]["tokens"] == len(lines) * plan["horizon"]["batch_tokens"]
    pairs = {pair.key for pair in pair_predictions(load_run_data(tmp_path / "run"))}
    assert "parameters" in pairs and not pairs & {"pretrain.steps", "pretrain.tokens", "pretrain.hours"}


def test_a_benchmark_between_stages_and_resumes_changes_no_prediction(recipe, tmp_path, speed):
    run_dir = tmp_path / "run"
    write_predictions(recipe, "pretrain", run_dir, 0)
    take_step(run_dir, "pretrain")
    speed(2.0)
    write_predictions(recipe, "pretrain", run_dir, 1)  # it resumes
    plan = run_dir / "pretrain" / "plan.json"
    plan.write_text(plan.read_text().replace("mtp_targets", "further_targets"))  # as an older version wrote it
    filled = replace(recipe, pretrain=replace(recipe.pretrain, learning_rate=1.0))
    write_predictions(filled, "pretrain", run_dir, 1)  # it resumes, with what a rule has filled
    assert read_plans(run_dir) == {"plan.json": 1.0, "pretrain/plan.json": 1.0}
    write_predictions(recipe, "sft", run_dir, 0)
    take_step(run_dir, "sft")
    speed(3.0)
    write_predictions(recipe, "sft", run_dir, 1)
    before = {"plan.json": 1.0, "pretrain/plan.json": 1.0, "sft/plan.json": 2.0}
    assert read_plans(run_dir) == before
    moved = load_recipe(tmp_path / "fast.toml", ["run.out=elsewhere"])  # where a run is changes nothing
    write_predictions(moved, "sft", run_dir, 1)
    assert read_plans(run_dir) == before


def test_changed_settings_have_a_prediction_next_to_the_old_one(recipe, tmp_path, speed):
    run_dir = tmp_path / "run"
    for count, overrides in enumerate(([], ["pretrain.steps=3"], ["pretrain.steps=3"], ["pretrain.steps=4"])):
        speed(float(count))
        write_predictions(load_recipe(tmp_path / "fast.toml", overrides), "pretrain", run_dir, count)
        take_step(run_dir, "pretrain", count + 1)
    names = {"plan.json": 0.0, "pretrain/plan.json": 0.0, "pretrain/plan-2.json": 1.0, "pretrain/plan-3.json": 3.0}
    assert read_plans(run_dir) == names
    assert json.loads((run_dir / "pretrain" / "plan-3.json").read_text())["before_step"] == 4


def test_fields_that_an_older_version_did_not_have_are_no_changed_settings(recipe, tmp_path, speed):
    run_dir = tmp_path / "run"
    write_predictions(recipe, "pretrain", run_dir, 0)
    take_step(run_dir, "pretrain")
    path = run_dir / "pretrain" / "plan.json"
    plan = json.loads(path.read_text())
    assert "recompute = " in plan["settings"]
    lines = [line for line in plan["settings"].splitlines() if not line.startswith("recompute = ")]
    path.write_text(json.dumps({**plan, "settings": "\n".join(lines)}))
    speed(2.0)
    write_predictions(recipe, "pretrain", run_dir, 1)
    assert read_plans(run_dir) == {"plan.json": 1.0, "pretrain/plan.json": 1.0}


def test_a_start_that_took_no_step_predicted_nothing(recipe, tmp_path, speed):
    run_dir = tmp_path / "run"
    write_predictions(recipe, "pretrain", run_dir, 0)  # and then its data were missing
    speed(2.0)
    write_predictions(load_recipe(tmp_path / "fast.toml", ["model.depth=2"]), "pretrain", run_dir, 0)
    assert read_plans(run_dir) == {"plan.json": 2.0, "pretrain/plan.json": 2.0}


def test_a_report_compares_a_stage_with_its_own_prediction(recipe, tmp_path, speed):
    run_dir = tmp_path / "run"
    for stage, factor in (("pretrain", 10.0), ("sft", 20.0)):
        speed(factor)
        write_predictions(recipe, stage, run_dir, 0)
        take_step(run_dir, stage)
    pairs = {pair.key: pair for pair in pair_predictions(load_run_data(run_dir))}
    assert pairs["pretrain.tokens_per_second"].predicted == 10.0
    plans = {stage.name: stage.plan["time"]["tokens_per_second"] for stage in load_run_data(run_dir).stages}
    assert plans == {"pretrain": 10.0, "sft": 20.0}


def test_a_teacher_that_is_gone_is_missed_by_the_stages_that_learn_from_it_alone(recipe, tmp_path, speed):
    gone = load_recipe(str(tmp_path / "fast.toml"), [f"distill.teacher={tmp_path}/gone", 'distill.stages=["sft"]'])
    run = Path(recipe.run.out)
    for stage in ("pretrain", "rl"):
        (run / stage).mkdir(parents=True, exist_ok=True)
        write_predictions(gone, stage, run, 0)
        assert "sft" not in json.loads((run / stage / "plan.json").read_text())["stages"]
    with pytest.raises(UserError, match="gone does not exist"):
        write_predictions(gone, "sft", run, 0)


def test_a_teacher_that_is_gone_is_planned_as_the_run_has_recorded_it(recipe, tmp_path, monkeypatch):
    taught = load_recipe(str(tmp_path / "fast.toml"), [f"distill.teacher={tmp_path}/gone", 'distill.stages=["sft"]'])
    run, config = tmp_path / "run", recipe.resolve_model()
    with monkeypatch.context() as patch:
        patch.setattr(predictions, "read_teacher_config", lambda recipe: config)
        write_predictions(taught, "sft", run, 0)
    (run / "environment.json").touch()
    found, line = find_teacher_config(taught, run)
    assert found == config and line.endswith(
        "planned with its configuration, which sft/plan.json of the run has recorded"
    )
    other = load_recipe(str(tmp_path / "fast.toml"), [f"distill.teacher={tmp_path}/other"])
    found, line = find_teacher_config(other, run)
    assert found is None and line.endswith("its weights, memory and time are not counted")
    with pytest.raises(UserError, match="gone does not exist"):
        find_teacher_config(taught, tmp_path / "no run")


def test_a_run_predicts_the_answers_that_plan_counts(recipe, tmp_path, capsys):
    """The head computes targets alone: of generated conversations `plan` and training count the same share."""
    run_dir = tmp_path / "run"
    write_predictions(recipe, "pretrain", run_dir, 0)
    stages = json.loads((run_dir / "plan.json").read_text())["stages"]
    assert main(["plan", str(tmp_path / "fast.toml"), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["stages"]
    share = count_generated_shares(recipe)["sft"]
    whole, idle = stages["pretrain"]["flops_per_token"], count_idle_head_flops(recipe.resolve_model(), share)
    assert share > 0.5 and stages["sft"]["flops_per_token"] == planned["sft"]["flops_per_token"] == whole - idle
