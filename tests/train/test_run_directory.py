"""Links in a run: what they lead to is not deleted, is locked too, and is created again where it is missing."""

from pathlib import Path

import pytest

from fledgling.config import UserError, load_recipe
from fledgling.record.run_lock import hold_lock
from fledgling.record.run_requests import request_action
from fledgling.speedrun.stages import run_stages
from fledgling.train import loop, run
from fledgling.train.loop import TrainingStopped, queue_step
from fledgling.train.replaced_stage import remove_replaced_stage, set_stage_aside
from fledgling.train.run_directory import lock_stage, remove_dead_links
from tests.fast_run import write_recipe
from tests.ranks import on_ranks


def remove_stage(stage_dir):
    """Deletes a stage as a restart does."""
    set_stage_aside(stage_dir)
    remove_replaced_stage(stage_dir)


def pressing(run_dir, action):
    """Returns `queue_step`, during which a watcher asks for an action."""

    def press(*arguments, **options):
        if run_dir.is_dir():  # else it is a trial step, before the run
            request_action(run_dir, action)
        return queue_step(*arguments, **options)

    return press


@pytest.fixture
def runs(tmp_path):
    """Two runs; the stage of b is a link to that of a."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "sft").mkdir()
    (tmp_path / "a" / "sft" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "b" / "sft").symlink_to("../a/sft")
    return tmp_path / "a", tmp_path / "b"


def test_a_restart_that_fails_before_its_first_step_leaves_the_stage_that_was_trained(tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path)
    run_stages(load_recipe(recipe, ['stages=["pretrain"]']), quiet=True)
    stage = tmp_path / "run" / "pretrain"
    before = {path.relative_to(stage): path.read_bytes() for path in stage.rglob("*") if path.is_file()}

    def fail(*_):
        raise UserError("no data")

    monkeypatch.setitem(run.STAGE_BUILDERS, "pretrain", fail)
    with pytest.raises(UserError):
        run.run_stage(load_recipe(tmp_path / "run"), "pretrain", resume="never", quiet=True)
    after = {path.relative_to(stage): path.read_bytes() for path in stage.rglob("*") if path.is_file()}
    assert {name: after.get(name) for name in before} == before


def test_a_restart_that_fails_within_its_first_step_leaves_the_stage_that_was_trained(tmp_path):
    recipe = write_recipe(tmp_path)
    run_stages(load_recipe(recipe, ['stages=["pretrain", "rl"]']), quiet=True)
    done = (tmp_path / "run" / "rl" / "done.json").read_bytes()
    (tmp_path / "broken.py").write_text("def reward(question, answer):\n    return {}[answer]\n")
    broken = load_recipe(tmp_path / "run", [f'rl.rewards={{"{tmp_path / "broken.py"}:reward" = 1.0}}'])
    with pytest.raises(UserError, match="KeyError"):
        run.run_stage(broken, "rl", resume="never", quiet=True)
    assert (tmp_path / "run" / "rl" / "done.json").read_bytes() == done
    assert list((tmp_path / "run" / "rl" / "checkpoints").glob("step-*/manifest.json"))


def test_of_a_linked_stage_only_the_link_is_removed(runs, capsys):
    a, b = runs
    remove_stage(b / "sft")
    assert not (b / "sft").is_symlink() and (a / "sft" / "metrics.jsonl").exists()
    assert "is a link to" in capsys.readouterr().err
    remove_stage(a / "sft")
    assert not (a / "sft").exists()
    remove_stage(a / "sft")


def test_a_linked_stage_is_locked_where_it_is(runs):
    a, b = runs
    with lock_stage(b, "sft"):
        for run in runs:
            with pytest.raises(UserError, match="is being written by process"), hold_lock(run, "sft"):
                pass
    with hold_lock(a, "sft"), pytest.raises(UserError, match="a is being written by process"), lock_stage(b, "sft"):
        pass
    with hold_lock(b, "sft"):
        pass


def test_a_stop_in_the_last_step_of_a_stage_ends_the_run_and_a_request_between_two_is_kept(
    tmp_path, monkeypatch, capsys
):
    file, out = write_recipe(tmp_path), tmp_path / "run"
    recipe = load_recipe(file, ['stages=["pretrain", "midtrain", "sft"]'])
    record_end = run.record_end

    def press_between(state, context, saver):
        record_end(state, context, saver)
        request_action(out, "batch")

    out.mkdir()
    request_action(out, "evaluate")  # of an earlier process
    with monkeypatch.context() as patch, pytest.raises(TrainingStopped, match="after step 1"):
        patch.setattr(loop, "queue_step", pressing(out, "stop"))
        run_stages(recipe, quiet=True)
    assert "dropped what was asked of an earlier process: evaluate" in capsys.readouterr().err
    assert (out / "pretrain" / "done.json").exists() and not (out / "midtrain").exists()
    monkeypatch.setattr(run, "record_end", press_between)
    assert run_stages(recipe, quiet=True) == ["midtrain", "sft"]
    assert not (out / "midtrain" / "batch.json").exists() and (out / "sft" / "batch.json").exists()


def test_a_stop_in_the_last_step_of_the_last_stage_finishes_the_run(tmp_path, monkeypatch):
    recipe = load_recipe(write_recipe(tmp_path), ['stages=["pretrain"]'])
    monkeypatch.setattr(loop, "queue_step", pressing(tmp_path / "run", "stop"))
    assert run_stages(recipe, quiet=True) == ["pretrain"]


def test_links_that_lead_nowhere_are_removed_and_others_kept(runs, capsys):
    a, b = runs
    (b / "tokenizer").symlink_to("../shared/tokenizer")
    (b / "data").symlink_to(a)
    remove_dead_links(b)
    assert not (b / "tokenizer").is_symlink() and (b / "data").is_symlink()
    assert "../shared/tokenizer, which does not exist here" in capsys.readouterr().err


def start_on_rank(recipe_file: str) -> str:
    """Starts all stages as one of several ranks; returns how that ended."""
    try:
        return str(run_stages(load_recipe(recipe_file), quiet=True))
    except (UserError, SystemExit) as end:
        return str(end)


def test_one_rank_says_that_the_run_is_locked_and_the_others_end_quietly(tmp_path):
    file = write_recipe(tmp_path)
    with hold_lock(Path(load_recipe(file).run.out), "another start"):
        first, second = on_ranks(2, start_on_rank, str(file))
    assert "is being written by process" in first and second == "1"
