"""Tests the bytes of weights and caches, and how many conversations fit."""

from hypothesis import given
from hypothesis import strategies as st

from fledgling.plan import inference

from .models import config


def test_the_bytes_of_the_cache_and_the_weights_follow_the_formulas():
    d20 = config(20)
    assert inference.kv_cache_bytes(d20, rows=1, length=2_048) == 2 * 2_048 * 20 * 1_280 * 2
    assert inference.kv_cache_bytes(config(20, kv_heads=5), 3, 2_048, "float32") == 3 * 2_048 * 20 * 1_280 * 4
    count = 560_988_160
    assert inference.weight_bytes(d20, "float32") == 4 * count and inference.weight_bytes(d20, "bfloat16") == 2 * count
    head_and_blocks = count - 65_536 * 1_280
    by_hand = 2 * 65_536 * 1_280 + head_and_blocks // 2 + head_and_blocks // 32 * 2
    assert inference.weight_bytes(d20, "int4") == by_hand
    assert (
        0.7 * count
        < inference.weight_bytes(d20, "int4")
        < 0.9 * count
        < inference.weight_bytes(d20, "int8")
        < 1.2 * count
    )


@given(rows=st.integers(1, 50), length=st.integers(1, 2_048), gib=st.integers(1, 80))
def test_so_many_conversations_fit_and_one_more_does_not(rows, length, gib):
    d12, memory_left = config(12), (1 - inference.RESERVED_SHARE) * gib * 2**30
    for weight_format, section in inference.plan_inference(d12, gib * 2**30, length, rows)["formats"].items():
        cache, count = inference.kv_cache_bytes(d12, 1, length, weight_format), section["conversations"]
        assert section["total"] == section["weights"] + rows * cache
        assert section["weights"] + count * cache <= memory_left or count == 0
        assert section["weights"] + (count + 1) * cache > memory_left
