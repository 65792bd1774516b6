"""Blocks: who holds which, that moving them loses nothing, and that memory is what is in use, as planned."""

from __future__ import annotations

import random

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.model.cache import CacheRow, KVCache
from fledgling.plan import inference

CONFIG = ModelConfig(family="llama", vocab_size=60, depth=2, width=32, heads=4, kv_heads=2, context=512)


def fill(cache: KVCache, row: CacheRow, count: int, value: float) -> None:
    """Write tokens whose keys are their value and position, in both layers."""
    reading = cache.make_batch([row], [count])
    numbers = value + torch.arange(row.length, row.length + count, dtype=torch.float32)
    keys = numbers[None, None, :, None].expand(1, 2, count, 8)
    for layer in range(2):
        reading.write(layer, keys + layer / 4, keys + layer / 4)
    row.length += count


def held(cache: KVCache, row: CacheRow) -> list[float]:
    """The numbers that `fill` wrote, in order."""
    found = torch.cat([torch.zeros(0), *(cache.values[1][block.index, 1, :, 3] for block in row.block_table)])
    return (found[: row.length] - 0.25).tolist()


def test_rows_that_grow_fork_and_leave_keep_their_own() -> None:
    chance, cache = random.Random(0), KVCache(CONFIG, block_size=8)
    rows: dict[int, tuple[CacheRow, list[float]]] = {}
    for number in range(400):
        action = chance.random()
        if action < 0.35 or not rows:
            rows[number] = CacheRow(), []
        elif action < 0.5:
            source, content = rows[chance.choice(list(rows))]
            rows[number] = cache.fork([source])[0], list(content)
        elif action < 0.75:
            cache.release_row(rows.pop(chance.choice(list(rows)))[0])
        chosen = chance.sample(sorted(rows), min(len(rows), 3))
        for each in chosen:
            row, content = rows[each]
            count = chance.choice((1, 1, 5, 19))
            content += [number * 1000.0 + row.length + i for i in range(count)]
            fill(cache, row, count, number * 1000.0)
        if chosen:
            cache.make_batch([rows[each][0] for each in chosen], [1] * len(chosen))  # puts blocks in order
        if chance.random() < 0.2:
            cache.trim()
        for row, content in rows.values():
            assert held(cache, row) == content
        assert cache.used_blocks == len({block for row, _ in rows.values() for block in row.block_table})
        assert all(cache.allocated[index].index == index for index in cache.allocated)
    for row, _ in rows.values():
        cache.release_row(row)
    cache.trim()
    assert cache.used_blocks == cache.capacity == 0


@pytest.mark.parametrize(("rows", "length"), [(1, 64), (3, 128), (7, 320)])
def test_memory_is_the_planners(rows, length) -> None:
    """Whole blocks: exactly as planned; storage is at most an eighth more and the block that padding goes to."""
    cache, own = KVCache(CONFIG), [CacheRow() for _ in range(rows)]
    for row in own:
        fill(cache, row, length, 0.0)
    planned = inference.kv_cache_bytes(CONFIG, rows, length, "float32")
    assert cache.used_blocks * cache.block_bytes == planned
    stored = sum(pool.nbytes for pool in (*cache.keys, *cache.values))
    assert planned < stored <= planned * 9 / 8 + 5 * cache.block_bytes
    for row in own:
        fill(cache, row, 1, 0.0)
    assert cache.used_blocks * cache.block_bytes == planned + rows * cache.block_bytes  # never more than a block a row


def test_scattered_blocks_are_brought_together_once() -> None:
    cache, own = KVCache(CONFIG, block_size=8), [CacheRow() for _ in range(12)]
    for number, row in enumerate(own):
        fill(cache, row, 20, number * 100.0)
    for row in own[:11:2]:
        cache.release_row(row)
    left = own[1::2]
    span = cache.make_batch(left, [1] * len(left)).attention_plan.span
    assert isinstance(span, slice) and span == slice(1, 3 * len(left) + 1)
    assert [held(cache, row)[0] for row in left] == [100.0, 300.0, 500.0, 700.0, 900.0, 1100.0]
