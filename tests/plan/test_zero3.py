"""Gathered groups of ZeRO-3 counted by hand; `tests/invariants/test_memory_of_ranks.py` measures the bytes."""

from math import prod

import pytest

from fledgling.config import ModelConfig
from fledgling.optim.partition import partition_parameters
from fledgling.optim.roles import assign_role
from fledgling.plan import zero3
from fledgling.plan.parameters import parameter_shapes


def make_partition(ranks: int, **settings):
    config = ModelConfig(vocab_size=101, depth=3, width=32, heads=4, kv_heads=4, context=16, **settings)
    shapes = parameter_shapes(config)
    roles = {name: assign_role(name, shape) for name, shape in shapes.items()}
    return shapes, partition_parameters(shapes, ranks, 3, roles)


def padded(shape, ranks: int) -> int:
    return -(-shape[0] // ranks) * ranks * prod(shape[1:])


@pytest.mark.parametrize("ranks", (2, 4))
@pytest.mark.parametrize("family", ("fledgling", "llama"))
def test_groups_hold_every_sharded_parameter_once(ranks, family):
    shapes, partition = make_partition(ranks, family=family)
    groups = zero3.gather_groups(partition)
    assert set(groups) == {"", "embedding", "blocks.0", "blocks.1", "blocks.2"}
    assert groups[""].names == ("head.weight",) and groups["embedding"].names == ("embedding.weight",)
    names = [name for group in groups.values() for name in group.names]
    assert len(names) == len(set(names))
    replicated = sum(prod(shape) for name, shape in shapes.items() if name not in names)
    assert zero3.replicated_values(partition) == replicated
    for group in groups.values():
        assert group.values == sum(prod(shapes[name]) for name in group.names)
        assert group.padded_values == sum(padded(shapes[name], ranks) for name in group.names)
    held = sum(padded(shapes[name], ranks) // ranks for name in names)
    assert zero3.resident_values(partition) == held + replicated


def test_the_first_gather_holds_the_head_twice_and_the_embedding():
    shapes, partition = make_partition(4)
    table = padded(shapes["head.weight"], 4)  # 104 rows of 32: 101 are padded to a multiple of 4
    assert table == 104 * 32 and zero3.gather_peak(partition) == 3 * table


@pytest.mark.parametrize("received", (False, True))
def test_the_backward_pass_ends_with_each_rank_s_own_gradients(received):
    _, partition = make_partition(4)
    arrivals = zero3.backward_arrivals(partition, received)
    assert arrivals[0].name == "head.weight" and arrivals[-1].name == ""
    assert len({arrival.name for arrival in arrivals}) == len(arrivals)
    assert arrivals[-1].after == (zero3.resident_values(partition), 0)
    assert all(sum(arrival.peak) >= sum(arrival.after) for arrival in arrivals)


def test_received_gradients_take_more_memory_than_summed_ones():
    _, partition = make_partition(4)
    peaks = {received: max(sum(a.peak) for a in zero3.backward_arrivals(partition, received)) for received in (0, 1)}
    assert peaks[1] >= peaks[0]
