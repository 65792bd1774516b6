"""Stopping and going on equals never stopping, bit for bit, in all four stages, from any step."""

import shutil

import pytest

from fledgling.config import STAGES
from fledgling.record import checkpoint, read_lines
from fledgling.train import loop, run
from tests.tiny import tiny


def tensors(out, stage):
    found = checkpoint.load(checkpoint.latest(out / stage / "checkpoints"))
    return {f"{g}.{n}": t for g, group in found.tensors.items() for n, t in group.items()}, found.state


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of all four stages that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = tiny(folder)
    for stage in STAGES:
        assert run.run_stage(recipe, stage, quiet=True)
    return folder, recipe


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_stop_and_go_on_equals_not_stopping(finished, stage, stop_after, monkeypatch):
    folder, recipe = finished
    out, kept = folder / "run", folder / f"kept-{stage}"
    whole, state = tensors(out, stage)
    lines = [line["loss"] for line in read_lines(out / stage / "metrics.jsonl")]
    shutil.move(out / stage, kept)
    try:
        calls = iter(range(100))
        with monkeypatch.context() as patch:
            patch.setattr(run, "stop_requests", lambda: _asked(lambda: next(calls) + 1 >= stop_after))
            with pytest.raises(loop.Stopped) as stopped:
                run.run_stage(recipe, stage, quiet=True)
        assert stopped.value.step == stop_after
        assert run.run_stage(recipe, stage, quiet=True)
        again, state_again = tensors(out, stage)
        assert set(again) == set(whole)
        for name, tensor in whole.items():
            assert again[name].equal(tensor), f"{stage}: {name} differs after stopping at {stop_after}"
        assert state_again["stream"] == state["stream"]
        assert [line["loss"] for line in read_lines(out / stage / "metrics.jsonl")] == lines
    finally:
        shutil.rmtree(out / stage, ignore_errors=True)
        shutil.move(kept, out / stage)


class _asked:
    """A context that gives a fixed answer to "stop?"."""

    def __init__(self, answer):
        self.answer = answer

    def __enter__(self):
        return self.answer

    def __exit__(self, *_):
        return False


def test_a_finished_stage_is_left_alone(finished):
    folder, recipe = finished
    before = checkpoint.latest(folder / "run" / "sft" / "checkpoints").stat().st_mtime_ns
    assert run.run_stage(recipe, "sft", quiet=True) is False
    assert checkpoint.latest(folder / "run" / "sft" / "checkpoints").stat().st_mtime_ns == before
