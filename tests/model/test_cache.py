"""Cache blocks: ownership, moves that lose nothing, and memory that equals the planner's."""

from __future__ import annotations

import random

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.cache import CacheRow, KVCache
from fledgling.plan import inference

CONFIG = ModelConfig(family="llama", vocab_size=60, depth=2, width=32, heads=4, kv_heads=2, context=512)


def write_tokens(cache: KVCache, row: CacheRow, count: int, value: float) -> None:
    """Writes tokens whose keys are `value` plus their position, in both layers."""
    batch = cache.make_batch([row], [count])
    numbers = value + torch.arange(row.length, row.length + count, dtype=torch.float32)
    keys = numbers[None, None, :, None].expand(1, 2, count, 8)
    for layer in range(2):
        batch.write(layer, keys + layer / 4, keys + layer / 4)
    row.length += count


def read_tokens(cache: KVCache, row: CacheRow) -> list[float]:
    """Returns the numbers that `write_tokens` wrote, in order."""
    keys = torch.cat([torch.zeros(0), *(cache.values[1][block.index, 1, :, 3] for block in row.block_table)])
    return (keys[: row.length] - 0.25).tolist()


def test_rows_that_grow_fork_and_are_released_keep_their_own_tokens() -> None:
    rng, cache = random.Random(0), KVCache(CONFIG, block_size=8)
    rows: dict[int, tuple[CacheRow, list[float]]] = {}
    for number in range(400):
        action = rng.random()
        if action < 0.35 or not rows:
            rows[number] = CacheRow(), []
        elif action < 0.5:
            source, content = rows[rng.choice(list(rows))]
            rows[number] = cache.fork([source])[0], list(content)
        elif action < 0.75:
            cache.release_row(rows.pop(rng.choice(list(rows)))[0])
        grown = rng.sample(sorted(rows), min(len(rows), 3))
        for key in grown:
            row, content = rows[key]
            count = rng.choice((1, 1, 5, 19))
            content += [number * 1000.0 + row.length + i for i in range(count)]
            write_tokens(cache, row, count, number * 1000.0)
        if grown:
            cache.make_batch([rows[key][0] for key in grown], [1] * len(grown))  # moves blocks together
        if rng.random() < 0.2:
            cache.trim()
        for row, content in rows.values():
            assert read_tokens(cache, row) == content
        assert cache.used_blocks == len({block for row, _ in rows.values() for block in row.block_table})
        assert all(cache.allocated[index].index == index for index in cache.allocated)
    for row, _ in rows.values():
        cache.release_row(row)
    cache.trim()
    assert cache.used_blocks == cache.capacity == 0


@pytest.mark.parametrize(("rows", "length"), [(1, 64), (3, 128), (7, 320)])
def test_memory_equals_the_planners(rows, length) -> None:
    """Used blocks are exactly as planned; storage is at most an eighth more, and the block of padding."""
    cache, cache_rows = KVCache(CONFIG), [CacheRow() for _ in range(rows)]
    for row in cache_rows:
        write_tokens(cache, row, length, 0.0)
    planned = inference.kv_cache_bytes(CONFIG, rows, length, "float32")
    assert cache.used_blocks * cache.block_bytes == planned
    stored = sum(pool.nbytes for pool in (*cache.keys, *cache.values))
    assert planned < stored <= planned * 9 / 8 + 5 * cache.block_bytes
    for row in cache_rows:
        write_tokens(cache, row, 1, 0.0)
    assert cache.used_blocks * cache.block_bytes == planned + rows * cache.block_bytes  # never more than a block a row


def test_scattered_blocks_are_moved_together_once() -> None:
    cache, cache_rows = KVCache(CONFIG, block_size=8), [CacheRow() for _ in range(12)]
    for number, row in enumerate(cache_rows):
        write_tokens(cache, row, 20, number * 100.0)
    for row in cache_rows[:11:2]:
        cache.release_row(row)
    left = cache_rows[1::2]
    span = cache.make_batch(left, [1] * len(left)).attention_plan.span
    assert isinstance(span, slice) and span == slice(1, 3 * len(left) + 1)
    assert [read_tokens(cache, row)[0] for row in left] == [100.0, 300.0, 500.0, 700.0, 900.0, 1100.0]
