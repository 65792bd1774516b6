"""The optimizer-memory experiment on one rank: measured bytes are those that the partition expects."""

import torch

from benchmarks.optim import LiveTensors, format_optimizer_memory, measure_optimizer_memory
from fledgling.bench.sized_recipe import with_model_size
from fledgling.config import load_recipe


def test_measured_bytes_agree_with_the_expected():
    recipe = with_model_size(load_recipe("quickstart", ["run.device=cpu"]), depth=1, vocab_size=1024, context=16)
    results = measure_optimizer_memory(recipe)
    assert [row["zero"] for row in results] == [0, 1, 2, 3]
    for row in results:
        assert row["ranks"] == 1 and 0.99 < row["measured"] / row["expected"] < 1.1, row["zero"]  # with activations
    assert len(format_optimizer_memory(results).splitlines()) == 5


def test_live_tensors_counts_until_a_storage_is_freed():
    with LiveTensors() as counted:
        first = torch.zeros(1000)
        second = first + 1
        del second
        third = first[:10]  # a view has no storage of its own
    assert counted.peak == 2 * first.nbytes and counted.live == first.nbytes and third.numel() == 10
