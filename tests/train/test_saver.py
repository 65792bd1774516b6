"""Saving during training: the loop continues, the copy is not shared, errors reach every rank."""

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
from fledgling.train import loop, run, train_state
from fledgling.train.hooks import NO_EVALS
from fledgling.train.saver import CheckpointSaver, copy_tensors
from tests.all_stages import make_all_stages_recipe
from tests.ranks import on_ranks

SETTINGS = {"pretrain.steps": 6, "pretrain.save_every": 2, "pretrain.batch_tokens": 1024}


@pytest.fixture(autouse=True)
def no_peak_measurement(monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)  # it takes longer than these stages


def read_lines(recipe, name: str = "metrics") -> list[dict]:
    return read_jsonl(Path(recipe.run.out) / "pretrain" / f"{name}.jsonl")


def delay_first_write(recipe, step: int, monkeypatch) -> list[int]:
    """Delays the first write until `step` is recorded; returns the list of steps written, in order."""
    written, real = [], checkpoint.save_checkpoint

    def save(directory, at, *rest):
        event = threading.Event()
        while not written and not any(line["step"] >= step for line in read_lines(recipe)):
            assert not event.wait(0.01)
        written.append(at)
        return real(directory, at, *rest)

    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    return written


def test_training_continues_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    recipe = make_all_stages_recipe(tmp_path, **SETTINGS)
    written = delay_first_write(recipe, 3, monkeypatch)
    assert run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    assert written == [2, 4, 6]
    checkpoints = Path(recipe.run.out) / "pretrain" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000004", "step-00000006"]
    metrics = read_lines(recipe)
    assert [line["step"] for line in metrics if "save_stall" in line] == [3, 5]
    done = json.loads((checkpoints.parent / "done.json").read_text())
    seconds = [line["save_seconds"] for line in (*metrics, done) if "save_seconds" in line]
    assert done["save_stall"] > 0 and 2 <= len(seconds) <= 3 and min(seconds) > 0


def test_a_delayed_write_has_the_values_of_its_step(tmp_path, monkeypatch):
    """The checkpoint is that of a run whose write is not delayed."""
    recipe = make_all_stages_recipe(tmp_path, **SETTINGS)
    assert run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    checkpoints = Path(recipe.run.out) / "pretrain" / "checkpoints"
    expected = checkpoint.load_checkpoint(checkpoints / "step-00000004")
    shutil.rmtree(checkpoints.parent)
    delay_first_write(recipe, 3, monkeypatch)
    assert run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    delayed = checkpoint.load_checkpoint(checkpoints / "step-00000004")
    for loaded in (delayed, expected):
        assert loaded.state["totals"].pop("training_seconds") > 0
    assert delayed.state == expected.state
    for group, tensors in expected.tensors.items():
        assert all(torch.equal(tensor, delayed.tensors[group][name]) for name, tensor in tensors.items()), group


@pytest.mark.parametrize(("save_every", "allocated"), [(2, True), (0, False)])
def test_the_copy_is_allocated_before_the_first_step_where_a_stage_saves_in_between(
    tmp_path, monkeypatch, save_every, allocated
):
    found = []

    class Watched(CheckpointSaver):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            found.append(bool(self.host_copies))

    monkeypatch.setattr(train_state, "CheckpointSaver", Watched)
    recipe = make_all_stages_recipe(tmp_path, **{"pretrain.save_every": save_every})
    assert run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    assert found == [allocated]


def test_copies_are_overwritten_and_never_shared():
    source = {"a": torch.ones(2, 3), "b": torch.ones(2)}
    first = copy_tensors(source, {})
    source["a"].zero_()
    assert first["a"].eq(1).all()
    second = copy_tensors(source, first)
    assert second["a"] is first["a"] and second["a"].eq(0).all() and second["b"].eq(1).all()


def test_a_corrupt_newest_checkpoint_is_skipped_named_and_written_again(tmp_path):
    recipe = make_all_stages_recipe(tmp_path, **SETTINGS)
    assert run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    checkpoints = Path(recipe.run.out) / "pretrain" / "checkpoints"
    corrupt = checkpoints / "step-00000006" / "optimizer.safetensors"
    content = corrupt.read_bytes()
    corrupt.write_bytes(content[:-5] + bytes([content[-5] ^ 16]) + content[-4:])
    (checkpoints.parent / "done.json").unlink()
    assert run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    notices = [line["text"] for line in read_lines(recipe, "notices")]
    assert any("skipped" in text and "step-00000006" in text and "optimizer.safetensors" in text for text in notices)
    assert "pretrain: resuming after step 4 of 6" in notices
    assert corrupt.read_bytes() == content


# ---- a write that fails --------------------------------------------------------------------------


def fill_disk_after(count: int) -> threading.Event:
    """Reports a full disk to every save after the first `count`; the event is set with the first of these reports."""
    real, saves, is_full = shutil.disk_usage, iter(range(100)), threading.Event()

    def disk_usage(path):
        if next(saves) < count:
            return real(path)
        is_full.set()
        return real(path)._replace(free=10)

    checkpoint.shutil.disk_usage = disk_usage
    return is_full


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", shutil.disk_usage)
    recipe = make_all_stages_recipe(tmp_path, **SETTINGS | {"pretrain.steps": 80, "pretrain.save_every": 20})
    is_full, steps, real = fill_disk_after(1), [], loop.queue_step

    def wait_for_the_writer(*given):
        steps.append(1)
        if len(steps) == 45:  # its thread may start late
            assert is_full.wait(60) and threading.Event().wait(0.5) is False
        return real(*given)

    monkeypatch.setattr(loop, "queue_step", wait_for_the_writer)
    with pytest.raises(UserError, match=r"step-00000040: No space left .* needed, .* free"):
        run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    assert 40 < read_lines(recipe)[-1]["step"] < 60, "raised before the next save"
    checkpoints = Path(recipe.run.out) / "pretrain" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000020"]
    checkpoint.load_checkpoint(checkpoints / "step-00000020")


def test_a_full_disk_at_the_last_save_is_raised_before_the_stage_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", shutil.disk_usage)
    recipe = make_all_stages_recipe(tmp_path, **SETTINGS)
    fill_disk_after(2)
    with pytest.raises(UserError, match="step-00000006: No space left"):
        run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    assert not (Path(recipe.run.out) / "pretrain" / "done.json").exists()


def test_another_error_waits_for_the_write_and_is_raised(tmp_path, monkeypatch):
    recipe = make_all_stages_recipe(tmp_path, **SETTINGS)
    real = loop.queue_step

    def failing_step(stage, *rest):
        if stage.batches.step == 3:
            raise UserError("broken at the third step")
        return real(stage, *rest)

    monkeypatch.setattr(loop, "queue_step", failing_step)
    with pytest.raises(UserError, match="broken at the third step"):
        run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    latest = checkpoint.find_latest_checkpoint(Path(recipe.run.out) / "pretrain" / "checkpoints")
    assert latest.name == "step-00000002"


# ---- several ranks -------------------------------------------------------------------------------


def run_with_delayed_write(recipe, steps_before_the_write: int):
    """Runs the stage; the main rank's first write waits until the other rank has finished that many steps."""
    device.measure_peak_flops = lambda device, dtype: 1e9
    count_file, real_save, real_step = (
        Path(recipe.run.out).parent / "steps",
        checkpoint.save_checkpoint,
        loop.queue_step,
    )
    steps = []

    def counted_step(stage, model, optimizer, batches, world):
        result = real_step(stage, model, optimizer, batches, world)
        steps.append(1)
        if world.rank == 1:
            count_file.write_text(str(len(steps)))
        return result

    def save(directory, at, *rest):
        while at == 2 and int(count_file.read_text() or 0) < steps_before_the_write:
            threading.Event().wait(0.01)
        return real_save(directory, at, *rest)

    loop.queue_step, checkpoint.save_checkpoint = counted_step, save
    return run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)


def test_the_other_ranks_do_not_wait_for_the_writer(tmp_path):
    recipe = make_all_stages_recipe(tmp_path, **SETTINGS)
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, zero_stage=2))
    (tmp_path / "steps").write_text("0")
    assert on_ranks(2, run_with_delayed_write, recipe, 3) == [True, True]


def run_with_full_disk(recipe) -> str:
    device.measure_peak_flops = lambda device, dtype: 1e9
    fill_disk_after(1)
    try:
        run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    except UserError as error:
        return str(error)
    except SystemExit as exit_:
        return f"exit code {exit_.code}"
    return "done"


def test_a_full_disk_ends_every_rank(tmp_path):
    main, other = on_ranks(2, run_with_full_disk, make_all_stages_recipe(tmp_path, **SETTINGS))
    assert "step-00000004: No space left" in main and other == "exit code 1"
