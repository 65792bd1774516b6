"""A step as the planner counts it has the dtypes of the process that makes it."""

from dataclasses import replace

import torch

from fledgling.config import load_recipe
from fledgling.plan.memory import memory_by_phase
from fledgling.plan.parameters import count_parameters
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.train.device_step import make_device_step

RECIPE = load_recipe("quickstart", ["model.depth=1"])


def test_an_engine_in_another_dtype_than_training_holds_a_copy_of_the_weights():
    config, world = RECIPE.resolve_model(), World(0, 1, 0, torch.device("cpu"))
    plain, mixed = (
        make_device_step(RECIPE.optimizer, config, DeviceSetup(torch.float32, False, 0.0, answer_dtype=dtype), world)
        for dtype in (None, torch.bfloat16)
    )
    assert (plain.dtype, plain.answer_dtype) == ("float32", "float32")
    assert (mixed.dtype, mixed.answer_dtype) == ("float32", "bfloat16")
    held = [memory_by_phase(config, replace(step, rows=1))["head"]["buffers"] for step in (plain, mixed)]
    assert held[1] - held[0] == 2 * count_parameters(config)["total"]
