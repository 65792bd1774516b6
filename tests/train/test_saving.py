"""Saving beside training: the loop goes on, the copy is one, errors reach every rank, nothing else is lost."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fledgling.config import UserError
from fledgling.record import checkpoint, read_jsonl
from fledgling.runtime import device
from fledgling.train import loop, run
from fledgling.train.saver import copy_tensors
from tests.ranks import on_ranks
from tests.tiny import tiny

QUIET = {"pretrain.steps": 6, "pretrain.save_every": 2, "pretrain.batch_tokens": 1024}


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)  # it takes longer than these stages


def no_evals(evals: tuple) -> tuple:
    return ()


def lines(recipe, name: str = "metrics") -> list[dict]:
    return read_jsonl(Path(recipe.run.out) / "pretrain" / f"{name}.jsonl")


def slow_until(recipe, step: int, monkeypatch) -> list[int]:
    """Make the first write wait until `step` has been recorded; returns the steps written, in order."""
    written, real = [], checkpoint.save_checkpoint

    def save(directory, at, *rest):
        moment = threading.Event()
        while not written and not any(line["step"] >= step for line in lines(recipe)):
            assert not moment.wait(0.01)
        written.append(at)
        return real(directory, at, *rest)

    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    return written


@pytest.mark.timeout(60)
def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    recipe = tiny(tmp_path, **QUIET)
    written = slow_until(recipe, 3, monkeypatch)
    assert run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
    assert written == [2, 4, 6]
    checkpoints = Path(recipe.run.out) / "pretrain" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000004", "step-00000006"]
    told = lines(recipe)
    assert [line["step"] for line in told if "save_stall" in line] == [3, 5]
    done = json.loads((checkpoints.parent / "done.json").read_text())
    spent = [line["save_seconds"] for line in (*told, done) if "save_seconds" in line]
    assert done["save_stall"] > 0 and 2 <= len(spent) <= 3 and all(seconds > 0 for seconds in spent)


def test_what_is_written_is_what_was_when_it_was_saved(tmp_path, monkeypatch):
    """The write is held back until training has moved on; the checkpoint is that of a run without any hurry."""
    recipe = tiny(tmp_path, **QUIET)
    assert run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
    checkpoints = Path(recipe.run.out) / "pretrain" / "checkpoints"
    calm = checkpoint.load_checkpoint(checkpoints / "step-00000004")
    shutil.rmtree(checkpoints.parent)
    slow_until(recipe, 3, monkeypatch)
    assert run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
    hurried = checkpoint.load_checkpoint(checkpoints / "step-00000004")
    assert hurried.state == calm.state
    for group, tensors in calm.tensors.items():
        assert all(torch.equal(tensor, hurried.tensors[group][name]) for name, tensor in tensors.items()), group


def test_a_copy_is_written_over_and_never_shared():
    source = {"a": torch.ones(2, 3), "b": torch.ones(2)}
    first = copy_tensors(source, {})
    source["a"].zero_()
    assert first["a"].eq(1).all()
    second = copy_tensors(source, first)
    assert second["a"] is first["a"] and second["a"].eq(0).all() and second["b"].eq(1).all()


def test_a_damaged_newest_one_is_passed_over_named_and_made_again(tmp_path):
    recipe = tiny(tmp_path, **QUIET)
    assert run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
    checkpoints = Path(recipe.run.out) / "pretrain" / "checkpoints"
    bad = checkpoints / "step-00000006" / "optimizer.safetensors"
    content = bad.read_bytes()
    bad.write_bytes(content[:-5] + bytes([content[-5] ^ 16]) + content[-4:])
    (checkpoints.parent / "done.json").unlink()
    assert run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
    told = [line["text"] for line in lines(recipe, "notices")]
    assert any("skipped" in text and "step-00000006" in text and "optimizer.safetensors" in text for text in told)
    assert "pretrain: going on after step 4 of 6" in told
    assert bad.read_bytes() == content


# ---- a write that fails --------------------------------------------------------------------------


def full_after(count: int) -> None:
    """Tell every save after the first `count` that the disk is full."""
    real, saves = shutil.disk_usage, iter(range(100))

    def told(path):
        return real(path) if next(saves) < count else real(path)._replace(free=10)

    checkpoint.shutil.disk_usage = told


@pytest.mark.timeout(60)
def test_a_full_disk_ends_the_run_at_once_and_the_checkpoint_before_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", shutil.disk_usage)
    recipe = tiny(tmp_path, **QUIET | {"pretrain.steps": 200, "pretrain.save_every": 50})
    full_after(1)
    with pytest.raises(UserError, match=r"step-00000100: No space left .* needed, .* free"):
        run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
    assert 100 < lines(recipe)[-1]["step"] < 150, "told before the next save would have waited for it"
    checkpoints = Path(recipe.run.out) / "pretrain" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000050"]
    checkpoint.load_checkpoint(checkpoints / "step-00000050")


def test_a_full_disk_at_the_last_save_is_told_before_the_stage_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", shutil.disk_usage)
    recipe = tiny(tmp_path, **QUIET)
    full_after(2)
    with pytest.raises(UserError, match="step-00000006: No space left"):
        run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
    assert not (Path(recipe.run.out) / "pretrain" / "done.json").exists()


def test_another_error_waits_for_the_write_and_is_the_one_that_is_told(tmp_path, monkeypatch):
    recipe = tiny(tmp_path, **QUIET)
    real = loop.train_step

    def broken(stage, *rest):
        if stage.batches.step == 3:
            raise UserError("broken at the third step")
        return real(stage, *rest)

    monkeypatch.setattr(loop, "train_step", broken)
    with pytest.raises(UserError, match="broken at the third step"):
        run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
    found = checkpoint.find_latest_checkpoint(Path(recipe.run.out) / "pretrain" / "checkpoints")
    assert found.name == "step-00000002"


# ---- several ranks -------------------------------------------------------------------------------


def on_one_rank(recipe, steps_before_the_write: int):
    """Run the stage with the main rank's first write held back until the other rank has made so many steps."""
    device.measure_peak_flops = lambda device, dtype: 1e9
    mark, real_save, real_update = Path(recipe.run.out).parent / "made", checkpoint.save_checkpoint, loop.train_step
    made = []

    def update(stage, model, optimizer, batches, world):
        told = real_update(stage, model, optimizer, batches, world)
        made.append(1)
        if world.rank == 1:
            mark.write_text(str(len(made)))
        return told

    def save(directory, at, *rest):
        while at == 2 and int(mark.read_text() or 0) < steps_before_the_write:
            threading.Event().wait(0.01)
        return real_save(directory, at, *rest)

    loop.train_step, checkpoint.save_checkpoint = update, save
    return run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)


@pytest.mark.timeout(90)
def test_the_other_ranks_do_not_wait_for_the_writer(tmp_path):
    recipe = tiny(tmp_path, **QUIET)
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, zero_stage=2))
    (tmp_path / "made").write_text("0")
    assert on_ranks(2, on_one_rank, recipe, 3) == [True, True]


def full_on_ranks(recipe) -> str:
    device.measure_peak_flops = lambda device, dtype: 1e9
    full_after(1)
    try:
        run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)
    except UserError as error:
        return str(error)
    except SystemExit as left:
        return f"left with {left.code}"
    return "done"


@pytest.mark.timeout(90)
def test_a_full_disk_ends_every_rank(tmp_path):
    main, other = on_ranks(2, full_on_ranks, tiny(tmp_path, **QUIET))
    assert "step-00000004: No space left" in main and other == "left with 1"
