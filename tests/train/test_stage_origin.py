"""What a stage starts from is named: also where the stage before it has not finished."""

import os
import re
import shutil

import pytest

from fledgling.config import UserError, load_recipe
from fledgling.export.card_origin import describe_origin
from fledgling.record import checkpoint, read_jsonl
from fledgling.record.checkpoint import BASES_DIR
from fledgling.report.run_data import load_run_data
from fledgling.runtime import device
from fledgling.train import loop, run
from fledgling.train.hooks import NO_EVALS
from tests.fast_run import write_recipe
from tests.ranks import one_thread
from tests.stop_request import StopRequest


def test_a_start_from_a_stage_that_has_not_finished_is_named_in_the_notices_and_on_the_card(
    tmp_path, one_thread_known_peak
):
    """So is a setting that a new recipe states and nothing reads: before its first step, and never again."""
    recipe = load_recipe(str(write_recipe(tmp_path)), ["adapter.rank=3", "rl.gamma=0.5"])
    run_dir = tmp_path / "run"
    run.run_stage(recipe, "pretrain", quiet=True)
    (run_dir / "pretrain/done.json").unlink()
    run.run_stage(recipe, "midtrain", quiet=True)
    run.run_stage(recipe, "sft", quiet=True)
    lines = {
        name: [line["text"] for line in read_jsonl(run_dir / name / "notices.jsonl") if "has not finished" in str(line)]
        for name in ("midtrain", "sft")
    }
    assert [line.partition(":")[0] for line in lines["midtrain"]] == [
        "midtrain starts from step 1 of pretrain, which has not finished"
    ]
    assert lines["sft"] == []
    not_read = [(name, line["text"]) for name in lines for line in read_jsonl(run_dir / name / "notices.jsonl")]
    assert not any("is not read" in text for _, text in not_read)
    not_read = [line for line in load_run_data(run_dir).stages[0].notices if "is not read" in line]
    assert not_read == [
        'adapter.rank = 3 is not read: adapter.method is "none"',
        'rl.gamma = 0.5 is not read: rl.algorithm is "grpo"',
        "pretrain.eval_questions = 1 is not read: nothing in pretrain.mixture has an exam",
    ]
    newest = checkpoint.find_latest_checkpoint(run_dir / "sft/checkpoints")
    rows = describe_origin(checkpoint.read_checkpoint_state(newest), run_dir)
    assert ("midtrain", "began from step 1 of pretrain, which had not finished") in rows


def test_a_start_from_an_older_checkpoint_of_a_finished_stage_is_named_with_what_is_corruptd(
    tmp_path, one_thread_known_peak, recwarn
):
    options = ["pretrain.steps=2", "pretrain.save_every=1"]
    recipe, run_dir = load_recipe(str(write_recipe(tmp_path)), options), tmp_path / "run"
    run.run_stage(recipe, "pretrain", quiet=True)
    os.truncate(run_dir / "pretrain/checkpoints/step-00000002/model.safetensors", 1000)
    run.run_stage(recipe, "midtrain", quiet=True)
    begun = "midtrain starts from step 1 of pretrain, which made 2: its newer checkpoints are corrupt or were deleted"
    notices = [line["text"] for line in read_jsonl(run_dir / "midtrain/notices.jsonl")]
    assert begun in notices and any("step-00000002 is corrupt" in text for text in notices)
    assert not recwarn.list, "it is in the record"
    state = checkpoint.read_checkpoint_state(checkpoint.find_latest_checkpoint(run_dir / "midtrain/checkpoints"))
    assert ("midtrain", "began from step 1 of pretrain, which had made 2") in describe_origin(state, run_dir)


def recipe_of(folder, stage, name, *settings):
    """A recipe whose `stage` begins from two steps of sft, in folder/`name`."""
    lengths = ["sft.steps=2", "sft.save_every=1", "dpo.steps=2", "rl.steps=2", "rl.kl_weight=0.04"]
    here = [f"run.out={folder / name}", f'stages=["pretrain", "sft", "{stage}"]']
    return load_recipe(str(folder / "fast.toml"), [*lengths, *here, *settings])


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder with a run whose dpo and rl both began from sft, and were stopped after their first step."""
    folder = tmp_path_factory.mktemp("begun")
    write_recipe(folder)
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
        for stage in ("pretrain", "sft"):
            run.run_stage(recipe_of(folder, "dpo", "begun"), stage, quiet=True, hooks=NO_EVALS)
        for stage in ("dpo", "rl"):
            patch.setattr(run, "catch_stop_signals", StopRequest(1))
            with pytest.raises(loop.TrainingStopped):
                run.run_stage(recipe_of(folder, stage, "begun"), stage, quiet=True, hooks=NO_EVALS)
    return folder


def resume(folder, stage, name, *settings):
    """Resumes the stage in folder/`name`; returns the losses of its steps."""
    assert run.run_stage(recipe_of(folder, stage, name, *settings), stage, quiet=True, hooks=NO_EVALS)
    return [line["loss"] for line in read_jsonl(folder / name / stage / "metrics.jsonl")]


@pytest.mark.parametrize("stage", ["dpo", "rl"])
def test_a_resumed_stage_compares_with_the_weights_that_it_began_from_or_not_at_all(
    stage, begun, one_thread_known_peak
):
    """Also where an older checkpoint of the stage before it is left, or the weights that the run was given."""
    for case in ("whole", "moved", "corrupt", "deleted", "init"):
        out = begun / f"{stage}-{case}"
        shutil.copytree(begun / "begun", out)
        last = out / "sft/checkpoints/step-00000002"
        if case == "moved":
            (out / BASES_DIR / "sft").mkdir(parents=True)
            last.rename(out / BASES_DIR / "sft/step-00000002-0")
        elif case == "corrupt":
            os.truncate(last / "model.safetensors", 1000)
        elif case != "whole":
            shutil.rmtree(last)
        if case == "init":
            shutil.copytree(out / "pretrain/checkpoints", out / "init")
        if case in ("whole", "moved"):
            continue
        expected = (
            f"{stage} compares with the weights that it began from, step 2 of sft, and {last} is corrupt or was "
            f"deleted: put it back, or restart the stage with `fledgling train {stage} {out} --resume never`"
        )
        with pytest.raises(UserError, match=re.escape(expected)):
            resume(begun, stage, out.name)
        assert len(read_jsonl(out / stage / "metrics.jsonl")) == 1
    assert resume(begun, stage, f"{stage}-whole") == resume(begun, stage, f"{stage}-moved")


def test_a_resumed_stage_that_compares_with_nothing_needs_no_weights_but_its_own(begun, one_thread_known_peak):
    shutil.copytree(begun / "begun", begun / "alone")
    shutil.rmtree(begun / "alone/sft/checkpoints/step-00000002")
    shutil.copytree(begun / "alone/pretrain/checkpoints", begun / "alone/init")
    assert len(resume(begun, "rl", "alone", "rl.kl_weight=0")) == 2
