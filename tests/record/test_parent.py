"""What a stage began from is named, and an older checkpoint of a finished stage is not taken for its end."""

import json
import shutil

import pytest
import torch

from fledgling.config import UserError
from fledgling.record import checkpoint
from fledgling.record.parent import choose_named_parent, describe_incomplete, describe_parent, is_left_of
from fledgling.train.resume_check import require_same_parent
from fledgling.train.stage_origin import choose_parent


def save(run, stage, step, value, parent=None):
    state = {"stage": stage, "step": step, "parent": parent}
    tensors = {"model": {"w": torch.full((1,), float(value))}}
    return checkpoint.save_checkpoint(run / stage / "checkpoints", step, tensors, state)


def finish(run, stage, step):
    (run / stage / "done.json").write_text(json.dumps({"step": step}))


@pytest.fixture
def stages(tmp_path):
    """A finished sft with checkpoints 2 and 4, and an rl that began from the last."""
    older, last = (save(tmp_path, "sft", step, step) for step in (2, 4))
    finish(tmp_path, "sft", 4)
    return older, last, save(tmp_path, "rl", 1, 9, describe_parent(last))


def test_an_older_checkpoint_of_a_finished_stage_differs_from_its_last_one(stages, tmp_path):
    older, last, _ = stages
    assert describe_parent(older).items() > {"step": 2, "last_step": 4}.items()
    assert (
        describe_incomplete(older) == "step 2 of sft, which made 4: its newer checkpoints are corrupt or were deleted"
    )
    assert "last_step" not in describe_parent(last) and describe_incomplete(last) == describe_incomplete(None) == ""
    for text in ("[]", "{", '{"step": "4"}', '{"step": true}'):
        (tmp_path / "sft/done.json").write_text(text)
        assert "last_step" not in describe_parent(older)
    (tmp_path / "sft/done.json").unlink()
    assert (
        describe_parent(older)["unfinished"] and describe_incomplete(older) == "step 2 of sft, which has not finished"
    )


@pytest.mark.parametrize("lost", ["corrupt", "deleted"])
def test_a_later_stage_is_not_rejected_because_the_last_checkpoint_before_it_is_lost(stages, tmp_path, lost):
    older, last, saved = stages
    if lost == "corrupt":
        (last / "model.safetensors").write_bytes(b"")
    else:
        shutil.rmtree(last)
    require_same_parent("rl", tmp_path / "rl", saved, older)
    assert choose_parent(tmp_path, saved, older, None) is None and choose_parent(tmp_path, None, older, None) == older
    state = checkpoint.read_checkpoint_state(saved)
    assert choose_named_parent(state, None) == state["parent"], "checkpoints of the resumed stage go on naming it"


@pytest.mark.parametrize("again", ["to the same step", "to another step", "not to its end"])
def test_a_stage_that_was_trained_again_is_still_rejected_whatever_is_left_of_it(stages, tmp_path, again):
    older, last, saved = stages
    shutil.rmtree(last)
    if again == "to the same step":
        (save(tmp_path, "sft", 4, 5) / "model.safetensors").write_bytes(b"")
    elif again == "to another step":
        finish(tmp_path, "sft", 3)
    else:
        (tmp_path / "sft/done.json").unlink()
    assert not is_left_of(older, checkpoint.read_checkpoint_state(saved)["parent"])
    assert choose_parent(tmp_path, saved, older, None) == older
    with pytest.raises(UserError, match="was made from other weights"):
        require_same_parent("rl", tmp_path / "rl", saved, older)
