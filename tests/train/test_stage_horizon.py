"""A stage that makes fewer steps runs its whole schedule, and the same again when it is resumed or replayed."""

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import load_recipe
from fledgling.optim.schedule import trapezoidal_schedule
from fledgling.record import checkpoint, read_jsonl
from fledgling.runtime import device
from fledgling.train import run
from fledgling.train.hooks import NO_EVALS
from fledgling.train.loop import TrainingStopped
from fledgling.train.stage_horizon import StageHorizon
from fledgling.verify.verify import verify_run
from tests.fast_run import write_recipe


@given(st.lists(st.integers(1, 99), max_size=4, unique=True).map(sorted), st.randoms(use_true_random=False))
def test_progress_rises_to_one_without_a_jump_whatever_was_changed(afters, random):
    horizon = StageHorizon(100, most=115)
    for after in afters:
        if after < horizon.steps:
            horizon.change(after, random.randint(after + 1, horizon.limit))
    progress = [horizon.progress(step) for step in range(horizon.steps + 1)]
    assert progress[0] == 0 and progress[-1] == pytest.approx(1)
    assert all(a < b for a, b in pairwise(progress))
    for after, _ in horizon.changes:
        before = StageHorizon(100, [change for change in horizon.changes if change[0] < after])
        assert horizon.progress(after) == pytest.approx(before.progress(after))


def test_without_a_change_progress_is_the_share_of_the_steps():
    assert [StageHorizon(7).progress(step) for step in range(8)] == [step / 7 for step in range(8)]


@pytest.mark.parametrize("after", [30, 70, 95])  # before, at and in the decay
def test_a_shortened_schedule_decays_to_its_end_without_a_jump(after):
    schedule = partial(trapezoidal_schedule, total_steps=100, warmup_steps=5, decay_fraction=0.3)
    horizon = StageHorizon(100)
    steepest = max(schedule(step / 100) - schedule((step + 1) / 100) for step in range(99))
    horizon.change(after, after + (100 - after) // 2)
    rates = [schedule(horizon.progress(step)) for step in range(horizon.steps)]
    falls = [a - b for a, b in pairwise(rates)]
    assert max(falls) < 3 * steepest and min(falls[5:]) >= -1e-12
    assert rates[-1] < 3 * steepest, "the last step is near the end of the decay"


def test_changes_of_another_plan_are_kept_and_not_used():
    horizon = StageHorizon(10)
    horizon.change(4, 8)
    state = json.loads(json.dumps(horizon.state_dict()))
    same, other, recorded = StageHorizon(10), StageHorizon(20), StageHorizon(10, [(2, 5)], is_recorded=True)
    for each in (same, other, recorded):
        each.load_state_dict(state)
    assert same.steps == 8 and other.steps == 20 and recorded.steps == 5
    assert other.state_dict() == state


def read_record(folder):
    stage = Path(folder) / "pretrain"
    newest = checkpoint.load_checkpoint(checkpoint.find_latest_checkpoint(stage / "checkpoints"))
    return newest, [(line["loss"], line["lr_multiplier"]) for line in read_jsonl(stage / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("changes", "made"), [({3: 8, 5: 7}, 7), ({3: 9, 6: 11}, 11)], ids=["a machine that slows down", "a faster one"]
)
def test_a_changed_stage_resumes_and_verifies_as_if_it_had_not_stopped(tmp_path, monkeypatch, changes, made):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e15)
    options = ['stages=["pretrain"]', "pretrain.steps=10", "pretrain.save_every=2", "pretrain.decay_fraction=0.5"]
    recipe = load_recipe(write_recipe(tmp_path), options)
    hooks = replace(NO_EVALS, choose_steps=lambda horizon, step, seconds: changes.get(step, horizon.steps))
    assert run.run_stage(recipe, "pretrain", quiet=True, hooks=hooks)
    whole, lines = read_record(recipe.run.out)
    done = json.loads((Path(recipe.run.out) / "pretrain" / "done.json").read_text())
    assert (done["step"], done["planned_steps"], len(lines)) == (made, 10, made)
    assert whole.state["horizon"] == {"10": [list(change) for change in changes.items()]}
    assert 0 < lines[-1][1] < lines[-2][1] < lines[-3][1], "the decay is made to its end"
    found = verify_run(Path(recipe.run.out), count=2, seconds=20, seed=0)
    assert found["verdict"] == "holds", json.dumps(found, indent=1)
    shutil.rmtree(Path(recipe.run.out) / "pretrain")
    counts = iter(range(1, 99))
    with pytest.raises(TrainingStopped):
        run.run_stage(recipe, "pretrain", quiet=True, hooks=replace(hooks, should_stop=lambda: next(counts) >= 4))
    assert run.run_stage(recipe, "pretrain", quiet=True, hooks=hooks)
    again, lines_again = read_record(recipe.run.out)
    assert lines_again == lines and again.state["horizon"] == whole.state["horizon"]
    for group, tensors in whole.tensors.items():
        assert all(again.tensors[group][name].equal(tensor) for name, tensor in tensors.items())
