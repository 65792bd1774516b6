"""Every value is owned exactly once, at any number of ranks and any ZeRO stage; memory is as counted by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.optim.partition import muon_stack_size, partition_parameters

matrix_shapes = st.lists(st.sampled_from([(6, 4), (4, 12), (8, 8)]), min_size=0, max_size=7)


@settings(max_examples=60, deadline=None)
@given(matrix_shapes, st.integers(1, 9), st.integers(1, 9), st.sampled_from([0, 1, 2]))
def test_everything_is_owned_exactly_once(matrices, rows, world_size, zero_stage):
    parameters = {"embedding.weight": (rows, 3), "scale": (5,), "head.weight": (2 * rows, 3)}
    parameters |= {f"{i}.weight": shape for i, shape in enumerate(matrices)}
    partition = partition_parameters(parameters, world_size, zero_stage)
    assert sorted(name for bucket in partition.buckets for name in bucket.names) == sorted(parameters)
    for bucket in partition.buckets:
        assert bucket.chunk_values * world_size >= bucket.num_values
        for name in bucket.names:
            owned_rows = [partition.owned_rows(bucket, name, rank) for rank in range(world_size)]
            if bucket.replicated:
                assert all(len(rows) == parameters[name][0] for rows in owned_rows)
            else:
                assert sorted(row for rows in owned_rows for row in rows) == list(range(parameters[name][0]))
    state = [partition.estimate_memory(rank).optimizer_state for rank in range(world_size)]
    if world_size > 1 and zero_stage:  # small parameters are replicated
        assert sum(state) <= partition.estimate_memory(0).parameters * 2 + 10 * world_size


# Backward produces head (12 values), scale (2), b and a (16 each), embedding (15). On two ranks the buckets are head, 6
# values a rank; b with a, 16; embedding, 3 of its 5 rows, 9 values; scale, 1.
SMALL = {"embedding.weight": (5, 3), "a.weight": (4, 4), "b.weight": (4, 4), "scale": (2,), "head.weight": (4, 3)}
RECEIVED = [  # name, (gradients, buffers) at the peak, and after it; every rank's chunk is received before the sum
    ("head.weight", (0, 24), (0, 24)),  # 12 sent as they are, 12 received
    ("scale", (2, 24), (2, 24)),  # its bucket is the last one
    ("b.weight", (18, 24), (18, 24)),  # waits for a
    ("a.weight", (2 + 6, 24 + 64), (8, 64)),  # 32 packed, 32 received; head's shard of 6 is summed before 24 are freed
    ("embedding.weight", (8 + 16, 64 + 36), (31, 4)),  # 18 with padding; the shard of 16 is summed; then scale's bucket
    ("", (31 + 1, 4), (6 + 16 + 9 + 1, 0)),
]
REDUCED = [  # the same where the collective adds: a chunk is received
    ("head.weight", (0, 18), (0, 18)),
    ("scale", (2, 18), (2, 18)),
    ("b.weight", (18, 18), (18, 18)),
    ("a.weight", (34, 18 + 32), (8, 48)),
    ("embedding.weight", (23, 48 + 18), (31, 3)),
    ("", (31, 3), (32, 0)),
]


@pytest.mark.parametrize(("deterministic", "expected"), [(True, RECEIVED), (False, REDUCED)])
def test_the_reduction_of_five_tensors_holds_what_is_counted_by_hand(deterministic, expected):
    arrivals = partition_parameters(SMALL, 2, zero_stage=2).simulate_reduction(deterministic)
    assert [(arrival.name, arrival.peak, arrival.after) for arrival in arrivals] == expected


def test_the_reduction_at_stage_1_begins_when_all_gradients_are_there():
    arrivals = partition_parameters(SMALL, 2, zero_stage=1).simulate_reduction()
    assert [arrival.after for arrival in arrivals] == [(12, 0), (14, 0), (30, 0), (46, 0), (61, 0), (32, 0)]
    # head and b with a have left, the embedding is packed and received: 8 and the sum of 16; 64 and 18 twice
    assert arrivals[-1].peak == (61 - 12 - 32 + 6 - 15 + 16, 64 + 36)


def test_one_rank_reduces_nothing():
    arrivals = partition_parameters(SMALL, 1, zero_stage=2).simulate_reduction()
    assert [arrival.after for arrival in arrivals] == [(12, 0), (14, 0), (30, 0), (46, 0), (61, 0), (61, 0)]


@pytest.mark.parametrize(
    ("optimizer", "state"), [("muon", (50, 44)), ("normuon", (54, 48)), ("adamw", (12 + 32 + 18 + 4, 60))]
)
def test_optimizer_state_of_five_tensors_is_counted_by_hand(optimizer, state):
    # two moments of what a rank owns; Muon one for a matrix; NorMuon one value a row more
    partition = partition_parameters(SMALL, 2, matrix_optimizer=optimizer)
    assert tuple(partition.estimate_memory(rank).optimizer_state for rank in (0, 1)) == state


def test_the_memory_of_five_tensors_is_counted_by_hand():
    held = partition_parameters(SMALL, 2, zero_stage=2).estimate_memory(0)
    assert (held.parameters, held.optimizer_state, held.padding) == (61, 50, 18 - 15)
    assert (held.gradients, held.communication) == (24, 100)
    # the update of a: 33 owned gradients less head's 6, two stacks of 16 and two Gram matrices of 16, 32 gathered
    assert held.workspace == 64 and held.total == 61 + 50 + max(24 + 100, 33 - 6 + 64 + 32)
    reduced = partition_parameters(SMALL, 2, zero_stage=2).estimate_memory(0, deterministic=False)
    assert reduced.total == 61 + 50 + (33 - 6 + 64 + 32), "the update's peak is above the reduction's 23 + 66"


def test_the_workspace_of_an_update_is_that_of_the_largest_stack_or_block():
    many = {f"{i}.weight": (256, 256) for i in range(40)}  # 16 are stacked
    assert partition_parameters(many).estimate_memory().workspace == 16 * 4 * 256 * 256
    wide = {"a.weight": (8, 32)}  # two stacks of 8 x 32, two Gram matrices of 8 x 8
    assert partition_parameters(wide).estimate_memory().workspace == 2 * 8 * 32 + 2 * 8 * 8
    large = {"embedding.weight": (1 << 13, 64)}  # twice a block of 2^18 values: one block's six temporaries
    assert partition_parameters(large).estimate_memory().workspace == 6 << 18


def test_stacks_are_larger_on_cuda_and_never_empty():
    assert muon_stack_size((256, 256)) == 16 and muon_stack_size((256, 256), "another") == 16
    assert muon_stack_size((1280, 1280), "cuda") == 81
    assert muon_stack_size((1 << 14, 1 << 14), "cuda") == 1
