"""Every value is owned exactly once, at any number of ranks and any ZeRO stage."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.optim.partition import partition_parameters

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
