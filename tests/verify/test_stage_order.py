"""What explains that the weights that a stage began from are gone, and which stages recipe.toml belongs to."""

import json

import pytest
import torch

from fledgling.config import load_recipe
from fledgling.record import checkpoint
from fledgling.record.parent import describe_parent, find_parent
from fledgling.train.stage_settings import require_valid_settings
from fledgling.verify import stage_order, steps
from tests.fast_run import write_recipe

TIMES = {"pretrain": 10.0, "sft": 20.0, "rl": 30.0}


def save_run(run, times=TIMES):
    """Writes a run of one checkpoint and one step a stage; returns the checkpoints."""
    saved = {}
    for value, (stage, time) in enumerate(times.items()):
        (run / stage).mkdir(parents=True)
        (run / stage / "metrics.jsonl").write_text(json.dumps({"step": 1, "time": time}) + "\n")
        state = {"stage": stage, "step": 1, "parent": describe_parent(list(saved.values())[-1] if saved else None)}
        tensors = {"model": {"w": torch.full((1,), float(value))}}
        saved[stage] = checkpoint.save_checkpoint(run / stage / "checkpoints", 1, tensors, state)
    return saved


def replace_pretrain(run, folder="pretrain/checkpoints", step=1):
    state = {"stage": "pretrain", "step": step, "parent": None}
    checkpoint.save_checkpoint(run / folder, step, {"model": {"w": torch.full((1,), 9.0)}}, state)


def explain(run):
    parent = stage_order.find_stage_parent(run, "sft")
    assert parent.path is None
    return stage_order.explain_lost_parent(run, "sft", parent)


def test_weights_that_are_there_are_found_and_those_of_another_stage_are_not_explained_by_the_time(tmp_path):
    saved = save_run(tmp_path)
    assert stage_order.find_stage_parent(tmp_path, "sft").path == saved["pretrain"]
    assert stage_order.find_stage_parent(tmp_path, "pretrain") is None
    replace_pretrain(tmp_path)
    assert explain(tmp_path) == ""


def test_a_stage_with_newer_steps_was_trained_again(tmp_path):
    save_run(tmp_path)
    replace_pretrain(tmp_path)
    (tmp_path / "pretrain/metrics.jsonl").write_text(json.dumps({"step": 1, "time": 25.0}) + "\n")
    assert explain(tmp_path) == "sft began from weights that pretrain had before it was trained again"


def test_checkpoints_that_were_deleted_are_named(tmp_path):
    saved = save_run(tmp_path)
    replace_pretrain(tmp_path, step=2)
    saved["pretrain"].rename(tmp_path / "elsewhere")
    assert explain(tmp_path) == "step 1 of pretrain, from which sft began, was deleted"
    (tmp_path / "pretrain/checkpoints").rename(tmp_path / "all")
    assert explain(tmp_path) == "the checkpoints of pretrain were deleted"


@pytest.mark.parametrize(
    ("times", "outdated", "last"),
    [
        (TIMES, {}, "rl"),
        (TIMES | {"pretrain": 40.0}, {"sft": "pretrain", "rl": "pretrain"}, "pretrain"),
        (TIMES | {"pretrain": 40.0, "sft": 50.0}, {"rl": "sft"}, "sft"),
        (dict.fromkeys(TIMES, None), {}, "rl"),
        (TIMES | {"pretrain": "x"}, {}, "rl"),
    ],
)
def test_stages_that_an_earlier_one_was_trained_after_are_outdated(tmp_path, times, outdated, last):
    save_run(tmp_path, times)
    assert stage_order.list_outdated(tmp_path) == outdated
    assert stage_order.find_last_trained(tmp_path, list(times)) == last


@pytest.mark.parametrize("named", [None, 3, {}, {"weights": 3}, {"stage": [], "weights": "a", "step": "x"}])
def test_a_state_that_names_nonsense_as_its_parent_finds_nothing(tmp_path, named):
    found = find_parent(tmp_path, {"parent": named})
    assert found is None or found.path is None


@pytest.mark.parametrize("place", ["an earlier checkpoint", "kept for an adapter"])
def test_a_scratch_run_has_the_checkpoint_that_its_stage_began_from_as_the_newest_of_that_stage(tmp_path, place):
    saved = save_run(tmp_path)["pretrain"]
    before = (saved / "model.safetensors").read_bytes()
    if place == "kept for an adapter":
        (tmp_path / "bases/pretrain").mkdir(parents=True)
        saved.rename(tmp_path / "bases/pretrain/step-00000001-0123456789ab")
    replace_pretrain(tmp_path, step=2)
    with steps.scratch_run(tmp_path, steps.Start("sft", 0, None, 1)) as scratch:
        (began_from,) = (scratch / "pretrain/checkpoints").iterdir()
        assert began_from.name == saved.name and (began_from / "model.safetensors").read_bytes() == before


def test_a_stage_that_is_resumed_without_its_parent_is_a_whole_recipe(tmp_path):
    taught = ["distill.teacher=teacher", 'distill.stages=["pretrain"]', "adapter.method=lora", 'adapter.stages=["dpo"]']
    taught += ["run.init_from=./given"]
    recipe = stage_order.leave_out_parents(load_recipe(write_recipe(tmp_path), taught), "sft")
    require_valid_settings(recipe, "sft")
    assert (recipe.stages, recipe.distill.teacher, recipe.adapter.method) == (("sft",), None, "none")
    assert recipe.run.init_from is None, "the given weights would count as what it began from"
