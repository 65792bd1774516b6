"""A run's recipe.toml that was cut is rejected by every command, and one that a person has edited is taken."""

import json
import os
from dataclasses import replace

import pytest

from fledgling.config import Recipe, UserError, dump_toml, load_recipe
from fledgling.report.unreadable import find_unreadable
from fledgling.verify.figures import check_recorded_settings

TEXT = dump_toml(replace(Recipe(), seed=7))


@pytest.fixture(params=["checkpoint", "plan"])
def run(request, tmp_path):
    """A run whose recipe is recorded in a checkpoint, or only in its plan."""
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "recipe.toml").write_text(TEXT)
    (tmp_path / "plan.json").write_text(json.dumps({"settings": TEXT}))
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/metrics.jsonl").write_text("{}\n")
    if request.param == "checkpoint":
        path = tmp_path / "sft/checkpoints/step-00000001"
        path.mkdir(parents=True)
        (path / "state.json").write_text(json.dumps({"recipe": TEXT}))
        (tmp_path / "plan.json").write_text("torn")
    return tmp_path


def test_a_recipe_that_was_cut_at_any_line_end_is_rejected(run):
    lines = TEXT.splitlines(keepends=True)
    place = "state.json" if (run / "sft/checkpoints").exists() else "plan.json"
    for count in (*range(1, len(lines), 9), *range(len(lines) - 12, len(lines))):
        (run / "recipe.toml").write_text("".join(lines[:count]))
        lost = r"run\.ranks, its last line" if "[run]\n" in lines[:count] else r"\[run\]"
        name = run / "recipe.toml" if count % 2 else run
        with pytest.raises(UserError, match=rf"^\S*recipe\.toml lacks .*{lost}, so it was cut .*{place}; [^\n]*$"):
            load_recipe(name)
    (run / "recipe.toml").write_text(TEXT)
    assert load_recipe(run).seed == 7


def test_what_a_person_edits_is_taken(run):
    edited = TEXT.replace("seed = 7", "seed = 8").replace('state = "float32"\n', "").replace("ranks = 1", "ranks = 4")
    (run / "recipe.toml").write_text(edited + "\n# by hand\n")
    recipe = load_recipe(run)
    assert (recipe.seed, recipe.optimizer.state, recipe.run.ranks) == (8, "float32", 4)
    (run / "recipe.toml").write_text(TEXT[: TEXT.index("\n\n[dpo]")] + TEXT[TEXT.index("\n\n[rl]") :])
    with pytest.raises(UserError, match=r"lacks \[dpo\], so it was cut or lost lines: put it back from"):
        load_recipe(run)


def test_the_place_is_that_of_the_stage_that_was_trained_last_by_the_record_and_fits_what_is_left(tmp_path):
    """In a copy the files have other times, and the settings of an earlier stage would be put back."""
    recipes = {"sft": replace(Recipe(), seed=7), "rl": replace(Recipe(), seed=7, description="later")}
    for number, (stage, recipe) in enumerate(recipes.items()):
        for step in (8, 12):
            path = tmp_path / stage / f"checkpoints/step-{step:08d}/state.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"recipe": dump_toml(recipe)}))
            os.utime(path, (step, 100 - number))
        (tmp_path / stage / "metrics.jsonl").write_text(json.dumps({"step": 12, "time": 50.0 + number}) + "\n")
    for text, place in ((TEXT, "sft"), (dump_toml(recipes["rl"]), "rl"), ("seed = 7\n", "rl")):
        (tmp_path / "recipe.toml").write_text(text.partition("\n[rl]")[0])
        with pytest.raises(UserError, match=rf"{place}/checkpoints/step-00000012/state\.json"):
            load_recipe(tmp_path)


def test_commands_that_do_not_load_a_recipe_name_what_it_lacks_too(run):
    (run / "recipe.toml").write_text(TEXT[: TEXT.index("\n\n[rl]")])
    (line,) = [line for line in find_unreadable(run, [], 2**20) if line.startswith("recipe")]
    assert line.startswith("recipe.toml: lacks [rl], [run], so it was cut")
    (line,) = check_recorded_settings(run).problems
    assert line.startswith("recipe.toml lacks [rl], [run], so it was cut")


def test_a_run_that_recorded_its_recipe_nowhere_is_taken_as_it_is(tmp_path):
    (tmp_path / "recipe.toml").write_text(TEXT[: TEXT.index("\n\n[rl]")])
    assert load_recipe(tmp_path).seed == 7
