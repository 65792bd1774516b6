"""The sums and the settings, recomputed from the record."""

import json

import pytest

from fledgling.config import Recipe, dump_toml
from fledgling.verify.figures import check_recorded_settings, check_sums
from fledgling.verify.files import list_stages


def test_an_honest_run_has_the_figures_of_its_record(run):
    for check in (check_sums(run), check_recorded_settings(run)):
        assert check.verdict == "holds" and check.checked == check.total > 10, check


@pytest.mark.parametrize("key", ["seconds", "training_seconds"])
def test_seconds_that_are_no_number_are_named(copy, key):
    path = copy / "sft/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2][key] = "x"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert check_sums(copy).problems == ["sft/metrics.jsonl line 3: seconds or training_seconds is no number"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('dtype = "float32"', 'dtype = "bfloat16"', "recipe.toml: run.dtype is bfloat16"),
        ("[optimizer]", "[optimizer]\nmatrix_lr = 0.5", "recipe.toml: optimizer.matrix_lr is 0.5"),
        ("[run]", '[run]\ninit_from = "runs/better"', "recipe.toml: run.init_from is runs/better"),
    ],
)
def test_a_setting_that_decides_what_is_learned_is_compared(copy, old, new, expected):
    path = copy / "recipe.toml"
    key = new.splitlines()[-1].split(" = ")[0]
    text = (
        path.read_text().replace(old, new, 1)
        if "\n" not in new
        else "".join(
            line
            for line in path.read_text().replace(old, new, 1).splitlines(keepends=True)
            if not line.startswith(f"{key} ") or line.strip() == new.splitlines()[-1]
        )
    )
    path.write_text(text)
    assert any(expected in problem for problem in check_recorded_settings(copy).problems), check_recorded_settings(
        copy
    ).problems


def test_a_recipe_of_another_shape_is_compared_too(copy):
    (copy / "recipe.toml").write_text("model = 3\nrun = 1\n")
    (problem,) = check_recorded_settings(copy).problems
    assert problem.startswith("recipe.toml lacks [tokenizer], [model]")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("step", 9, "step 9, expected 4"), ("tokens", 1, "tokens 1 after"), ("training_seconds", 99.0, "the sum is")],
)
def test_a_line_that_does_not_fit_the_sums_is_named(copy, key, value, expected):
    path = copy / "pretrain/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3][key] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    problem = check_sums(copy).problems[0]
    assert problem.startswith("pretrain/metrics.jsonl line 4:") and expected in problem


def test_done_has_the_last_sums(copy):
    done = copy / "sft/done.json"
    done.write_text(json.dumps(json.loads(done.read_text()) | {"tokens": 5}))
    assert check_sums(copy).problems[0].startswith("sft/done.json: tokens is 5, the record says")


def test_a_setting_that_was_changed_is_named(copy):
    recipe = copy / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("seed = 1\n", "seed = 7\n"))
    assert {problem.split(",")[0] for problem in check_recorded_settings(copy).problems} == {"recipe.toml: seed is 7"}


@pytest.mark.parametrize("text", ["", "[", "# nothing"])
def test_a_recipe_without_settings_is_one_problem(copy, text):
    (copy / "recipe.toml").write_text(text)
    (problem,) = check_recorded_settings(copy).problems
    assert problem.startswith("recipe.toml cannot be read or has no settings")


def test_many_other_settings_are_counted(copy):
    (copy / "recipe.toml").write_text(dump_toml(Recipe()))
    problems = check_recorded_settings(copy).problems
    counted = [problem for problem in problems if " more settings differ from " in problem]
    assert counted and len(problems) <= 6 * len(list_stages(copy))
