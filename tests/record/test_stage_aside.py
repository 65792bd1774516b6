"""Who reads a run with a stage that is kept aside says so, or reads it there."""

import json

import pytest

from fledgling.config import UserError
from fledgling.record import checkpoint
from fledgling.record.parent import describe_parent, find_parent
from fledgling.record.stage_aside import describe_stages_aside, list_unfinished_starts, name_replaced
from fledgling.report.unreadable import find_unreadable
from fledgling.verify.files import check_stages
from tests.record.test_parent import finish, save

LINE = r"rl is being restarted, or its restart was killed: .*rl\.replaced/stage is what it was, and the next"


@pytest.fixture
def run(tmp_path):
    """A run whose sft is done and whose rl is kept aside; of the new one there is the checkpoint of step 0."""
    last = save(tmp_path, "sft", 4, 1)
    save(tmp_path, "rl", 3, 2, describe_parent(last))
    for stage, step in (("sft", 4), ("rl", 3)):
        finish(tmp_path, stage, step)
        (tmp_path / stage / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
    name_replaced(tmp_path / "rl").mkdir()
    (tmp_path / "rl").rename(name_replaced(tmp_path / "rl") / "stage")
    save(tmp_path, "rl", 0, 0)
    return tmp_path


def test_the_model_of_a_run_is_taken_from_the_stage_before_with_a_line(run):
    with pytest.warns(UserWarning, match=LINE + r".*; .*sft/checkpoints/step-00000004 is used"):
        assert checkpoint.resolve_checkpoint(run).parts[-3] == "sft"
    with pytest.warns(UserWarning, match=LINE):
        assert checkpoint.resolve_checkpoint(run / "rl").name == "step-00000000"
    for stage in ("sft", "rl"):
        (run / stage / "checkpoints").rename(run / f"{stage}_gone")
    with pytest.raises(UserError, match=LINE):
        checkpoint.resolve_checkpoint(run / "rl")
    (run / "sft/done.json").unlink()
    with pytest.raises(UserError, match=LINE):
        checkpoint.resolve_checkpoint(run)


def test_report_and_verify_name_it_and_its_checkpoints_are_found(run):
    assert len(describe_stages_aside(run)) == 1 and list_unfinished_starts(run) == ["rl"]
    assert any("is being restarted" in line for line in find_unreadable(run, ["sft"], 2**20))
    check = check_stages(run)
    assert check.problems == [] and [note for note in check.notes if "rl" in note] == describe_stages_aside(run)
    aside = checkpoint.list_checkpoints(run)[-1]
    assert aside == name_replaced(run / "rl") / "stage/checkpoints/step-00000003"
    assert find_parent(run, {"parent": describe_parent(aside)}).path == aside


def test_once_the_new_one_is_saved_no_line_is_on_the_old_one(run, recwarn):
    save(run, "rl", 1, 5)
    finish(run, "rl", 1)
    assert describe_stages_aside(run) == [] and list_unfinished_starts(run) == ["rl"]
    assert checkpoint.resolve_checkpoint(run) == run / "rl/checkpoints/step-00000001" and not recwarn.list


def test_the_last_checkpoint_of_a_finished_stage_that_was_deleted_is_missed(run):
    older = save(run, "sft", 2, 7)
    (run / "sft/checkpoints/step-00000004").rename(run / "gone")
    with pytest.warns(UserWarning, match="step 4, the last of .*sft, is not there; .*step-00000002 is used"):
        assert checkpoint.resolve_checkpoint(run / "sft") == older


def test_a_checkpoint_of_a_later_step_than_the_last_of_a_finished_stage_is_named(run):
    """The newest is used, and a checkpoint that was copied into a stage is the newest."""
    save(run, "sft", 9, 7)
    with pytest.warns(UserWarning, match=r"sft ended at step 4, so that step 9 may be of another run; .*9 is used"):
        assert checkpoint.resolve_checkpoint(run / "sft").name == "step-00000009"
