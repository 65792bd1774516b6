"""The report, the sums and the settings, computed again from the record."""

import json
import re
import shutil

import pytest

from fledgling.report import build_report
from fledgling.verify.figures import check_report, check_settings, check_sums


def test_an_honest_run_has_the_figures_of_its_record(run):
    for check in (check_report(run, True), check_sums(run), check_settings(run)):
        assert check.verdict == "holds" and check.checked == check.total > 10, check


def test_a_figure_of_the_report_that_was_changed_is_shown_with_that_of_the_record(copy):
    page = copy / "report.html"
    text = page.read_text()
    number = re.search(r">\s*(\d\.\d{3})\b", text)[1]
    page.write_text(text.replace(number, "0.123", 1))
    problem = check_report(copy, True).problems[0]
    assert "0.123" in problem and f'the record gives "{number}"' in problem


def test_a_report_of_another_record_or_version_is_told(copy):
    evals = copy / "sft/evals.jsonl"
    lines = [json.loads(line) for line in evals.read_text().splitlines()]
    lines[-1]["value"] = 0.987
    evals.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert check_report(copy, True).problems and not check_report(copy, False).checked
    build_report(copy)
    assert not check_report(copy, True).problems
    (copy / "report.html").unlink()
    assert check_report(copy, True).verdict == "not checked"


def test_lines_that_were_added_after_the_report_are_a_note_and_removed_ones_a_problem(copy):
    evals = copy / "sft/evals.jsonl"
    before = evals.read_text()
    line = json.loads(before.splitlines()[-1]) | {"name": "spelling_test", "value": 0.5, "n": 3}
    evals.write_text(before + json.dumps(line) + "\n")
    check = check_report(copy, True)
    assert (check.verdict, check.problems) == ("holds", []) and "older than 1 lines" in check.notes[0]
    evals.write_text("".join(before.splitlines(keepends=True)[:-1]))
    assert any("lines of sft/evals.jsonl, which has" in problem for problem in check_report(copy, True).problems)


def rewrite_stage(run, stage, steps, seconds_later, done=True):
    """Makes the record that a stage has after it was restarted with `steps` steps, or stopped after them."""
    path = run / stage / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [line | {"time": line["time"] + seconds_later, "loss": 0.5, "reward": 0.5} for line in lines]
    changed += [changed[-1] | {"step": step} for step in range(len(lines) + 1, steps + 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed[:steps]))
    if not done:
        (run / stage / "done.json").unlink()


@pytest.mark.parametrize("steps", [3, 6, 9])
def test_a_report_made_before_a_stage_was_trained_anew_is_noted_as_older(copy, steps):
    rewrite_stage(copy, "rl", steps, seconds_later=1000)
    check = check_report(copy, True)
    assert check.verdict == "not checked" and "older than the run: it was resumed since" in check.notes[0]


@pytest.mark.parametrize("steps", [3, 6])
def test_a_record_that_was_changed_without_newer_steps_is_no_older_report(copy, steps):
    rewrite_stage(copy, "rl", steps, seconds_later=0)
    assert check_report(copy, True).verdict == "FAILS"


def test_a_report_with_steps_that_a_stopped_or_deleted_stage_has_lost_is_noted_as_older(copy):
    rewrite_stage(copy, "rl", 4, seconds_later=0, done=False)
    assert "steps of rl that are not here" in check_report(copy, True).notes[0]
    shutil.rmtree(copy / "rl")
    check = check_report(copy, True)
    assert check.verdict == "not checked" and "steps of rl that are not here" in check.notes[0]


def test_a_report_made_before_a_stage_has_ended_is_noted_as_older(copy):
    path = copy / "rl/done.json"
    done = json.loads(path.read_text())
    path.write_text(json.dumps(done | {"time": done["time"] + 1000}))
    assert "older than the run" in check_report(copy, True).notes[0]


def test_the_footer_of_the_report_is_compared_but_for_the_time(copy):
    page = copy / "report.html"
    page.write_text(page.read_text().replace("from the files of the run alone", "99.9 % on every exam"))
    assert any("99.9 %" in problem for problem in check_report(copy, True).problems)


def test_a_report_with_figures_of_deleted_files_is_not_compared(copy):
    shutil.rmtree(copy / "pretrain/checkpoints")
    check = check_report(copy, True)
    assert check.verdict == "not checked" and "the checkpoints of pretrain were deleted" in check.notes[0]


def test_an_edited_page_that_says_that_it_is_older_is_named(copy):
    page = copy / "report.html"
    text = re.sub(r'data-made="[^"]*"', 'data-made="1000.0"', page.read_text())
    page.write_text(text.replace(re.search(r">\s*(\d\.\d{3})\b", text)[1], "0.123", 1))
    assert "report.html was edited since it was written" in check_report(copy, True).problems[0]


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
    assert any(expected in problem for problem in check_settings(copy).problems), check_settings(copy).problems


def test_a_recipe_of_another_shape_is_compared_too(copy):
    (copy / "recipe.toml").write_text("model = 3\nrun = 1\n")
    assert any("recipe.toml: model" in problem for problem in check_settings(copy).problems)


def test_a_page_that_says_nonsense_about_its_lines_is_compared_with_the_whole_record_and_named(copy):
    page = copy / "report.html"
    for value in ("{", "[]", '{"sft/evals": -1}', '{"sft/evals": "x"}'):
        page.write_text(re.sub(r'data-lines="[^"]*"', f"data-lines='{value}'", page.read_text()))
        assert check_report(copy, True).verdict == "FAILS"


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
    assert {problem.split(",")[0] for problem in check_settings(copy).problems} == {"recipe.toml: seed is 7"}
