"""Steps that are not finite: they change no weight, are counted, and end the stage or roll it back, bit for bit."""

import math
import os
import shutil
from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.record import checkpoint, read_jsonl
from fledgling.runtime import device
from fledgling.train import loop, run
from fledgling.train.health import MAX_BAD_STEPS, Health
from fledgling.train.hooks import NO_EVALS
from tests.all_stages import make_all_stages_recipe
from tests.bad_steps import make_steps_bad
from tests.ranks import on_ranks
from tests.stop_request import StopRequest

STEPS = {f"{stage}.{key}": value for stage in ("pretrain", "dpo", "rl") for key, value in {"steps": 8}.items()}
BAD_STEPS = {3, 4, 5}  # positions in the data
# Steps after which a run is stopped: never, at a checkpoint, among the bad steps, after the rollback
STOPS = (0, 1, 2, 4, 5, 7) if os.environ.get("FLEDGLING_FULL") else (0, 2, 4, 7)


def skip_batches(patch, at, steps, stage="pretrain"):
    """Skips `steps` steps of a stage's data after the first `at`: the expected outcome of a rollback."""
    build = run.STAGE_BUILDERS[stage]

    def patched_builder(name, context):
        built = build(name, context)
        original_next = built.batches.next

        def skipping_next():
            if built.batches.step == at:
                built.batches.skip(steps)
            return original_next()

        built.batches.next = skipping_next
        return built

    patch.setitem(run.STAGE_BUILDERS, stage, patched_builder)


def run_without_evals(recipe, stage="pretrain"):
    return run.run_stage(recipe, stage, quiet=True, hooks=NO_EVALS)


def load_outcome(out, stage="pretrain"):
    loaded = checkpoint.load_checkpoint(checkpoint.find_latest_checkpoint(out / stage / "checkpoints"))
    return {f"{g}.{n}": t for g, group in loaded.tensors.items() for n, t in group.items()}, loaded.state


def are_equal(tensors, others):
    return tensors.keys() == others.keys() and all(tensors[key].equal(others[key]) for key in tensors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("health")


pytestmark = pytest.mark.usefixtures("one_thread_known_peak")


def recipe_for(folder, **settings):
    shutil.rmtree(folder / "run", ignore_errors=True)
    return make_all_stages_recipe(folder, **{**STEPS, "pretrain.save_every": 2, **settings})


@pytest.mark.parametrize("kind", ["both", "gradient", "value"])
def test_a_bad_step_changes_nothing_and_is_counted(folder, monkeypatch, kind):
    recipe = recipe_for(folder, **{"pretrain.save_every": 1, "pretrain.keep_checkpoints": 9})
    make_steps_bad(monkeypatch, {2, 3, 5}, kind)
    assert run_without_evals(recipe)
    at = {
        int(path.name[5:]): checkpoint.load_checkpoint(path).tensors
        for path in (folder / "run/pretrain/checkpoints").glob("step-*")
    }
    for step in range(2, 9):
        unchanged = all(
            at[step][group][name].equal(t)
            for group in ("model", "optimizer")
            for name, t in at[step - 1][group].items()
        )
        assert unchanged == (step in (3, 4, 6)), f"step {step}"
    assert all(t.isfinite().all() for t in at[8]["model"].values())
    lines = read_jsonl(folder / "run/pretrain/metrics.jsonl")
    assert [line.get("skipped", 0) for line in lines] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert all((line["loss"] is None or line["gradient_norm"] is None) == (line["step"] in (3, 4, 6)) for line in lines)


def test_too_many_bad_steps_in_a_row_end_the_stage(folder, monkeypatch):
    recipe = recipe_for(folder)
    make_steps_bad(monkeypatch, BAD_STEPS)
    with pytest.raises(UserError, match=f"not finite for {MAX_BAD_STEPS} steps up to 6; .*run.max_rollbacks"):
        run_without_evals(recipe)
    assert all(t.isfinite().all() for t in load_outcome(folder / "run")[0].values())


def run_without_bad_steps(folder, patch, stage="pretrain", **settings):
    """Returns the outcome of a run that skips the batches from step 2 to the last bad one."""
    with patch.context() as inner:
        skip_batches(inner, 2, 4, stage)
        assert run_without_evals(recipe_for(folder, **settings), stage)
    return load_outcome(folder / "run", stage)


def test_a_rollback_skips_the_bad_batches_wherever_the_run_is_stopped(folder, monkeypatch):
    reference, state = run_without_bad_steps(folder, monkeypatch)
    make_steps_bad(monkeypatch, BAD_STEPS)
    for stop_after in STOPS:
        recipe = recipe_for(folder, **{"run.max_rollbacks": 1})
        if stop_after:
            stop_run(recipe, monkeypatch, stop_after)
        assert run_without_evals(recipe)
        tensors, at_end = load_outcome(folder / "run")
        assert are_equal(tensors, reference) and at_end["stream"] == state["stream"] == {"step": 12, "skipped": 4}, (
            stop_after
        )
        assert at_end["health"] == {"skipped": 3, "bad": 0, "rollbacks": 1, "empty": 0, "rescaled": 0}
        assert [line["step"] for line in read_jsonl(folder / "run/pretrain/metrics.jsonl")] == list(range(1, 9))
        notices = [line["text"] for line in read_jsonl(folder / "run/pretrain/notices.jsonl")]
        assert sum("back to the weights of step 2, on with the batches after step 6" in text for text in notices) == 1


def stop_run(recipe, monkeypatch, after):
    """Runs the stage for `after` steps and stops it."""
    with monkeypatch.context() as patch:
        patch.setattr(run, "catch_stop_signals", StopRequest(after))
        with pytest.raises(loop.TrainingStopped):
            run_without_evals(recipe)


@pytest.mark.parametrize("keep", [1, 3])
def test_a_checkpoint_saved_between_bad_steps_is_gone_after_the_rollback(folder, monkeypatch, keep):
    reference, _ = run_without_bad_steps(folder, monkeypatch)
    recipe = recipe_for(folder, **{"run.max_rollbacks": 1, "pretrain.keep_checkpoints": keep})
    make_steps_bad(monkeypatch, BAD_STEPS)
    directory = folder / "run/pretrain/checkpoints"
    stop_run(recipe, monkeypatch, 5)
    assert checkpoint.find_latest_checkpoint(directory).name == "step-00000005"
    stop_run(recipe, monkeypatch, 1)  # the sixth step is bad too: back, one step on, stopped
    latest = checkpoint.load_checkpoint(checkpoint.find_latest_checkpoint(directory))
    assert latest.state["health"] == {"skipped": 3, "bad": 0, "rollbacks": 1, "empty": 0, "rescaled": 0}
    step_before = (
        2 if keep > 1 else 5
    )  # the only one left was saved between the bad steps, with the weights before them
    assert latest.state["step"] == step_before + 1
    assert run_without_evals(recipe)
    if keep > 1:
        assert are_equal(load_outcome(folder / "run")[0], reference)


def test_there_are_no_more_rollbacks_than_allowed(folder, monkeypatch):
    make_steps_bad(monkeypatch, set(range(3, 100)))
    with pytest.raises(UserError, match="not finite"):
        run_without_evals(recipe_for(folder, **{"run.max_rollbacks": 2}))
    texts = [line["text"] for line in read_jsonl(folder / "run/pretrain/notices.jsonl")]
    assert [text.rpartition("rollback ")[2] for text in texts if "rollback " in text] == ["1)", "2)"]


def test_before_the_first_checkpoint_a_rollback_restores_the_start(folder, monkeypatch):
    make_steps_bad(monkeypatch, {0, 1, 2})
    assert run_without_evals(recipe_for(folder, **{"run.max_rollbacks": 1, "pretrain.save_every": 0}))
    assert load_outcome(folder / "run")[1]["stream"] == {"step": 11, "skipped": 3}


@pytest.mark.parametrize(("stage", "stale_rounds"), [("dpo", 0), ("rl", 0), ("rl", 1)])
def test_the_streams_of_dpo_and_rl_skip_too(folder, monkeypatch, stage, stale_rounds):
    recipe = recipe_for(folder, **{"run.max_rollbacks": 1, "rl.stale_rounds": stale_rounds})
    for before in ("pretrain", "midtrain", "sft", "dpo")[: 4 if stage == "rl" else 3]:
        assert run_without_evals(recipe, before)
    with monkeypatch.context() as patch:
        skip_batches(patch, 2, 4, stage)
        assert run_without_evals(recipe, stage)
    reference, state = load_outcome(folder / "run", stage)
    shutil.rmtree(folder / "run" / stage)
    make_steps_bad(monkeypatch, BAD_STEPS, stage=stage)
    assert run_without_evals(recipe, stage)
    tensors, at_end = load_outcome(folder / "run", stage)
    assert are_equal(tensors, reference) and at_end["stream"]["step"] == state["stream"]["step"] == 12


def run_with_bad_rank(recipe):
    device.measure_peak_flops = lambda device, dtype: 1e9
    make_steps_bad(pytest.MonkeyPatch(), BAD_STEPS, ranks=(1,))
    return run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)


def test_a_bad_batch_of_one_rank_rolls_all_back(folder, monkeypatch):
    wide = {"pretrain.batch_tokens": 1024}
    reference, _ = run_without_bad_steps(folder, monkeypatch, **wide)
    recipe = recipe_for(folder, **wide, **{"run.max_rollbacks": 1})
    assert on_ranks(2, run_with_bad_rank, recipe) == [True, True]
    assert are_equal(load_outcome(Path(recipe.run.out))[0], reference)


def test_health_counts_bad_steps():
    health = Health()
    limits = [health.record_step(*step) for step in ((1.0, math.nan), (math.inf, 1.0), (1.0, 1.0), (math.nan, 1.0))]
    assert limits == [False] * 4 and (health.skipped, health.bad) == (3, 1)
    assert [health.record_step(1.0, math.nan) for _ in range(2)] == [False, True]
    restored = Health()
    restored.load_state_dict(health.state_dict())
    assert restored == health and restored.metrics() == {"skipped": 5}


def test_a_step_without_targets_is_counted_and_ends_no_row_of_bad_steps():
    health = Health()
    steps = ((math.nan, 1.0, False), (0.0, 0.0, False), (math.nan, 1.0, False), (0.0, 0.0, False))
    assert [health.record_step(*step) for step in steps] == [False] * 4
    assert health.metrics() == {"skipped": 2, "empty": 2} and health.bad == 2
    assert health.record_step(math.nan, 1.0, False), "three bad steps with empty ones between them are three in a row"
