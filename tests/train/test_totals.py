"""Running sums of a stage: added up step by step, whatever a step holds, and the same after a resume and a rollback."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fledgling.config import UserError
from fledgling.data.batch import IGNORE_INDEX
from fledgling.data.stream import MixtureStream
from fledgling.record import read_jsonl
from fledgling.runtime import device
from fledgling.train import loop, queued_step, run
from fledgling.train.hooks import NO_EVALS
from fledgling.train.loop import TrainingStopped
from fledgling.train.rl.rollout_stream import RolloutStream
from fledgling.train.saver import CheckpointSaver
from fledgling.train.stage import Eval
from fledgling.train.totals import Totals, read_recorded_totals
from tests.all_stages import make_all_stages_recipe


def test_sums_that_an_older_checkpoint_lacks_are_those_of_the_record(tmp_path):
    path = tmp_path / "sft" / "checkpoints" / "step-00000002"
    path.mkdir(parents=True)
    assert read_recorded_totals(path, 2) == {}
    lines = [{"step": 1, "tokens": 512}, {"step": 2, "tokens": 1024, "targets": None}, {"step": 3, "tokens": 1536}]
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    totals = Totals()
    totals.load_state_dict(read_recorded_totals(path, 2))
    assert (totals.tokens, totals.targets) == (1024, 0)


@pytest.fixture(autouse=True)
def known_peak(monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)


def read_run(recipe, stage):
    folder = Path(recipe.run.out) / stage
    return read_jsonl(folder / "metrics.jsonl"), json.loads((folder / "done.json").read_text())


@pytest.fixture
def uneven_rl(tmp_path, monkeypatch):
    """An RL stage whose steps have different numbers of rows, and the rows of each step."""
    rows, original = [], RolloutStream.next

    def longer_every_step(self):
        batches = original(self)
        batches = (batches * (5 - self.step % 3))[: 5 - self.step % 3]
        rows.append((self.step, sum(batch.tokens.numel() for batch in batches)))
        return batches

    monkeypatch.setattr(RolloutStream, "next", longer_every_step)
    return make_all_stages_recipe(tmp_path, stages='["rl"]'), rows


def test_the_tokens_of_rl_are_the_sum_of_its_steps(uneven_rl):
    recipe, rows = uneven_rl
    run.run_stage(recipe, "rl", quiet=True, hooks=NO_EVALS)
    lines, done = read_run(recipe, "rl")
    sums = [sum(tokens for _, tokens in rows[: step + 1]) for step in range(len(rows))]
    assert len({tokens for _, tokens in rows}) > 1, "the steps differ"
    assert [line["tokens"] for line in lines] == sums and done["tokens"] == sums[-1]
    assert all(later["tokens"] > earlier["tokens"] for earlier, later in pairwise(lines))


def test_sums_are_resumed_after_a_stop(uneven_rl, monkeypatch):
    recipe, rows = uneven_rl
    monkeypatch.setattr(CheckpointSaver, "failed", property(lambda saver: len(rows) == 2))
    with pytest.raises(TrainingStopped):
        run.run_stage(recipe, "rl", quiet=True, hooks=NO_EVALS)
    rows.append((0, 0))
    run.run_stage(recipe, "rl", quiet=True, hooks=NO_EVALS)
    lines, done = read_run(recipe, "rl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert done["tokens"] == lines[-1]["tokens"] == sum(tokens for _, tokens in rows)
    spent = sum(line["seconds"] for line in lines)
    assert done["training_seconds"] == pytest.approx(spent) and done["training_seconds"] <= done["seconds"]


def test_done_counts_the_rows_that_were_read(tmp_path):
    """A batch that is derived from the model's size is no setting to multiply."""
    recipe = make_all_stages_recipe(tmp_path, **{"pretrain.steps": 2, "model.width": 16})
    recipe = replace(recipe, pretrain=replace(recipe.pretrain, batch_tokens=None))
    run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    lines, done = read_run(recipe, "pretrain")
    assert done["tokens"] == lines[-1]["tokens"] == 2 * lines[0]["tokens"] > 0


def test_evaluations_are_no_seconds_of_training(tmp_path, monkeypatch):
    clock = [0.0]

    def tick(seconds=1.0):
        clock[0] += seconds
        return clock[0]

    def slow(step, last):
        tick(1000.0)
        return []

    for module in (loop, queued_step):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=tick))

    recipe = make_all_stages_recipe(tmp_path, **{"pretrain.steps": 2, "pretrain.eval_every": 1})
    original = run.build_supervised_stage
    monkeypatch.setitem(
        run.STAGE_BUILDERS,
        "pretrain",
        lambda name, context: replace(original(name, context), evals=(Eval("slow", 1, slow),)),
    )
    run.run_stage(recipe, "pretrain", quiet=True)
    _, done = read_run(recipe, "pretrain")
    assert clock[0] == 3004.0 and done["training_seconds"] == 2.0


def test_an_older_checkpoint_without_sums_begins_at_zero():
    totals = Totals(5, 4, 1.0)
    totals.load_state_dict({"tokens": 7})
    assert totals.state_dict() == {"tokens": 7, "targets": 0, "training_seconds": 0.0}


def test_a_stage_whose_steps_have_no_targets_is_an_error_and_not_done(tmp_path, monkeypatch):
    original = MixtureStream.next

    def without_targets(self):
        return [replace(batch, targets=torch.full_like(batch.targets, IGNORE_INDEX)) for batch in original(self)]

    monkeypatch.setattr(MixtureStream, "next", without_targets)
    recipe = make_all_stages_recipe(tmp_path, **{"pretrain.steps": 2})
    with pytest.raises(UserError, match="pretrain: none of 2 steps had a token to learn from"):
        run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    assert not (Path(recipe.run.out) / "pretrain" / "done.json").exists()
