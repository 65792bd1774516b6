"""What a stage ran with: one entry while nothing changes, another one from the step on at which something does."""

from dataclasses import replace

from fledgling.config import load_recipe
from fledgling.train import history

RECIPE = load_recipe("quickstart")


def test_an_entry_is_added_where_the_recipe_or_the_machine_differs(monkeypatch):
    first = history.extend_history(None, RECIPE)
    assert [entry["after_step"] for entry in first] == [0]
    again = history.extend_history({"step": 5, "history": first}, replace(RECIPE, run=replace(RECIPE.run, out="moved")))
    assert again == first
    changed = history.extend_history({"step": 5, "history": first}, replace(RECIPE, name="other"))
    assert [entry["after_step"] for entry in changed] == [0, 5]
    environment = history.collect_environment()
    monkeypatch.setattr(history, "collect_environment", lambda: environment | {"cpu": "another"})
    moved = history.extend_history({"step": 7, "history": changed}, replace(RECIPE, name="other"))
    assert [entry["after_step"] for entry in moved] == [0, 5, 7] and moved[2]["machine"]["cpu"] == "another"


def test_a_start_from_an_earlier_step_replaces_what_came_after_it():
    entries = history.extend_history(
        {"step": 9, "history": history.extend_history(None, RECIPE)}, replace(RECIPE, seed=9)
    )
    back = history.extend_history({"step": 4, "history": entries}, replace(RECIPE, seed=8))
    assert [entry["after_step"] for entry in back] == [0, 4]


def test_a_setting_that_was_changed_back_before_any_step_leaves_no_entry():
    first = history.extend_history(None, RECIPE)
    changed = history.extend_history({"step": 5, "history": first}, replace(RECIPE, name="other"))
    assert history.extend_history({"step": 5, "history": changed}, RECIPE) == first


def test_a_checkpoint_without_a_history_has_its_own_recipe():
    entries = history.extend_history({"step": 3, "recipe": "name = 'old'"}, RECIPE)
    assert [(entry["after_step"], entry["recipe"] == "name = 'old'") for entry in entries] == [(0, True), (3, False)]


def test_an_entry_is_added_where_a_file_that_is_read_as_it_is_was_edited():
    first = history.extend_history(None, RECIPE, {"dpo.pairs": "a"})
    assert history.extend_history({"step": 2, "history": first}, RECIPE, {"dpo.pairs": "a"}) == first
    edited = history.extend_history({"step": 2, "history": first}, RECIPE, {"dpo.pairs": "b"})
    assert [(entry["after_step"], entry["files"]) for entry in edited] == [
        (0, {"dpo.pairs": "a"}),
        (2, {"dpo.pairs": "b"}),
    ]
    older = [{name: value for name, value in first[0].items() if name != "files"}]
    assert history.extend_history({"step": 2, "history": older}, RECIPE, {"dpo.pairs": "b"}) == older
