"""The run that a budget becomes: its speed, and what is forecast of it."""

import json
from dataclasses import replace

import pytest

from fledgling.cli import main
from fledgling.config import load_recipe
from fledgling.config.load import parse_recipe
from fledgling.plan import core_speed
from fledgling.plan.amount import Budget
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.hardware import find_device
from fledgling.plan.measured_speed import MeasuredSpeed, save_speed
from fledgling.plan.past_runs import SHIPPED, append_past_run, load_past_runs
from fledgling.speedrun.choose import count_unique_tokens, describe_contents, list_measured_exams, plan_budgeted_run
from tests.fast_run import write_recipe


def test_bits_per_byte_time_and_memory_are_forecast_once_and_not_as_the_share_of_an_exam():
    (run, *_) = load_past_runs((SHIPPED,))
    measured = {"seconds": 9.0, "memory": 1e8, "pretrain bits_per_byte": 2.0, "bits_per_byte": 2.1, "counting": 0.3}
    runs = [replace(run, measured=measured)] * 4
    assert list_measured_exams(runs, run.data) == ["counting"]
    assert list_measured_exams(runs, "other data") == []


def test_a_stage_is_described_by_its_exams_and_its_share_of_generated_conversations(tmp_path):
    recipe = load_recipe("quickstart", ["sft.mixture={embedded = 0.25, smoltalk = 0.5, arithmetic = 0.25}"])
    assert describe_contents(recipe)["sft"].generated == 0.25, "neither documents nor a set that is read"
    contents = [describe_contents(load_recipe("quickstart"))[name] for name in ("pretrain", "sft", "rl")]
    assert [content.exams for content in contents] == [5, 5, 5]
    assert [round(content.generated, 2) for content in contents] == [0.18, 0.87, 0.0]


def test_plan_measures_the_core_where_the_speed_was_measured_here_and_only_there(tmp_path, monkeypatch):
    stages = ['stages=["pretrain", "sft"]', "pretrain.steps=60", "sft.steps=60"]
    recipe = load_recipe(write_recipe(tmp_path), stages)
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(core_speed, "measure_core_share", lambda: 2.5)
    budget = Budget(600.0, "--minutes 10")
    assert plan_budgeted_run(recipe, budget, find_device("cpu"), 1, None, False).speed.core_share is None
    per_token = training_flops_per_token(recipe.resolve_model())
    save_speed(MeasuredSpeed("cpu", 0.05, 1e11, 9_000.0, "small", "2026-01-02", per_token, 64, compiled=False))
    found = plan_budgeted_run(recipe, budget, find_device("cpu"), 1, None, False)
    assert found.speed.core_share == 2.5 and found.speed.source == "of `fledgling bench train`"
    assert plan_budgeted_run(recipe, budget, find_device("cpu"), 1, 0.1, False).speed.core_share is None


def test_the_passes_over_a_folder_of_text_are_planned_from_its_size(tmp_path, monkeypatch):
    recipe = load_recipe(write_recipe(tmp_path), ["pretrain.steps=60", 'stages=["pretrain"]'])
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "cache"))
    budget = Budget(600.0, "--minutes 10")
    planned = plan_budgeted_run(recipe, budget, find_device("cpu"), 1, None, True).planned
    tokens = sum(file.stat().st_size for file in (tmp_path / "text").iterdir()) / 2.5  # 330 entries: 2.5 bytes a token
    assert planned["passes"] == pytest.approx(planned["tokens"] / tokens, rel=0.05)
    (tmp_path / "text").rename(tmp_path / "gone")
    planned = plan_budgeted_run(recipe, budget, find_device("cpu"), 1, None, True).planned
    assert planned["passes"] is None, "0 passes are impossible, and the size is not known"


@pytest.mark.parametrize("mixture", ['{"arithmetic"=1.0}', '{"embedded"=1.0, "arithmetic"=2.0}'])
def test_tasks_as_the_largest_source_have_no_known_size(mixture, tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), [f"pretrain.mixture={mixture}"])
    assert count_unique_tokens(recipe) is None


def test_losses_of_another_text_of_the_same_name_are_not_this_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        write_recipe(tmp_path), ["pretrain.steps=60", 'stages=["pretrain"]', 'pretrain.mixture={"text"=1.0}']
    )
    (shipped, *_) = load_past_runs((SHIPPED,))
    budget, laws = Budget(600.0, "--minutes 10"), []
    for change in ("", "one more line\n"):
        planned = plan_budgeted_run(recipe, budget, find_device("cpu"), 1, None, True)
        if not change:  # six runs of this text
            for number in range(6):
                measured = {"pretrain bits_per_byte": 2.0 - 0.1 * number}
                past = {"data": planned.planned["data"], "tokens": 1_000 * 2**number, "passes": 0.5, "run": str(number)}
                append_past_run(replace(shipped, **past, measured=measured, start=str(number)))
            planned = plan_budgeted_run(recipe, budget, find_device("cpu"), 1, None, True)
            (tmp_path / "text" / "00.txt").write_text("another text")
        laws.append(planned.law)
    assert "6 past runs" in laws[0] and "6 past runs" not in laws[1], laws


@pytest.mark.parametrize(("gpus", "steps"), [(8, "none"), (64, "none"), (8, "10"), (8, "1000000")])
def test_text_that_is_tokenized_is_counted_for_the_steps_that_are_chosen(gpus, steps):
    """The recipe's own steps read another amount of text: they left half of the budget, or took half more."""
    recipe = load_recipe("d20-8xh100", [f"pretrain.steps={steps}"])
    run = plan_budgeted_run(recipe, Budget(3600.0, "--minutes 60"), find_device("h100"), gpus, None)
    assert 0.95 * 3600 < run.planned["seconds"] <= 0.97 * 3600


def test_a_depth_with_a_budget_is_that_of_quickstart_as_in_speedrun(tmp_path, monkeypatch, capsys):
    """`plan --minutes 30 --depth 3` planned 65,536 entries for an H100."""
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path))
    assert main(["plan", "--minutes", "30", "--depth", "3", "--gpu", "cpu", "--json"]) == 0
    recipe = parse_recipe(json.loads(capsys.readouterr().out)["recipe"])
    assert (recipe.model.depth, recipe.tokenizer.vocab_size) == (3, load_recipe("quickstart").tokenizer.vocab_size)
