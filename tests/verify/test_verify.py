"""An honest run holds in every bit; a tampered copy of each kind is caught, and the problem names the place."""

import json
import random
import shutil
from contextlib import redirect_stderr
from io import StringIO

import pytest

from benchmarks import verify as tampering
from fledgling.config import UserError, load_recipe
from fledgling.record.atomic_directory import hash_file
from fledgling.record.seal import seal_run
from fledgling.report import build_report
from fledgling.train.read_files import OtherFileError
from fledgling.train.run import run_stage
from fledgling.verify import steps, verify_run
from fledgling.verify.files import list_stage_checkpoints


def list_problems(result):
    return [f"{check['name']}: {text}" for check in result["checks"] for text in check["problems"]]


def hash_tree(folder):
    return {path.relative_to(folder): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def test_an_honest_run_holds_and_is_not_changed(run, monkeypatch):
    monkeypatch.setattr("fledgling.train.run.follow_free_cores", pytest.fail)  # fewer threads add in another order
    before = hash_tree(run)
    result = verify_run(run, count=30, seconds=600, seed=1, evals=9)
    assert list_problems(result) == [] and result["holds"] and result["tolerance"] == 0.0
    checked = {check["name"]: (check["checked"], check["total"]) for check in result["checks"]}
    steps = 3 * tampering.STEPS
    assert checked["data of every step"] == (2 * tampering.STEPS, steps)
    assert 10 <= checked["steps replayed"][0] <= steps
    assert all(count for count, _ in checked.values()), checked
    assert hash_tree(run) == before


def test_a_run_on_another_machine_is_compared_within_a_tolerance(copy):
    environment = copy / "environment.json"
    (copy / "report.html").unlink()  # it shows the environment
    environment.write_text(environment.read_text().replace('"torch": "', '"torch": "0.'))
    seal_run(copy)
    result = verify_run(copy, count=2, seconds=600, seed=1)
    assert result["holds"] and result["tolerance"] == 0.02 and list(result["machine"]) == ["torch"]


def test_a_text_that_was_edited_since_raises_no_alarm(run):
    text = run.parent / "text.jsonl"
    before = text.read_bytes()
    text.write_bytes(before.replace(b" ", b"  ", 50))
    try:
        result = verify_run(run, count=12, seconds=600, seed=1)
    finally:
        text.write_bytes(before)
    assert list_problems(result) == [] and result["holds"]


def test_without_time_the_steps_are_reported_as_not_made(run):
    result = verify_run(run, count=4, seconds=0, seed=1)
    replayed = next(check for check in result["checks"] if check["name"] == "steps replayed")
    assert not result["holds"] and result["verdict"] == "steps not checked"
    assert replayed["verdict"] == "not checked" and any("no time left for" in note for note in replayed["notes"])


def test_a_folder_that_is_no_run_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"no stage with a metrics\.jsonl"):
        verify_run(tmp_path)


@pytest.mark.parametrize("way", ["edited", "manifest"])
@pytest.mark.parametrize("kind", tampering.KINDS[:-1], ids=lambda kind: kind.__name__)
def test_a_tampered_copy_is_caught_by_its_hashes_and_named(copy, runs, kind, way):
    tampered = kind(copy, runs[1], way, random.Random(5))
    problems = list_problems(verify_run(copy, count=0, seconds=0, seed=1))
    assert any(expected in text for expected in tampered.expected for text in problems), (tampered, problems)


@pytest.mark.parametrize("kind", tampering.KINDS, ids=lambda kind: kind.__name__)
def test_a_copy_whose_hashes_were_all_forged_is_caught_by_replayed_steps(copy, runs, kind):
    tampered = kind(copy, runs[1], "forged", random.Random(7))
    checks = {check["name"]: check["problems"] for check in verify_run(copy, 30, 600, seed=1)["checks"]}
    assert not checks["record and manifests"] and not checks["checkpoints"] and not checks["prepared data"]
    problems = [text for texts in checks.values() for text in texts]
    assert any(expected in text for expected in tampered.expected for text in problems), (tampered, problems)


def test_checkpoints_that_were_deleted_to_make_room_are_notes(copy):
    shutil.rmtree(copy / "pretrain/checkpoints")
    result = verify_run(copy, count=3, seconds=600, seed=1)
    assert result["holds"], [check for check in result["checks"] if check["problems"]]
    notes = [note for check in result["checks"] for note in check["notes"]]
    assert "not replayed: sft step 0: the checkpoints of pretrain were deleted" in notes


def test_a_run_without_its_text_is_verified_from_its_tokens(copy, run):
    text = run.parent / "text.jsonl"
    text.rename(text.with_suffix(".away"))
    try:
        result = verify_run(copy, count=6, seconds=600, seed=1)
        shutil.rmtree(copy / "data")
        without = verify_run(copy, count=6, seconds=600, seed=1)
    finally:
        text.with_suffix(".away").rename(text)
    assert list_problems(result) == [] and result["holds"]
    assert without["verdict"] == "steps not checked" and not without["holds"]


def resume_with(copy, stage, overrides, late_report=True):
    """Resumes a stage from a checkpoint of its middle, with changed settings; the report comes after or before."""
    (copy / stage / "done.json").unlink()
    shutil.rmtree(copy / stage / "checkpoints" / f"step-{tampering.STEPS:08d}")
    for later in ("pretrain", "sft", "rl")[("pretrain", "sft", "rl").index(stage) + 1 :]:
        shutil.rmtree(copy / later)
    build_report(copy)
    with redirect_stderr(StringIO()):
        run_stage(load_recipe(str(copy), overrides), stage, quiet=True)
    if late_report:
        build_report(copy)


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("pretrain", "pretrain.steps=8"),
        ("pretrain", "optimizer.matrix_lr=0.05"),
        ("pretrain", "pretrain.micro_batch_size=1"),
        ("sft", "sft.train_on=all"),
        ("rl", "rl.temperature=1.5"),
    ],
)
def test_a_run_that_was_resumed_with_other_settings_raises_no_alarm(copy, stage, override):
    resume_with(copy, stage, [override])
    result = verify_run(copy, count=8, seconds=600, seed=1)
    assert list_problems(result) == [] and result["holds"]
    if stage != "rl":
        notes = [note for check in result["checks"] for note in check["notes"]]
        assert any("was resumed after step 4 with other settings" in note for note in notes)


def test_a_report_that_was_made_before_the_run_was_resumed_is_set_aside_and_raises_no_alarm(copy):
    resume_with(copy, "pretrain", ["pretrain.steps=8"], late_report=False)
    assert (copy / "report.older.html").exists() and not (copy / "report.html").exists()
    result = verify_run(copy, count=2, seconds=600, seed=1)
    assert list_problems(result) == []


@pytest.mark.parametrize("stage", ["pretrain", "rl"])
def test_the_last_checkpoint_of_a_stage_is_replayed_without_a_draw(copy, stage):
    path = list_stage_checkpoints(copy, stage)[-1]
    tampering.change_tensor(path / "model.safetensors", random.Random(3))
    tampering.cover(copy, [path], "forged")
    problems = list_problems(verify_run(copy, count=0, seconds=600, seed=1))
    assert any(text.startswith(f"weights after them: {stage}/{path.name}") for text in problems), problems


def test_a_last_checkpoint_that_nothing_compared_is_named(run):
    notes = [note for check in verify_run(run, count=0, seconds=5e-3, seed=1)["checks"] for note in check["notes"]]
    assert any(note.startswith("not compared: ") and f"rl step {tampering.STEPS}" in note for note in notes), notes


@pytest.mark.parametrize(("error", "verdict"), [(OtherFileError, "holds"), (UserError, "FAILS")])
def test_a_teacher_that_is_another_by_now_is_a_note_and_an_error_of_the_run_a_problem(run, error, verdict, monkeypatch):
    replay = steps.replay

    def replay_all_but_sft(run_dir, start, *others):
        if start.stage == "sft":
            raise error("distill.teacher: it has other weights")
        return replay(run_dir, start, *others)

    monkeypatch.setattr(steps, "replay", replay_all_but_sft)
    assert verify_run(run, count=2, seconds=600, seed=1)["verdict"].startswith(verdict)


def train_again(run, stage, overrides):
    """Restarts a stage of a finished run, and leaves the later stages as they are."""
    with redirect_stderr(StringIO()):
        run_stage(load_recipe(str(run), overrides), stage, resume="never", quiet=True)
    build_report(run)


def test_a_stage_that_was_restarted_raises_no_alarm_of_those_made_before(copy):
    """With another rate, seed, tokenizer and model: nothing of what is in the run now is what the later stages had."""
    settings = ["optimizer.matrix_lr=0.05", "seed=5", "tokenizer.vocab_size=400", "model.width=48", "sft.steps=9"]
    train_again(copy, "pretrain", settings)
    result = verify_run(copy, count=1, seconds=600, seed=1)
    assert list_problems(result) == [] and result["holds"]
    notes = {check["name"]: check["notes"] for check in result["checks"]}
    lost = "not replayed: sft step 0: sft began from weights that pretrain had before it was trained again"
    assert lost in notes["steps replayed"] and not any("replayed: rl" in note for note in notes["steps replayed"])
    assert any(note.startswith("sft had other settings than recipe.toml") for note in notes["settings"])
    assert "the tokenizer was replaced after sft, when pretrain was trained again" in notes["record and manifests"]


def test_a_state_of_another_shape_is_named_with_the_files_that_were_changed(copy):
    path = list_stage_checkpoints(copy, "rl")[-1]
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"history": "x", "data": {"rl.rewards": 3}}))
    tampering.rewrite_manifest(path)
    problems = list_problems(verify_run(copy, count=0, seconds=0, seed=1))
    assert f"checkpoints: rl/checkpoints/{path.name}/state.json: history is 'x', expected a list" in problems
    assert any("was replaced: not what the seal of rl says" in problem for problem in problems)
    (copy / "rl/done.json").unlink()
    with pytest.raises(UserError, match="history is 'x', expected a list"):
        run_stage(load_recipe(str(copy), ["rl.steps=9"]), "rl", quiet=True)
