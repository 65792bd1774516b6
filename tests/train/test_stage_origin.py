"""What a stage starts from is named: also where the stage before it has not finished."""

import os

from fledgling.config import load_recipe
from fledgling.export.card_origin import describe_origin
from fledgling.record import checkpoint, read_jsonl
from fledgling.report.run_data import load_run_data
from fledgling.train import run
from tests.fast_run import write_recipe


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
