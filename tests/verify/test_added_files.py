"""Files that were added to a run: those that commands read are problems, leftovers and a person's notes are notes."""

import json
import shutil

import pytest

from fledgling.config import load_recipe
from fledgling.record.seal import seal_run
from fledgling.train.predictions import write_predictions
from fledgling.verify.files import check_checkpoints, check_prepared_data, check_stages
from fledgling.verify.seals import check_seals


def find_lines(run) -> tuple[list[str], list[str]]:
    """Returns (problems, notes) of all that hashes and names show."""
    checks = [check_stages(run)]
    checks += [check(run, lambda text: None) for check in (check_checkpoints, check_prepared_data, check_seals)]
    return [line for each in checks for line in each.problems], [line for each in checks for line in each.notes]


def test_an_honest_run_has_no_file_too_many(run):
    assert find_lines(run) == ([], [])


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["forecast.json"], "forecast.json is not in the seal of the run"),
        (["spent.json"], "spent.json is of a run with a budget, and there is no forecast.json"),
        (["forecast.json", "spent.json"], "spent.json says that the run has ended, and is not in the seal of the run"),
    ],
)
def test_the_budget_of_another_run_is_a_problem(copy, names, problem):
    files = {"forecast.json": {}, "spent.json": {"seconds": 5.0, "finished": True, "time": 1e9}}
    for name in names:
        (copy / name).write_text(json.dumps(files[name]))
    assert problem in find_lines(copy)[0]


def test_a_prediction_of_another_run_is_a_problem_and_a_backup_of_one_stops_no_command(copy, runs):
    shutil.copy(runs[1] / "rl/plan.json", copy / "rl/plan-2.json")
    assert find_lines(copy)[0] == ["rl/plan-2.json is not in the seal of rl"]
    (copy / "rl/plan-2.json").rename(copy / "rl/plan-old.json")
    assert find_lines(copy)[0] == ["rl/plan-old.json is not in the seal of rl"]
    write_predictions(load_recipe(copy), "rl", copy, 6)


def test_a_stage_of_another_run_is_a_problem(copy, runs):
    shutil.rmtree(copy / "rl")
    seal_run(copy)  # as if the run had never trained it
    assert find_lines(copy)[0] == []
    shutil.copytree(runs[1] / "rl", copy / "rl")
    assert "rl is not in the seal of the run: another run's stage" in find_lines(copy)[0]


def test_what_is_no_folder_or_leads_nowhere_is_named_as_that(copy, tmp_path):
    place = copy / "rl/checkpoints/step-00000006"
    shutil.rmtree(place)
    place.symlink_to(tmp_path / "gone")
    assert find_lines(copy)[0] == [f"rl/checkpoints/step-00000006 is a link to {tmp_path / 'gone'}, which is not there"]
    shutil.rmtree(copy / "sft/checkpoints")
    (copy / "sft/checkpoints").write_text("x")
    assert "sft/checkpoints is no folder" in find_lines(copy)[0]


def test_what_a_start_or_an_adapter_may_have_left_is_noted(copy, runs):
    source = runs[1] / "rl"
    shutil.copytree(source, copy / ".rl.replaced/stage")
    shutil.copytree(source / "checkpoints/step-00000006", copy / "bases/rl/step-00000006")
    (copy / "tokenizer/merges.txt").write_text("a b")
    assert find_lines(copy) == (
        [],
        [
            ".rl.replaced has what a start of rl has replaced, or was killed over",
            "tokenizer/merges.txt is not a file of a tokenizer",
            "bases/rl/step-00000006 is the base of no adapter of this run",
        ],
    )


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_checkpoint_of_another_name_is_a_problem(copy, runs, kind):
    place, source = copy / "rl/checkpoints/best", runs[1] / "rl/checkpoints/step-00000006"
    if kind == "folder":
        shutil.copytree(source, place)
    elif kind == "link":
        place.symlink_to(source)
    else:
        place.write_text("step-00000006")
    problems = ["rl/checkpoints/best is no checkpoint of this run, whose names are like step-00000100"]
    assert find_lines(copy) == (problems, [])


def test_weights_that_a_run_was_not_given_are_a_problem_and_further_ones_too(copy, runs):
    source = runs[1] / "rl/checkpoints/step-00000006"
    shutil.copytree(source, copy / "init/step-00000000")
    assert find_lines(copy)[0] == ["init/step-00000000 is not in the seal of the run"]
    seal_run(copy)
    shutil.copytree(source, copy / "init/step-00000007")
    assert find_lines(copy)[0] == ["init/step-00000007 is not in the seal of the run"]


def test_leftovers_of_systems_and_editors_and_notes_of_a_person_are_no_problem(copy):
    shutil.copytree(copy / "rl/checkpoints/step-00000006", copy / "init/step-00000000")
    seal_run(copy)
    for folder in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        for name in (".DS_Store", "._source.json", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"\0")
    (copy / "README.md").write_text("mine")
    (copy / "rl/notes.txt").write_text("mine")
    (copy / "rl/checkpoints/step-00000006/state.json~").write_text("{}")
    problems, notes = find_lines(copy)
    assert problems == []
    assert {"README.md is not a file of a run", "rl/notes.txt is not a file of a stage"} <= {*notes}
    assert "rl/checkpoints/step-00000006/.DS_Store is not in manifest.json" in notes
    (copy / "rl/checkpoints/step-00000006/notes.txt").write_text("mine")
    assert find_lines(copy)[0] == ["rl/checkpoints/step-00000006/notes.txt is not in manifest.json"]


def test_tokens_that_no_step_has_read_are_a_note(copy, runs):
    source = next(path for path in (runs[1] / "data").iterdir() if not (copy / "data" / path.name).exists())
    shutil.copytree(source, copy / "data" / source.name)
    assert find_lines(copy) == ([], [f"data/{source.name} is in no seal: no recorded step has read it"])
