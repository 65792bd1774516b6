"""Stopping and resuming equals never stopping, bit for bit, in every stage, from any step (most at full size)."""

import os
import shutil

import pytest

from fledgling.config import STAGES
from fledgling.record import checkpoint, read_jsonl
from fledgling.train import loop, run
from tests.all_stages import make_all_stages_recipe
from tests.stop_request import StopRequest


def tensors(out, stage):
    found = checkpoint.load_checkpoint(checkpoint.find_latest_checkpoint(out / stage / "checkpoints"))
    return {f"{g}.{n}": t for g, group in found.tensors.items() for n, t in group.items()}, found.state


PASSES = {
    "rl.epochs": 2,
    "rl.minibatches": 2,
    "rl.steps": 8,
    "rl.kl_weight": 0.05,
    "rl.kl_target": 0.001,
    "rl.save_every": 0,
}
CASES = {
    **{stage: (stage, {}) for stage in STAGES},
    "grpo in passes": (
        "rl",
        {**PASSES, "rl.loss_normalization": "sequence", "rl.advantage_normalization": "leave_one_out"},
    ),
    "ppo": ("rl", {"rl.algorithm": "ppo"}),
    "stale answers": ("rl", {"rl.stale_rounds": 1}),
    "gspo": ("rl", {"rl.algorithm": "gspo"}),
    "cispo": ("rl", {"rl.algorithm": "cispo"}),
    "dr_grpo": ("rl", {"rl.algorithm": "dr_grpo"}),
    **{name: ("dpo", {"dpo.objective": name}) for name in ("ipo", "simpo", "orpo", "kto")},
    "reward": ("dpo", {"dpo.objective": "reward", "stages": '["pretrain", "midtrain", "sft", "dpo"]'}),
    "ppo in passes": (
        "rl",
        {**PASSES, "rl.algorithm": "ppo", "rl.entropy_weight": 0.01, "rl.advantage_normalization": "zscore"},
    ),
}


EVERY_STEP = bool(os.environ.get("FLEDGLING_FULL"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of all stages that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = make_all_stages_recipe(folder)
    for stage in STAGES:
        assert run.run_stage(recipe, stage, quiet=True)
    return folder, recipe


@pytest.mark.parametrize("case", CASES)
def test_stopping_and_resuming_equals_not_stopping(finished, case, monkeypatch):
    folder, _ = finished
    stage, settings = CASES[case]
    recipe, out = make_all_stages_recipe(folder, **settings), folder / "run"
    shutil.rmtree(out / stage)
    assert run.run_stage(recipe, stage, quiet=True)
    whole, state = tensors(out, stage)
    lines = [line["loss"] for line in read_jsonl(out / stage / "metrics.jsonl")]
    # 3 is between two periodic saves and within a round of several passes; pretraining stops at every step here too.
    for stop_after in (1, 2, 3) if EVERY_STEP or case == "pretrain" else (3,):
        shutil.rmtree(out / stage)
        with monkeypatch.context() as patch:
            patch.setattr(run, "catch_stop_signals", StopRequest(stop_after))
            with pytest.raises(loop.TrainingStopped) as stopped:
                run.run_stage(recipe, stage, quiet=True)
        assert stopped.value.step == stop_after
        assert run.run_stage(recipe, stage, quiet=True)
        again, state_again = tensors(out, stage)
        assert set(again) == set(whole)
        for name, tensor in whole.items():
            assert again[name].equal(tensor), f"{case}: {name} differs after stopping at {stop_after}"
        assert state_again["stream"] == state["stream"]
        assert [line["loss"] for line in read_jsonl(out / stage / "metrics.jsonl")] == lines


def test_a_finished_stage_is_left_alone(finished):
    folder, recipe = finished
    before = checkpoint.find_latest_checkpoint(folder / "run" / "sft" / "checkpoints").stat().st_mtime_ns
    assert run.run_stage(recipe, "sft", quiet=True) is False
    assert checkpoint.find_latest_checkpoint(folder / "run" / "sft" / "checkpoints").stat().st_mtime_ns == before
