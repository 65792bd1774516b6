"""The speed of this machine in a recipe's own steps, or one line that says why it cannot be measured."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fledgling.config import UserError, load_recipe
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.stage_length import derive_rows
from fledgling.runtime.device import choose_setup
from fledgling.runtime.world import World
from fledgling.train import training_speed
from fledgling.train.source_sizes import count_source_sizes
from tests.fast_run import write_recipe
from tests.ranks import one_thread


@pytest.fixture
def arguments(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    world = World.start("cpu")
    with one_thread():
        yield recipe, world, choose_setup(recipe.run, world)


def test_the_speed_is_that_of_the_median_step_without_the_first(arguments, monkeypatch):
    clock, lengths = [0.0], iter([50.0, 9.0, 2.0, 2.0, 2.0, 7.0, 2.0, 2.0])

    def make_step(stage, model, optimizer, batches, world):
        assert sum(batch.tokens.numel() for batch in batches) == 128, "the recipe's batch"
        clock[0] += next(lengths)

    monkeypatch.setattr(training_speed, "train_step", make_step)
    monkeypatch.setattr(training_speed, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    speed = training_speed.measure_training_speed(*arguments)
    assert speed.flops_per_token == training_flops_per_token(arguments[0].resolve_model())
    assert speed.flops == 64.0 * speed.flops_per_token


def test_the_step_has_the_rows_that_its_examples_fill(arguments, monkeypatch):
    """It had those of the depth's batch."""
    recipe, sizes = arguments[0], []

    def make_step(stage, model, optimizer, batches, world):
        sizes.append(sum(batch.tokens.numel() for batch in batches))

    monkeypatch.setattr(training_speed, "train_step", make_step)
    pretrain = replace(recipe.pretrain, batch_tokens=None, examples_per_step=4, mixture={"identity": 1.0})
    training_speed.measure_training_speed(replace(recipe, pretrain=pretrain), *arguments[1:], seconds=0.0)
    source = count_source_sizes(replace(recipe, pretrain=pretrain))["identity"]
    assert set(sizes) == {64 * derive_rows(pretrain, {"identity": source})} and sizes[0] <= 4 * 64


def test_next_to_other_processes_it_is_the_speed_of_the_threads_that_a_run_uses(arguments, monkeypatch):
    """With both threads of two cores a step took nine times as long, so twelve minutes became depth 2."""
    clock, used = [0.0], iter([{}, {}, {}, *[{"threads": 1}] * 60])
    lengths = iter([50.0, *[9.0] * 3, *[1.0] * 60])
    number = torch.get_num_threads()

    def make_step(*arguments):
        clock[0] += next(lengths)

    monkeypatch.setattr(training_speed, "train_step", make_step)
    monkeypatch.setattr(training_speed, "follow_free_cores", lambda *arguments: used.__next__)
    monkeypatch.setattr(training_speed, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    speed = training_speed.measure_training_speed(*arguments, seconds=40.0)
    assert speed.flops == 128.0 * speed.flops_per_token and clock[0] > 50 + 27 + 40
    assert speed.source == f"measured here, 1 of {number} threads next to other processes"
    assert torch.get_num_threads() == number


def test_a_real_step_is_measured(arguments):
    assert training_speed.measure_training_speed(*arguments, seconds=0.0).flops > 1e6


def test_a_machine_whose_speed_cannot_be_measured_says_why_in_one_line(arguments, monkeypatch):
    def run_out(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr(training_speed, "train_step", run_out)
    with pytest.raises(UserError, match=r"cannot be measured: a step at depth 1 fails: CUDA out of memory") as error:
        training_speed.measure_training_speed(*arguments)
    assert "\n" not in str(error.value) and "--set model.depth=N" in str(error.value)
    monkeypatch.setattr(training_speed, "train_step", lambda *arguments: None)
    monkeypatch.setattr(training_speed, "time", SimpleNamespace(perf_counter=lambda: 1.0))
    with pytest.raises(UserError, match=r"cannot be measured: a step takes 0.0 s by its clock"):
        training_speed.measure_training_speed(*arguments, seconds=0.0)
