"""Steps that grow: every row once, in one order, on any number of ranks and after a resume."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fledgling.data.batch_warmup import BatchWarmup, warmup_divisor
from tests.data.test_stream import make_source, make_stream


@given(st.integers(1, 40), st.integers(0, 30), st.integers(0, 50))
def test_the_rows_before_a_step_are_those_of_the_steps_before(rows, batch_steps, step):
    warmup = BatchWarmup(rows, batch_steps)
    assert warmup.count_rows_before(step) == sum(warmup.count_rows_at(before) for before in range(step))
    assert BatchWarmup(rows).count_rows_before(step) == rows * step


def test_a_warm_up_is_a_quarter_then_half():
    assert [warmup_divisor(step, 5) for step in range(7)] == [4, 4, 4, 2, 2, 1, 1]
    assert [warmup_divisor(step, 0) for step in range(2)] == [1, 1]


def read(stream) -> list[list]:
    return [list(batches) for batches in stream]


def test_a_batch_that_grows_reads_the_same_rows_in_the_same_order():
    plain = torch.cat([b.tokens for step in read(make_stream(steps=4)) for b in step])
    grown = read(make_stream(steps=6, batch_warmup_steps=4))
    assert [sum(len(b.tokens) for b in step) for step in grown] == [1, 1, 2, 2, 4, 4]
    tokens = torch.cat([b.tokens for step in grown for b in step])
    assert torch.equal(tokens, plain[: len(tokens)])


def test_rows_that_grow_have_the_same_tokens_in_shorter_rows():
    plain, grown = read(make_stream(steps=4)), read(make_stream(steps=4, context_warmup_steps=3))
    assert [step[0].tokens.shape for step in grown] == [(8, 2), (8, 2), (4, 4), (2, 8)]
    for one, other in zip(plain, grown, strict=True):
        for before, after in zip(one, other, strict=True):
            assert torch.equal(before.tokens.flatten(), after.tokens.flatten())
            assert torch.equal(before.targets.flatten(), after.targets.flatten())
            assert after.document_ids.shape == after.tokens.shape
    odd = read(make_stream(make_source(context=6), steps=1, context_warmup_steps=3))
    assert odd[0][0].tokens.shape == (4, 3), "6 tokens are cut in two, not in four"


def test_growing_steps_are_the_same_on_two_ranks_and_after_a_resume():
    options = {"steps": 5, "batch_warmup_steps": 3, "context_warmup_steps": 2}
    alone, (first, second) = (
        read(make_stream(**options)),
        (read(make_stream(**options, rank=rank, world_size=2)) for rank in (0, 1)),
    )
    for whole, one, other in zip(alone, first, second, strict=True):
        assert [b.hash_rows() for b in whole[::2]] == [b.hash_rows() for b in one]
        assert [b.hash_rows() for b in whole[1::2]] == [b.hash_rows() for b in other]
    stream = make_stream(**options)
    for _ in range(3):
        stream.next()
    again = make_stream(**options)
    again.load_state_dict(stream.state_dict())
    assert stream.source_rows() == again.source_rows() == [1 + 1 + 2]
    assert [b.hash_rows() for b in again.next()] == [b.hash_rows() for b in alone[3]]
