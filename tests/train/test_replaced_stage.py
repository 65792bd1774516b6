"""A stage that is restarted, or its new checkpoint, is there however the restart ends: by an error, a kill, a cut."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fledgling.cli import main
from fledgling.config import UserError, load_recipe
from fledgling.record import checkpoint, write_text
from fledgling.record.stage_aside import list_unfinished_starts, name_replaced
from fledgling.runtime import device
from fledgling.train.hooks import NO_EVALS
from fledgling.train.loop import TrainingStopped
from fledgling.train.replaced_stage import describe_restart, remove_replaced_stage, set_stage_aside, settle_run
from fledgling.train.run import STAGE_BUILDERS, run_stage
from fledgling.train.run_directory import parent_checkpoint
from fledgling.train.start_recipe import load_start_recipe
from tests.fast_run import write_recipe
from tests.record.power_loss import Recording
from tests.record.test_power_loss import folder  # noqa: F401 - a fixture
from tests.train.test_kept_bases import base_of, save

RESTART = ["pretrain.steps=3", "pretrain.save_every=2", "pretrain.learning_rate=0.5"]


def read_value(run_dir):
    path = checkpoint.find_latest_checkpoint(run_dir / "pretrain/checkpoints")
    return float(checkpoint.load_checkpoint(path).tensors["model"]["w"])


def write_both(run, text):
    """Writes the recipe and the tokenizer, as a start does."""
    for name in ("recipe.toml", "tokenizer/tokenizer.json"):
        (run / name).parent.mkdir(exist_ok=True)
        write_text(run / name, text)


def read_both(run):
    return [(run / name).read_text() for name in ("recipe.toml", "tokenizer/tokenizer.json")]


def settle(run_dir):
    try:
        settle_run(run_dir, lambda line: None)
    except UserError as error:
        assert "give the command again" in str(error)


def test_a_power_cut_at_any_moment_of_a_restart_leaves_the_old_stage_or_a_new_checkpoint(folder):  # noqa: F811
    run, found = folder / "root/run", set()
    base = save(run, "pretrain", 4, 1.0)
    adapter = save(run, "sft", 3, 3.0, base)
    write_both(run, "old")
    recording = Recording(folder / "root")
    with recording.watch():
        set_stage_aside(run / "pretrain")
        write_both(run, "new")
        write_text(run / "derived.json", "{}")
        save(run, "pretrain", 0, 2.0)
        recording.mark("begun")
        save(run, "pretrain", 1, 2.0)
        recording.mark("saved")
        remove_replaced_stage(run / "pretrain")
    for state in recording.states():
        cut = state.build(folder / "cut") / "run"
        settle(cut)
        value = read_value(cut)
        found.add((value, *state.marks))
        assert value == 2.0 or "saved" not in state.marks
        assert read_both(cut) == (["old"] * 2 if value == 1.0 else ["new"] * 2)
        assert (cut / "derived.json").exists() == (value == 2.0) and not name_replaced(cut / "pretrain").exists()
        assert base_of(cut / adapter.relative_to(run)) == 1.0
        assert list((cut / "bases").glob("*/*")) == [] or value == 2.0
    assert {(1.0,), (1.0, "begun"), (2.0, "begun"), (2.0, "begun", "saved")} <= found


def test_a_power_cut_while_a_stage_is_put_back_loses_nothing(folder):  # noqa: F811
    run = folder / "root/run"
    adapter = save(run, "sft", 3, 3.0, save(run, "pretrain", 4, 1.0))
    write_both(run, "old")
    set_stage_aside(run / "pretrain")
    write_both(run, "new")
    save(run, "pretrain", 0, 2.0)
    recording = Recording(folder / "root")
    with recording.watch():
        settle(run)
    states = list(recording.states())
    for state in states:
        cut = state.build(folder / "cut") / "run"
        settle(cut)
        assert read_value(cut) == base_of(cut / adapter.relative_to(run)) == 1.0
        assert read_both(cut) == ["old"] * 2 and not name_replaced(cut / "pretrain").exists()
    assert len(states) > 5


def test_a_restart_names_the_stage_that_it_replaces_where_the_command_does_not(tmp_path):
    run = tmp_path / "run"
    assert describe_restart(run / "sft", "my.toml") == [], "there is nothing to replace"
    for step in (8, 12):
        (run / f"sft/checkpoints/step-{step:08}").mkdir(parents=True)
    for given in ("my.toml", "quickstart", f"{tmp_path}/recipe.toml"):
        (line,) = describe_restart(run / "sft", given)
        assert line.startswith(f"{run}/sft (unfinished at step 12) is replaced, as run.out of {given} names it: it is ")
    (run / "sft/done.json").write_text("{}")
    assert "(finished at step 12)" in describe_restart(run / "sft", "my.toml")[0]
    for given in (run, run / "recipe.toml", f"{run}/../run/"):
        assert describe_restart(run / "sft", str(given)) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose pretraining is done; peaks of this machine are not measured."""
    place = tmp_path_factory.mktemp("trained")
    recipe = load_recipe(write_recipe(place), ['stages=["pretrain", "midtrain"]'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e13)
        assert run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
        yield place / "run"


def restart(run, each_step):
    """Restarts pretraining; each_step receives the finished steps, and what it returns is whether to stop."""
    steps = []

    def should_stop():
        steps.append(0)
        return bool(each_step(len(steps)))

    hooks = replace(NO_EVALS, should_stop=should_stop)
    return run_stage(load_recipe(run, RESTART), "pretrain", "never", quiet=True, hooks=hooks)


def read_tree(run):
    return {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.parent.name != "data"}


def test_a_restart_that_is_killed_before_its_first_checkpoint_is_undone_or_continued(
    trained, tmp_path, monkeypatch, capsys
):
    run, killed = shutil.copytree(trained, tmp_path / "run"), tmp_path / "killed"
    before = read_tree(run)

    def copy(step):
        if step == 1:
            shutil.copytree(run, killed)  # what a kill of this process would leave

    assert restart(run, copy)
    assert not name_replaced(run / "pretrain").exists() and load_recipe(run).pretrain.steps == 3
    again, plain = (shutil.copytree(killed, tmp_path / name) for name in ("again", "plain"))
    assert main(["train", "pretrain", str(plain)]) == 0
    printed = capsys.readouterr()
    assert "pretrain was done already" in printed.out and "so the stage is as it was before\n" in printed.err
    assert {path: read_tree(plain).get(path) for path in before} == before
    with pytest.raises(UserError, match=r"train pretrain .* puts back what it was"):
        parent_checkpoint(("pretrain", "midtrain"), "midtrain", killed)
    with pytest.raises(UserError, match=r"killed/pretrain: its restart ended .*/recipe.toml: give the command again$"):
        run_stage(load_recipe(killed), "pretrain", quiet=True)
    assert {path: read_tree(killed).get(path) for path in before} == before
    assert not run_stage(load_recipe(killed), "pretrain", quiet=True), "it is done, as it was"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # the launcher starts the same command again
    assert restart(again, lambda step: False) and not name_replaced(again / "pretrain").exists()
    newest = [checkpoint.load_checkpoint(path / "pretrain/checkpoints/step-00000003") for path in (run, again)]
    assert all(torch.equal(t, newest[1].tensors["model"][name]) for name, t in newest[0].tensors["model"].items())


@pytest.mark.parametrize("stage", ["pretrain", "midtrain"], ids=["resumed", "begun"])
def test_a_start_that_is_killed_before_its_first_step_leaves_the_files_of_the_run(
    trained, tmp_path, stage, monkeypatch
):
    run, killed = shutil.copytree(trained, tmp_path / "run"), tmp_path / "killed"
    (run / "pretrain/done.json").unlink()
    before = read_tree(run)

    def kill(*_):
        shutil.copytree(run, killed)
        raise KeyboardInterrupt

    monkeypatch.setitem(STAGE_BUILDERS, stage, kill)
    with pytest.raises(KeyboardInterrupt):
        run_stage(load_recipe(run, [f"{stage}.steps=7"]), stage, quiet=True)
    assert load_recipe(killed).stage_config(stage).steps == 7
    assert load_start_recipe(str(killed / "recipe.toml"), []).stage_config(stage).steps == 1
    for each in (run, killed):
        now = {path: content for path, content in read_tree(each).items() if path.parts[0] != "midtrain"}
        assert {path for path in now if now[path] != before.get(path)} <= {Path("pretrain/notices.jsonl")}
        assert now.keys() == before.keys() and not list_unfinished_starts(each)


@pytest.mark.parametrize("end", ["interrupt", "stop", "error after a checkpoint"])
def test_a_restart_that_ends_early_keeps_the_old_stage_unless_the_new_one_is_saved(trained, tmp_path, end, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    before = read_tree(run)

    def interrupt(step):
        if step == (3 if "after" in end else 1):
            if end == "stop":
                return True
            raise RuntimeError("a bug") if "error" in end else KeyboardInterrupt
        return False

    with pytest.raises((TrainingStopped, RuntimeError, KeyboardInterrupt)):
        restart(run, interrupt)
    assert not name_replaced(run / "pretrain").exists()
    if end == "interrupt":
        assert {path: read_tree(run).get(path) for path in before} == before
        assert "pretrain ended before its first checkpoint" in capsys.readouterr().err
    else:
        state = checkpoint.read_checkpoint_state(checkpoint.find_latest_checkpoint(run / "pretrain/checkpoints"))
        assert state["step"] == (1 if end == "stop" else 2) and not (run / "pretrain/done.json").exists()
        assert load_recipe(run).pretrain.learning_rate == 0.5
