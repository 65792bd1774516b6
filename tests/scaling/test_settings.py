"""Tests that settings are compared by table and key: no sweep continues in the directory of another."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fledgling.config import UserError, dump_toml, load_recipe
from fledgling.scaling.settings import (
    dump_settings,
    find_changed_settings,
    name_mixed_settings,
    pin_settings,
    require_same_cell,
)
from fledgling.scaling.sweep import make_grid

RECIPE = load_recipe("scaling")
STAGES = ("pretrain", "midtrain", "sft", "dpo", "rl")
RACE = 'seconds = 60\npoints = 8\nclock = "wall"\nsources = ["a"]\nheld_out_bytes = 600\n'


def values_of_other_stages():
    """Returns (stage, key, value) wherever a stage could have the value that another stage has in the same field."""
    for stage in STAGES:
        own = getattr(RECIPE, stage)
        for other in STAGES:
            for entry in fields(getattr(RECIPE, other)):
                value = getattr(getattr(RECIPE, other), entry.name)
                if hasattr(own, entry.name) and value is not None and value != getattr(own, entry.name):
                    yield stage, entry.name, value


def test_a_setting_that_another_table_has_is_a_difference(tmp_path):
    """As a set of lines without their tables, each of these recipes could be taken for the first one."""
    text, path = dump_toml(RECIPE), tmp_path / "sweep.toml"
    path.write_text(text)
    pin_settings(path, text, "a sweep")
    changes = set(map(repr, values_of_other_stages()))
    assert len(changes) > 20 and "('pretrain', 'decay_fraction', 1.0)" in changes
    for stage, key, value in values_of_other_stages():
        changed = replace(RECIPE, **{stage: replace(getattr(RECIPE, stage), **{key: value})})
        assert list(find_changed_settings(text, dump_toml(changed))) == [f"{stage}.{key}"]
    changed = replace(RECIPE, pretrain=replace(RECIPE.pretrain, decay_fraction=1.0, train_on="assistant"))
    with pytest.raises(UserError) as caught:
        pin_settings(path, dump_toml(changed), "a sweep")
    assert "pretrain.decay_fraction is 0.4 there, 1.0 now" in str(caught.value) and "\n" not in str(caught.value)


def test_threads_the_place_and_fields_of_a_later_version_are_no_differences():
    text = dump_toml(RECIPE)
    moved = dump_toml(replace(RECIPE, run=replace(RECIPE.run, threads=3, out="elsewhere")))
    older = "\n".join(line for line in text.splitlines() if not line.startswith("recompute = "))
    assert older != text.strip() and find_changed_settings(text, moved) == find_changed_settings(older, text) == {}


@pytest.mark.parametrize(
    ("there", "here", "difference"),
    [
        (RACE, RACE.replace("60\n", "90\n"), "seconds is 60 there, 90 now"),
        (RACE, RACE.replace('"a"', '"a", "b"'), 'sources is ["a"] there, ["a", "b"] now'),
        ("# 1e13 FLOPs a run\n", "# 2e13 FLOPs a run\n", 'its first line is "# 1e13 FLOPs a run" there, "# 2e13'),
        ("[pretrain]\nlater_key = 1\n", "[pretrain]\n", "pretrain.later_key is 1 there, not set now"),
        ("[pretrain\n", "[pretrain]\n", "cannot be read"),
    ],
)
def test_any_other_settings_are_one_line(there, here, difference, tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text(there)
    with pytest.raises(UserError) as caught:
        pin_settings(path, here, "a race")
    assert difference in str(caught.value) and "choose another --out" in str(caught.value)


def test_a_run_of_another_name_or_other_settings_is_not_taken(tmp_path):
    text = dump_settings(RECIPE)
    facts = {"depth": 1, "budget": 6e10, "variant": "tied", "seed": 0, "settings": text}
    cell = tmp_path / "cell.json"
    require_same_cell(tmp_path, facts)
    for there in (facts, {"variant": "tied"}, {}, []):  # without what an earlier version did not write
        cell.write_text(json.dumps(there))
        require_same_cell(tmp_path, facts)
    other = dump_settings(replace(RECIPE, seed=5))
    for change in ({"budget": 9e10}, {"seed": 1}, {"variant": "base"}, {"settings": other}):
        cell.write_text(json.dumps(facts | change))
        with pytest.raises(UserError, match=r"has begun with other settings .* choose another --out"):
            require_same_cell(tmp_path, facts)


def test_a_run_whose_recipe_has_other_settings_than_the_first_is_named(tmp_path):
    cells = make_grid(RECIPE, [1, 2], [1e13, 2e13], tmp_path)
    changed = replace(RECIPE, pretrain=replace(RECIPE.pretrain, decay_fraction=1.0))
    (mixed,) = make_grid(changed, [3], [2e13], tmp_path)
    runs = [Path(cell.recipe.run.out) for cell in (*cells, mixed)]
    for cell, run in zip((*cells, mixed), runs, strict=True):
        run.mkdir()
        (run / "recipe.toml").write_text(dump_toml(cell.recipe))
    (line,) = name_mixed_settings([tmp_path / "no-recipe", *runs])
    assert line.startswith("d3-2e13 has other settings") and "decay_fraction is 0.4 in d1-1e13, 1.0 here" in line
    (runs[-1] / "derived.json").write_text('{"pretrain.decay_fraction": 1.0}')  # a rule has filled it
    assert name_mixed_settings(runs) == []
