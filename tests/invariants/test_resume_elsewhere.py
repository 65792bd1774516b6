"""A run stopped on several ranks resumes with other numbers of them, in all stages, bit for bit as if never stopped.

Whatever is sharded: nothing, optimizer state, gradients, parameters; a run stopped with one is resumed with another.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from fledgling.config import STAGES, Recipe
from fledgling.record import checkpoint, read_jsonl
from fledgling.runtime import device
from fledgling.train import loop, run
from fledgling.train.hooks import NO_EVALS
from tests.all_stages import make_all_stages_recipe
from tests.ranks import on_ranks, one_thread
from tests.stop_request import StopRequest

FULL_SIZE = bool(os.environ.get("FLEDGLING_FULL"))
FOUR_MICRO_BATCHES = {f"{stage}.batch_tokens": 1024 for stage in STAGES[:3]}


def at(recipe: Recipe, folder: Path, zero: int) -> Recipe:
    return replace(
        recipe, run=replace(recipe.run, out=str(folder)), optimizer=replace(recipe.optimizer, zero_stage=zero)
    )


def stopped_halfway(recipe: Recipe, root: str, zero: int) -> list[int]:
    """Run each stage up to its second step, in a run directory of its own; returns where each stopped."""
    device.measure_peak_flops = lambda device, dtype: 1e9  # it takes longer than these stages
    stops = []
    for stage in STAGES:
        run.catch_stop_signals = StopRequest(2)
        try:
            run.run_stage(at(recipe, Path(root) / stage, zero), stage, quiet=True, hooks=NO_EVALS)
        except loop.TrainingStopped as stopped:
            stops.append(stopped.step)
    return stops


def finished(recipe: Recipe, root: str, zero: int) -> list[bool]:
    device.measure_peak_flops = lambda device, dtype: 1e9
    return [run.run_stage(at(recipe, Path(root) / stage, zero), stage, quiet=True, hooks=NO_EVALS) for stage in STAGES]


def outcome(out: Path, stage: str):
    found = checkpoint.load_checkpoint(checkpoint.find_latest_checkpoint(out / stage / "checkpoints"))
    tensors = {f"{group}.{name}": t for group, part in found.tensors.items() for name, t in part.items()}
    lines = read_jsonl(out / stage / "metrics.jsonl")
    kept = ("step", "loss", "gradient_norm", "tokens", "reward", "length")
    return tensors, found.state["stream"], [{key: line.get(key) for key in kept} for line in lines]


def test_a_run_stopped_on_several_ranks_is_resumed_elsewhere(tmp_path, monkeypatch):
    """Stopped on two ranks with sharded parameters, finished on one; at full size from four to two and four too."""
    monkeypatch.setattr(device, "measure_peak_flops", device.measure_peak_flops)  # undone afterwards, here
    with one_thread():
        recipe = make_all_stages_recipe(tmp_path, **FOUR_MICRO_BATCHES)
        whole = Path(recipe.run.out)
        for stage in STAGES:
            assert run.run_stage(recipe, stage, quiet=True, hooks=NO_EVALS)
        for stage in STAGES:
            later = [name for name in STAGES if STAGES.index(name) >= STAGES.index(stage)]
            for name in ("four", "sharded") if FULL_SIZE else ("sharded",):
                shutil.copytree(whole, tmp_path / name / stage, ignore=shutil.ignore_patterns(*later))
        if FULL_SIZE:
            assert on_ranks(4, stopped_halfway, recipe, str(tmp_path / "four"), 2) == [[2] * len(STAGES)] * 4
            shutil.copytree(tmp_path / "four", tmp_path / "two")
            assert on_ranks(2, finished, recipe, str(tmp_path / "two"), 3) == [[True] * len(STAGES)] * 2
            assert on_ranks(4, finished, recipe, str(tmp_path / "four"), 1) == [[True] * len(STAGES)] * 4
        assert on_ranks(2, stopped_halfway, recipe, str(tmp_path / "sharded"), 3) == [[2] * len(STAGES)] * 2
        shutil.copytree(tmp_path / "sharded", tmp_path / "one")
        assert finished(recipe, str(tmp_path / "one"), 0) == [True] * len(STAGES)
        for stage in STAGES:
            tensors, stream, lines = outcome(whole, stage)
            for name in ("two", "four", "one") if FULL_SIZE else ("one",):
                found, position, again = outcome(tmp_path / name / stage, stage)
                assert found.keys() == tensors.keys() and position == stream
                assert all(torch.equal(found[key], value) for key, value in tensors.items()), f"{stage} at {name}"
                assert again == lines, f"{stage} at {name}"


def evaluated(recipe: Recipe, root: str, zero: int) -> list[bool]:
    device.measure_peak_flops = lambda device, dtype: 1e9
    stages = ("pretrain", "midtrain", "rl")
    found = replace(recipe, stages=stages)
    return [run.run_stage(at(found, Path(root), zero), stage, quiet=True) for stage in stages]


def test_sharded_weights_are_evaluated_and_sampled_like_whole_ones(tmp_path):
    recipe = make_all_stages_recipe(tmp_path, **FOUR_MICRO_BATCHES, **{"rl.algorithm": "ppo", "pretrain.eval_every": 2})
    for zero in (1, 3):
        assert on_ranks(2, evaluated, recipe, str(tmp_path / str(zero)), zero) == [[True] * 3] * 2
    for stage in ("pretrain", "midtrain", "rl"):
        for file in ("evals.jsonl", "samples.jsonl", "metrics.jsonl"):
            one, three = (tmp_path / zero / stage / file for zero in "13")
            assert one.exists() == three.exists()
            if one.exists():
                kept = ("step", "name", "value", "n", "loss", "gradient_norm", "reward", "value_loss", "text")
                found = [[{key: line.get(key) for key in kept} for line in read_jsonl(path)] for path in (one, three)]
                assert found[0] == found[1] and found[0], f"{stage}, {file}"
