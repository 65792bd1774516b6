"""A run stopped at four ranks goes on at two and at one, in all four stages, with the bits of one never stopped."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from fledgling.config import STAGES, Recipe
from fledgling.record import checkpoint, read_lines
from fledgling.train import loop, run, setup
from tests.ranks import on_ranks, one_thread
from tests.tiny import tiny

FOUR_MICRO_BATCHES = {f"{stage}.batch_tokens": 1024 for stage in STAGES[:3]}


def at(recipe: Recipe, folder: Path, zero: int) -> Recipe:
    return replace(recipe, run=replace(recipe.run, out=str(folder)), optimizer=replace(recipe.optimizer, zero=zero))


def no_evals(evals: tuple) -> tuple:
    return ()


def stopped_halfway(recipe: Recipe, root: str) -> list[int]:
    """Run each stage up to its second step, in a run directory of its own; returns where each stopped."""
    setup.measure_peak = lambda device, dtype: 1e9  # it takes longer than these stages
    stops = []
    for stage in STAGES:
        calls = iter(range(100))
        run.stop_requests = lambda calls=calls: _Asked(lambda: next(calls) >= 1)
        try:
            run.run_stage(at(recipe, Path(root) / stage, 2), stage, quiet=True, choose=no_evals)
        except loop.Stopped as stopped:
            stops.append(stopped.step)
    return stops


def finished(recipe: Recipe, root: str, zero: int) -> list[bool]:
    setup.measure_peak = lambda device, dtype: 1e9
    return [run.run_stage(at(recipe, Path(root) / stage, zero), stage, quiet=True, choose=no_evals) for stage in STAGES]


class _Asked:
    """A context that gives a fixed answer to "stop?"."""

    def __init__(self, answer):
        self.answer = answer

    def __enter__(self):
        return self.answer

    def __exit__(self, *_):
        return False


def outcome(out: Path, stage: str):
    found = checkpoint.load(checkpoint.latest(out / stage / "checkpoints"))
    tensors = {f"{group}.{name}": t for group, part in found.tensors.items() for name, t in part.items()}
    lines = read_lines(out / stage / "metrics.jsonl")
    kept = ("step", "loss", "gradient_norm", "tokens", "reward", "length")
    return tensors, found.state["stream"], [{key: line.get(key) for key in kept} for line in lines]


def test_stop_at_four_go_on_at_two_and_at_one(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "measure_peak", setup.measure_peak)  # undone afterwards, here
    with one_thread():
        recipe = tiny(tmp_path, **FOUR_MICRO_BATCHES)
        whole = Path(recipe.run.out)
        for stage in STAGES:
            assert run.run_stage(recipe, stage, quiet=True, choose=no_evals)
        for stage in STAGES:
            later = [name for name in STAGES if STAGES.index(name) >= STAGES.index(stage)]
            shutil.copytree(whole, tmp_path / "four" / stage, ignore=shutil.ignore_patterns(*later))
        assert on_ranks(4, stopped_halfway, recipe, str(tmp_path / "four")) == [[2] * len(STAGES)] * 4
        shutil.copytree(tmp_path / "four", tmp_path / "two")
        shutil.copytree(tmp_path / "four", tmp_path / "one")
        assert on_ranks(2, finished, recipe, str(tmp_path / "two"), 1) == [[True] * len(STAGES)] * 2
        assert finished(recipe, str(tmp_path / "one"), 0) == [True] * len(STAGES)
        for stage in STAGES:
            tensors, stream, lines = outcome(whole, stage)
            for name in ("two", "one"):
                found, position, again = outcome(tmp_path / name / stage, stage)
                assert found.keys() == tensors.keys() and position == stream
                assert all(torch.equal(found[key], value) for key, value in tensors.items()), f"{stage} at {name}"
                assert again == lines, f"{stage} at {name}"
