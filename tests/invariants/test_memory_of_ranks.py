"""What a rank holds under ZeRO 0 to 3 is what is expected, to 5 %, and each stage holds less than the last."""

import pytest

from benchmarks.optim import measure_optimizer_memory
from fledgling.bench.sized_recipe import with_model_size
from fledgling.config import load_recipe
from tests.ranks import on_ranks


def test_measured_memory_is_the_layouts():
    recipe = with_model_size(load_recipe("quickstart", ["run.device=cpu", "optimizer.deterministic=on"]), 4, 3001, 16)
    for rank in on_ranks(4, measure_optimizer_memory, recipe):
        for one in rank:
            assert one["measured"] == pytest.approx(one["expected"], rel=0.05), one
        zero, first, second, third = (one["measured"] for one in rank)
        assert zero > first > second > third
