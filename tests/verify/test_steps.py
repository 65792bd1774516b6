"""Which steps are drawn, and how lines and checkpoints are compared."""

import random
from pathlib import Path

import torch

from benchmarks.verify import STEPS
from fledgling.config import load_recipe
from fledgling.record.checkpoint import Checkpoint
from fledgling.verify import steps
from tests.fast_run import write_recipe


def test_starts_are_the_beginnings_and_the_checkpoints(run):
    starts = steps.list_starts(run)
    assert [(s.stage, s.step, s.last) for s in starts if s.stage == "sft"] == [
        ("sft", 0, STEPS - 2),
        ("sft", STEPS - 2, STEPS),
        ("sft", STEPS, STEPS),
    ]
    assert all((start.path is None) == (start.step == 0) for start in starts) and len(starts) == 9


def test_every_start_gets_one_of_its_first_steps_and_no_draw_leaves_its_reach():
    starts = [steps.Start("pretrain", 0, None, 300), steps.Start("pretrain", 300, Path("c"), 600)]
    starts.append(steps.Start("pretrain", 600, Path("d"), 600))
    drawn = steps.draw_distances(starts, 200, lambda start: 40, random.Random(1))
    assert set(drawn) == set(starts[:2]) and sum(map(len, drawn.values())) == 200
    distances = [distance for every in drawn.values() for distance in every]
    assert min(distances) == 1 and 35 < max(distances) <= 40
    assert all(min(every) <= steps.MIN_DISTANCE for every in drawn.values())
    assert steps.draw_distances([starts[2]], 5, lambda start: 40, random.Random(1)) == {}


def test_files_outside_a_run_that_a_stage_reads_are_named_where_they_are_missing(tmp_path):
    path = write_recipe(tmp_path)
    here, gone = tmp_path / "here.py", tmp_path / "gone"
    here.touch()
    settings = [f'distill.teacher="{gone}"', f'dpo.pairs="{gone}.jsonl"', 'rl.algorithm="distill"']
    recipe = load_recipe(path, settings)
    assert steps.find_missing_inputs(recipe, "sft") == [f"distill.teacher: {gone} is not here"]
    assert f"dpo.pairs: {gone}.jsonl is not here" in steps.find_missing_inputs(recipe, "dpo")
    rewards = f'rl.rewards={{task=1.0, "{here}:f"=1.0, "{gone}.py:f"=1.0, "model:{gone}"=1.0}}'
    missing = steps.find_missing_inputs(load_recipe(path, [rewards]), "rl")
    assert missing == [f"rl.rewards: {gone}.py is not here", f"rl.rewards: {gone} is not here"]
    assert steps.find_missing_inputs(load_recipe(path, ['rl.rewards={task=1.0, "len:f"=1.0}']), "rl") == []
    environment = load_recipe(path, [f'rl.tasks={{"env:{gone}.py:Game"=1.0, "env:guessing"=1.0}}'])
    assert steps.find_missing_inputs(environment, "rl") == [f"rl.tasks: {gone}.py is not here"]


def test_lines_are_compared_in_every_value_but_the_clocks():
    line = {"step": 3, "loss": 2.5, "tokens": 10, "data": "a", "seconds": 1.0, "mfu": 0.5}
    assert steps.compare_lines(line, {**line, "seconds": 2.0, "mfu": 0.1}, 0.0) == []
    almost = 2.5 * (1 + 1e-15)
    assert steps.compare_lines(line, {**line, "loss": almost}, 0.0) == [f"loss 2.5 recorded, {almost} replayed"]
    assert steps.compare_lines(line, {**line, "loss": 2.51}, 0.02) == []
    assert len(steps.compare_lines(line, {**line, "loss": 2.6, "data": "b"}, 0.02)) == 2
    assert steps.compare_lines(line, {**line, "reward": 1.0}, 0.0) == ["reward None recorded, 1.0 replayed"]


def test_checkpoints_are_compared_tensor_by_tensor():
    def make(**changed):
        tensors = {"model": {"w": torch.ones(4)}, "optimizer": {"m": torch.zeros(4)}} | changed
        return Checkpoint(Path("x"), tensors, {})

    other = torch.tensor([1.0, 1.0, 1.0, 1.001])
    assert steps.compare_checkpoints(make(), make(), 0.0) == []
    changed = make(model={"w": other}, optimizer={})
    assert steps.compare_checkpoints(make(), changed, 0.0) == [
        "model w: 1 of 4 values differ",
        "optimizer m is only in one",
    ]
    assert steps.compare_checkpoints(make(), make(model={"w": other}), 0.02) == []
    assert steps.compare_checkpoints(make(), make(model={"w": other}), 1e-5) != []


def test_a_tolerance_is_one_of_a_tensor_and_a_wider_one_of_a_single_value():
    """Rounding moves young matrices, which began at 0, by some percent; a wrong one is caught."""
    before = torch.linspace(-1, 1, 4096, dtype=torch.float32)
    for change, problem in ((0.05, ""), (0.5, "0.35 of its largest value"), (9.0, "0.15 of its norm")):
        after = before.clone()
        after[7] += change
        pair = (Checkpoint(Path(), {"model": {"w": weights}}, {}) for weights in (before, after))
        found = steps.compare_checkpoints(*pair, 0.02)
        assert found == ([f"model w differs by more than {problem}"] if problem else [])
