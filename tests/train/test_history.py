"""What a stage ran with: one entry while nothing changes, another one from the step on at which something does."""

from dataclasses import replace

import torch

from fledgling.config import load_recipe
from fledgling.runtime.device import DeviceSetup
from fledgling.train import history

RECIPE = load_recipe("quickstart")
BFLOAT16 = DeviceSetup(torch.bfloat16, False, 0.0)
MIXED = DeviceSetup(torch.float32, False, 0.0, answer_dtype=torch.bfloat16)


def extend_history(state, recipe, files=None, setup=BFLOAT16):
    return history.extend_history(state, recipe, setup, files)


def test_an_entry_is_added_where_the_recipe_or_the_machine_differs(monkeypatch):
    first = extend_history(None, RECIPE)
    assert [entry["after_step"] for entry in first] == [0]
    again = extend_history({"step": 5, "history": first}, replace(RECIPE, run=replace(RECIPE.run, out="moved")))
    assert again == first
    changed = extend_history({"step": 5, "history": first}, replace(RECIPE, name="other"))
    assert [entry["after_step"] for entry in changed] == [0, 5]
    environment = history.collect_environment()
    monkeypatch.setattr(history, "collect_environment", lambda: environment | {"cpu": "another"})
    moved = extend_history({"step": 7, "history": changed}, replace(RECIPE, name="other"))
    assert [entry["after_step"] for entry in moved] == [0, 5, 7] and moved[2]["machine"]["cpu"] == "another"


def test_a_start_from_an_earlier_step_replaces_what_came_after_it():
    entries = extend_history({"step": 9, "history": extend_history(None, RECIPE)}, replace(RECIPE, seed=9))
    back = extend_history({"step": 4, "history": entries}, replace(RECIPE, seed=8))
    assert [entry["after_step"] for entry in back] == [0, 4]


def test_a_setting_that_was_changed_back_before_any_step_leaves_no_entry():
    first = extend_history(None, RECIPE)
    changed = extend_history({"step": 5, "history": first}, replace(RECIPE, name="other"))
    assert extend_history({"step": 5, "history": changed}, RECIPE) == first


def test_a_checkpoint_without_a_history_has_its_own_recipe():
    entries = extend_history({"step": 3, "recipe": "name = 'old'"}, RECIPE)
    assert [(entry["after_step"], entry["recipe"] == "name = 'old'") for entry in entries] == [(0, True), (3, False)]


def test_an_entry_is_added_where_a_file_that_is_read_as_it_is_was_edited():
    first = extend_history(None, RECIPE, {"dpo.pairs": "a"})
    assert extend_history({"step": 2, "history": first}, RECIPE, {"dpo.pairs": "a"}) == first
    edited = extend_history({"step": 2, "history": first}, RECIPE, {"dpo.pairs": "b"})
    assert [(entry["after_step"], entry["files"]) for entry in edited] == [
        (0, {"dpo.pairs": "a"}),
        (2, {"dpo.pairs": "b"}),
    ]
    older = [{name: value for name, value in first[0].items() if name != "files"}]
    assert extend_history({"step": 2, "history": older}, RECIPE, {"dpo.pairs": "b"}) == older


def test_steps_in_another_dtype_have_an_entry_and_a_line():
    first = extend_history(None, RECIPE)
    mixed = extend_history({"step": 5, "history": first}, RECIPE, setup=MIXED)
    assert [(entry["after_step"], entry["dtypes"]) for entry in mixed] == [
        (0, ["bfloat16", "bfloat16"]),
        (5, ["float32", "bfloat16"]),
    ]
    assert history.describe_other_dtype(mixed, 5) == (
        "resumed in float32, and trained in bfloat16 so far: --set run.dtype=bfloat16 keeps that"
    )
    assert not history.describe_other_dtype(mixed, 6) and not history.describe_other_dtype(first, 0)


def test_an_earlier_versions_entry_was_trained_in_the_engines_dtype():
    older = [{name: value for name, value in extend_history(None, RECIPE)[0].items() if name != "dtypes"}]
    assert extend_history({"step": 2, "history": older}, RECIPE) == older
    mixed = extend_history({"step": 2, "history": older}, RECIPE, setup=MIXED)
    assert len(mixed) == 2 and history.describe_other_dtype(mixed, 2).startswith("resumed in float32, and trained in b")


def test_an_entry_says_whether_steps_are_compiled_and_is_added_where_that_differs():
    first = extend_history(None, RECIPE)
    compiled = extend_history({"step": 2, "history": first}, RECIPE, setup=replace(BFLOAT16, compiled=True))
    assert [(entry["after_step"], entry["compiled"]) for entry in compiled] == [(0, False), (2, True)]
    sampled = history.extend_history(None, RECIPE, BFLOAT16, samples_natively=True)
    assert "native" not in first[0] and sampled[0]["native"]
    older = [{name: value for name, value in sampled[0].items() if name not in ("compiled", "native")}]
    assert history.extend_history({"step": 2, "history": older}, RECIPE, BFLOAT16, samples_natively=True) == older
