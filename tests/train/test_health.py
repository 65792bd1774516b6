"""Loss or gradient not finite: it never reaches the weights, is counted, ends the stage or sends it back; exactly."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.record import checkpoint, read_jsonl
from fledgling.runtime import device
from fledgling.train import loop, run
from fledgling.train.health import MAX_BAD_STEPS, Health
from tests.ranks import on_ranks, one_thread
from tests.tiny import tiny

STEPS = {f"{stage}.{key}": value for stage in ("pretrain", "dpo", "rl") for key, value in {"steps": 8}.items()}
WINDOW = {3, 4, 5}  # positions in the data


def spoilt(value, kind):
    """A loss that is not finite, or whose gradient alone or whose value alone is not."""
    if kind == "both":
        return value * math.nan
    if kind == "value":
        return value + math.inf
    kept = value.clone()
    kept.register_hook(lambda gradient: gradient * math.nan)
    return kept


def spoil(patch, positions, kind="both", ranks=(0, 1), stage="pretrain"):
    """Make the batches at some positions of a stage's data bad ones."""
    build = run.STAGE_BUILDERS[stage]

    def made(name, context):
        built = build(name, context)

        def loss(model, batch):
            value = built.loss(model, batch)
            here = built.batches.step - 1 in positions and context.world.rank in ranks
            return spoilt(value, kind) if here else value

        return replace(built, loss=loss)

    patch.setitem(run.STAGE_BUILDERS, stage, made)


def leave_out(patch, at, steps, stage="pretrain"):
    """Skip `steps` steps of a stage's data after the first `at`: what a rollback is to come to."""
    build = run.STAGE_BUILDERS[stage]

    def made(name, context):
        built = build(name, context)
        following = built.batches.next

        def next_one():
            if built.batches.step == at:
                built.batches.skip(steps)
            return following()

        built.batches.next = next_one
        return built

    patch.setitem(run.STAGE_BUILDERS, stage, made)


def no_evals(evals):
    return ()


def work(recipe, stage="pretrain"):
    return run.run_stage(recipe, stage, quiet=True, select_evals=no_evals)


def outcome(out, stage="pretrain"):
    found = checkpoint.load_checkpoint(checkpoint.find_latest_checkpoint(out / stage / "checkpoints"))
    return {f"{g}.{n}": t for g, group in found.tensors.items() for n, t in group.items()}, found.state


def same(one, other, apart=()):
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one if key not in apart)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("health")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
    with one_thread():
        yield


def recipe_for(folder, **settings):
    shutil.rmtree(folder / "run", ignore_errors=True)
    return tiny(folder, **{**STEPS, "pretrain.save_every": 2, **settings})


@pytest.mark.parametrize("kind", ["both", "gradient", "value"])
def test_a_bad_step_moves_nothing_and_is_counted(folder, monkeypatch, kind):
    recipe = recipe_for(folder, **{"pretrain.save_every": 1, "pretrain.keep_checkpoints": 9})
    spoil(monkeypatch, {2, 3, 5}, kind)
    assert work(recipe)
    at = {
        int(path.name[5:]): checkpoint.load_checkpoint(path).tensors
        for path in (folder / "run/pretrain/checkpoints").glob("step-*")
    }
    for step in range(2, 9):
        still = all(
            at[step][group][name].equal(t)
            for group in ("model", "optimizer")
            for name, t in at[step - 1][group].items()
        )
        assert still == (step in (3, 4, 6)), f"step {step}"
    assert all(t.isfinite().all() for t in at[8]["model"].values())
    lines = read_jsonl(folder / "run/pretrain/metrics.jsonl")
    assert [line.get("skipped", 0) for line in lines] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert all((line["loss"] is None or line["gradient_norm"] is None) == (line["step"] in (3, 4, 6)) for line in lines)


def test_too_many_in_a_row_end_the_stage(folder, monkeypatch):
    recipe = recipe_for(folder)
    spoil(monkeypatch, WINDOW)
    with pytest.raises(UserError, match=f"not finite for {MAX_BAD_STEPS} steps up to 6; .*run.max_rollbacks"):
        work(recipe)
    assert all(t.isfinite().all() for t in outcome(folder / "run")[0].values())


def expected(folder, patch, stage="pretrain", **settings):
    """The run that never saw what was read from step 2 to the end of the window."""
    with patch.context() as inner:
        leave_out(inner, 2, 4, stage)
        assert work(recipe_for(folder, **settings), stage)
    return outcome(folder / "run", stage)


def test_back_to_the_checkpoint_and_past_the_window_wherever_it_is_stopped(folder, monkeypatch):
    whole, state = expected(folder, monkeypatch)
    spoil(monkeypatch, WINDOW)
    for stop_after in (0, 1, 2, 4, 5, 7):
        recipe = recipe_for(folder, **{"run.max_rollbacks": 1})
        if stop_after:
            calls = iter(range(100))
            with monkeypatch.context() as patch:
                patch.setattr(
                    run, "catch_stop_signals", lambda calls=calls, n=stop_after: _Asked(lambda: next(calls) + 1 >= n)
                )
                with pytest.raises(loop.TrainingStopped):
                    work(recipe)
        assert work(recipe)
        found, at_end = outcome(folder / "run")
        assert same(found, whole) and at_end["stream"] == state["stream"] == {"step": 12, "skipped": 4}, stop_after
        assert at_end["health"] == {"skipped": 3, "bad": 0, "rollbacks": 1}
        assert [line["step"] for line in read_jsonl(folder / "run/pretrain/metrics.jsonl")] == list(range(1, 9))
        notices = [line["text"] for line in read_jsonl(folder / "run/pretrain/notices.jsonl")]
        assert sum("back to the weights of step 2, on with the batches after step 6" in text for text in notices) == 1


def test_no_more_often_than_allowed(folder, monkeypatch):
    spoil(monkeypatch, set(range(3, 100)))
    with pytest.raises(UserError, match="not finite"):
        work(recipe_for(folder, **{"run.max_rollbacks": 2}))
    texts = [line["text"] for line in read_jsonl(folder / "run/pretrain/notices.jsonl")]
    assert [text.rpartition("rollback ")[2] for text in texts if "rollback " in text] == ["1)", "2)"]


def test_before_the_first_checkpoint_it_goes_back_to_the_beginning(folder, monkeypatch):
    spoil(monkeypatch, {0, 1, 2})
    assert work(recipe_for(folder, **{"run.max_rollbacks": 1, "pretrain.save_every": 0}))
    assert outcome(folder / "run")[1]["stream"] == {"step": 11, "skipped": 3}


@pytest.mark.parametrize("stage", ["dpo", "rl"])
def test_in_the_other_streams_too(folder, monkeypatch, stage):
    recipe = recipe_for(folder, **{"run.max_rollbacks": 1})
    for before in ("pretrain", "midtrain", "sft", "dpo")[: 4 if stage == "rl" else 3]:
        assert work(recipe, before)
    with monkeypatch.context() as patch:
        leave_out(patch, 2, 4, stage)
        assert work(recipe, stage)
    whole, state = outcome(folder / "run", stage)
    shutil.rmtree(folder / "run" / stage)
    spoil(monkeypatch, WINDOW, stage=stage)
    assert work(recipe, stage)
    found, at_end = outcome(folder / "run", stage)
    assert same(found, whole) and at_end["stream"]["step"] == state["stream"]["step"] == 12


def spoilt_on_rank_one(recipe):
    device.measure_peak_flops = lambda device, dtype: 1e9
    spoil(pytest.MonkeyPatch(), WINDOW, ranks=(1,))
    return run.run_stage(recipe, "pretrain", quiet=True, select_evals=no_evals)


def test_a_bad_batch_of_one_rank_sends_all_back(folder, monkeypatch):
    wide = {"pretrain.batch_tokens": 1024}
    whole, _ = expected(folder, monkeypatch, **wide)
    recipe = recipe_for(folder, **wide, **{"run.max_rollbacks": 1})
    assert on_ranks(2, spoilt_on_rank_one, recipe) == [True, True]
    assert same(outcome(Path(recipe.run.out))[0], whole)


def test_health_counts():
    health = Health()
    told = [health.record_step(*one) for one in ((1.0, math.nan), (math.inf, 1.0), (1.0, 1.0), (math.nan, 1.0))]
    assert told == [False] * 4 and (health.skipped, health.bad) == (3, 1)
    assert [health.record_step(1.0, math.nan) for _ in range(2)] == [False, True]
    again = Health()
    again.load_state_dict(health.state_dict())
    assert again == health and again.metrics() == {"skipped": 5}


class _Asked:
    """A context that gives a fixed answer to "stop?"."""

    def __init__(self, answer):
        self.answer = answer

    def __enter__(self):
        return self.answer

    def __exit__(self, *_):
        return False
