"""Tests the text of plans: every section has its row, and units are those that people read."""

import pytest

from fledgling.config import load_recipe
from fledgling.plan.inference import plan_recipe_inference
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.plan.text import format_hours, format_inference, format_memory, format_plan


def test_a_plan_has_a_row_for_every_section():
    recipe = load_recipe("quickstart", ['stages=["pretrain"]', "pretrain.micro_batch_size=8"])
    text = format_plan(make_plan(recipe, PlanSettings(gpu="h100", gpus=2, price=2.0)))
    assert all(row in text for row in ("parameters", "FLOPs per token", "memory per rank", "rule of thumb", "energy"))
    assert all(value in text for value in ("2 x h100", "ring all-reduce", "$"))
    assert "warning" not in text


def test_every_row_says_of_which_stages_it_is_and_the_highest_memory_is_named():
    recipe = load_recipe("quickstart", ["pretrain.micro_batch_size=1", "sft.micro_batch_size=64", "sft.steps=9"])
    plan = make_plan(recipe, PlanSettings(gpu="h100"))
    rows = [
        line.split("  ")[0] if line[0] != " " else line.strip().split("  ")[0] for line in format_plan(plan).split("\n")
    ]
    assert {"FLOPs of pretraining", "tokens of pretraining", "steps of pretraining", "energy of all stages"} <= {*rows}
    highest = max(plan["stages"], key=lambda stage: plan["stages"][stage]["memory"])
    assert (
        highest != "pretrain" and f"in {highest}" in format_plan(plan).partition("most of all stages")[2].split("\n")[0]
    )


def test_the_section_on_inference_has_a_row_for_every_format():
    text = format_inference(plan_recipe_inference(load_recipe("quickstart"), "h100", 128, 4))
    assert text.startswith("4 conversations of 128 tokens on h100") and len(text.splitlines()) == 6


@pytest.mark.parametrize(("count", "text"), [(512, "0.5 KiB"), (3 * 2**20, "3.0 MiB"), (80 * 2**30, "80.0 GiB")])
def test_memory_is_in_binary_units(count, text):
    assert format_memory(count) == text


@pytest.mark.parametrize(("hours", "text"), [(0.5, "30.0 min"), (3.0, "3.0 h"), (96.0, "4.0 days")])
def test_times_are_in_minutes_hours_or_days(hours, text):
    assert format_hours(hours) == text


def test_a_recipe_without_pretraining_is_planned_without_its_figures():
    text = format_plan(make_plan(load_recipe("quickstart", ['stages=["sft", "rl"]', "sft.steps=10"])))
    assert "of pretraining" not in text and "MiB of " in text and " in rl" in text
