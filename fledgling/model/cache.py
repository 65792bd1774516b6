"""The key/value cache of decoding: blocks of a fixed number of tokens, and a block table for every row.

A row owns no contiguous memory, only a list of blocks. So rows of any length are stored without gaps, a released block
serves any other row, and rows that begin with the same tokens share blocks. Blocks are never gathered for attention: a
forward pass reads each block in place, once, and adds up the partial results of each row (`attention.paged_attention`);
the blocks in use are kept together at the front of the storage, so that they are one slice.

The cache does not know which tokens a block holds (`infer/prefix_cache.py` does). Start with `KVCache.make_batch`.

B rows, T new tokens of a row, N blocks of S tokens, H key/value heads, D head width, L layers, M shared blocks, K
further rows of a shared block.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from fledgling.config import ModelConfig
from fledgling.model.window import window_mask

# Tokens: as fast as contiguous rows; blocks of 16 take 1.6 times as long (docs/decisions/measured-choices.md).
BLOCK_SIZE = 64
GROWTH_DIVISOR = 8  # storage grows by an eighth, layer by layer
MIN_SLICE_DENSITY = 0.75  # share of a slice's blocks that are read; below it blocks are moved together, or gathered
REMAINING_START = 1 << 40  # start position of a block that no row reads: beyond every query


@dataclass(eq=False, slots=True)
class CacheBlock:
    """S tokens of keys and values in every layer; `index` is its place now, `ref_count` the number of its owners."""

    index: int
    ref_count: int = 1


@dataclass(eq=False)
class CacheRow:
    """One sequence: its blocks in order, and the number of tokens that they hold.

    The model writes after `length`; only the caller advances it.
    """

    block_table: list[CacheBlock] = field(default_factory=list)
    length: int = 0


@dataclass(frozen=True)
class SharedBlocks:
    """M blocks that K further rows read, besides the first; query_rows, output_rows (M, K) as in `AttentionPlan`."""

    blocks: Tensor
    query_rows: Tensor
    output_rows: Tensor
    start_positions: Tensor  # (M,): the position of each block's first key


@dataclass(frozen=True)
class AttentionPlan:
    """Which blocks attention reads, and how their partial results add up to rows.

    Partial results are in the order: those of `span`, then those of each of `shared_blocks`.

    span: the blocks that are read, a slice or their indices (N,).
    query_rows: (N,), the row whose queries each block is read with.
    output_rows: (N,), the row that gets the result; B for a block that no row reads.
    blocked_mask: (N, T, S), true for keys that a query must not see.
    partial_order, row_offsets: (P,), (B,), the partial results sorted by row, and where those of each row begin.
    """

    span: slice | Tensor
    query_rows: Tensor
    output_rows: Tensor
    blocked_mask: Tensor
    shared_blocks: tuple[SharedBlocks, ...]
    partial_order: Tensor
    row_offsets: Tensor
    start_positions: Tensor  # (N,): the position of each block's first key


@dataclass
class CacheBatch:
    """One forward pass of B rows: the positions of their T new tokens, where these are stored, and what they attend to.

    positions: (B, T).
    block_indices, block_offsets: (B, T), where the new keys and values are stored.
    block_tables: of each row, the indices of its blocks that hold any token.
    starts_empty: whether no row held any token before.
    """

    cache: KVCache
    positions: Tensor
    block_indices: Tensor
    block_offsets: Tensor
    block_tables: list[list[int]]
    starts_empty: bool
    window_masks: dict[int, tuple[Tensor, list[Tensor | None]]] = field(default_factory=dict)

    @cached_property
    def attention_plan(self) -> AttentionPlan:
        """The plan, made on first use."""
        return _make_attention_plan(self)

    def blocked_mask(self, window_size: int | None) -> tuple[Tensor, list[Tensor | None]]:
        """Returns the keys that queries with a window must not see; None is no window.

        The first mask is (N, 1, T, S), of the span. The list has one mask (M, K, T, S) for each of the plan's
        `shared_blocks`; None there blocks no key. Computed once for all layers of a window size.
        """
        plan = self.attention_plan
        if window_size is None:
            return plan.blocked_mask[:, None], [None] * len(plan.shared_blocks)
        if window_size not in self.window_masks:
            offsets = torch.arange(self.cache.block_size, device=self.cache.device)
            keys = plan.start_positions[:, None] + offsets
            span = ~window_mask(self.positions[plan.query_rows], keys, window_size)[:, None]
            shared: list[Tensor | None] = [
                ~window_mask(self.positions[s.query_rows], s.start_positions[:, None, None] + offsets, window_size)
                for s in plan.shared_blocks
            ]
            self.window_masks[window_size] = span, shared
        return self.window_masks[window_size]

    @cached_property
    def padded_block_tables(self) -> Tensor:
        """The block tables as one tensor (B, most blocks of a row), 0 after a row's last block."""
        most = max(map(len, self.block_tables))
        return self.cache.to_tensor(np.array([[*table, *[0] * (most - len(table))] for table in self.block_tables]))

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values (B, H, T, D) of the new tokens."""
        cache = self.cache
        cache.keys[layer][self.block_indices, :, self.block_offsets] = keys.transpose(1, 2).to(cache.dtype)
        cache.values[layer][self.block_indices, :, self.block_offsets] = values.transpose(1, 2).to(cache.dtype)


class KVCache:
    """Blocks of keys and values, L tensors (N, H, S, D) of each. Block 0 stores padding and is never read.

    Args:
        is_static: for steps that are captured as a CUDA graph (infer/step_graphs.py): blocks never move, the storage is
            (N, S, H, D) in memory and grows by doubling. `storage_version` changes whenever the storage moves.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        block_size: int = BLOCK_SIZE,
        is_static: bool = False,
    ) -> None:
        self.block_size, self.dtype, self.device = block_size, dtype, torch.device(device)
        self.is_static, self.storage_version = is_static, 0
        self.block_shape = (config.kv_heads, block_size, config.head_width)
        self.keys = [self._make_storage(1) for _ in range(config.depth)]
        self.values = [self._make_storage(1) for _ in range(config.depth)]
        ids = torch.zeros((1, block_size), dtype=torch.int64, device=self.device)
        self.tokens = [ids] if config.smear else []  # for smear.py
        self.allocated: dict[int, CacheBlock] = {}  # by index
        self._free: list[int] = []  # a heap: the lowest index is allocated first

    # ---- ownership of blocks ---------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Number of blocks that the storage holds."""
        return self.keys[0].shape[0] - 1

    @property
    def used_blocks(self) -> int:
        """Number of blocks with at least one owner."""
        return len(self.allocated)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers, with the ids of its tokens where these are kept."""
        values = 2 * len(self.keys) * self.keys[0][0].numel() * self.keys[0].element_size()
        return values + sum(storage[0].nbytes for storage in self.tokens)

    def allocate(self) -> CacheBlock:
        """Returns a free block with one owner; grows the storage where no block is free."""
        if not self._free:
            self.ensure_free(1)
        block = CacheBlock(heapq.heappop(self._free))
        self.allocated[block.index] = block
        return block

    def release(self, block: CacheBlock) -> None:
        """Removes one owner of a block; the block is free when none is left."""
        block.ref_count -= 1
        if not block.ref_count:
            del self.allocated[block.index]
            heapq.heappush(self._free, block.index)

    def copy_blocks(self, sources: Sequence[CacheBlock]) -> list[CacheBlock]:
        """Returns a new block with the same content for each source."""
        self.ensure_free(len(sources))
        blocks = [self.allocate() for _ in sources]
        targets, origins = (
            torch.tensor([block.index for block in part], dtype=torch.int64, device=self.device)
            for part in (blocks, sources)
        )
        for storage in (*self.keys, *self.values, *self.tokens):
            storage[targets] = storage[origins]
        return blocks

    def fork(self, rows: Sequence[CacheRow]) -> list[CacheRow]:
        """Returns a copy of each row that can grow on its own; it shares full blocks and copies a partly filled one."""
        ends = [row.length // self.block_size for row in rows]
        for row, end in zip(rows, ends, strict=True):
            for block in row.block_table[:end]:
                block.ref_count += 1
        partial = [row.block_table[end] for row, end in zip(rows, ends, strict=True) if row.length % self.block_size]
        copies = iter(self.copy_blocks(partial))
        return [
            CacheRow([*row.block_table[:end], *([next(copies)] if row.length % self.block_size else [])], row.length)
            for row, end in zip(rows, ends, strict=True)
        ]

    def release_row(self, row: CacheRow) -> None:
        """Releases all blocks of a row and empties it."""
        for block in row.block_table:
            self.release(block)
        row.block_table, row.length = [], 0

    def reserve(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """Allocates the blocks that each row needs for `counts` (B,) more tokens."""
        missing = [
            -(-(row.length + n) // self.block_size) - len(row.block_table) for row, n in zip(rows, counts, strict=True)
        ]
        self.ensure_free(sum(n for n in missing if n > 0))
        for row, count in zip(rows, missing, strict=True):
            row.block_table += [self.allocate() for _ in range(count)]

    def ensure_free(self, count: int) -> None:
        """Grows the storage until `count` blocks are free."""
        if len(self._free) < count:
            spare = self.used_blocks // GROWTH_DIVISOR
            if self.is_static:  # each growth costs captures: doubles while half of the free memory suffices
                free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 1 << 62
                spare = max(spare, min(self.used_blocks, free // 2 // self.block_bytes))
            self._resize(max(self.used_blocks + count, self.used_blocks + spare, 4))

    def trim(self) -> None:
        """Frees storage when less than half of it is used, unless it is static."""
        if self.is_static or 2 * self.used_blocks >= self.capacity:
            return
        blocks = [self.allocated[index] for index in sorted(self.allocated)]
        indices = torch.tensor([0, *(block.index for block in blocks)], device=self.device)
        for storages in (self.keys, self.values, self.tokens):
            for layer, old in enumerate(storages):
                storages[layer] = old[indices]
        self.storage_version += 1
        for index, block in enumerate(blocks, 1):
            block.index = index
        self.allocated, self._free = {block.index: block for block in blocks}, []

    def _resize(self, capacity: int) -> None:
        """Grows the storage to `capacity` blocks, more than there are."""
        size = self.capacity + 1
        for storages in (self.keys, self.values):
            for layer, old in enumerate(storages):
                storages[layer] = self._make_storage(capacity + 1)
                storages[layer][:size] = old[:size]
        self.tokens = [torch.cat((old, old.new_zeros(capacity + 1 - size, self.block_size))) for old in self.tokens]
        self.storage_version += 1
        self._free = [index for index in range(1, capacity + 1) if index not in self.allocated]

    def _make_storage(self, blocks: int) -> Tensor:
        """Returns zeros (blocks, H, S, D); in memory (blocks, S, H, D) where the cache is static."""
        heads, size, width = self.block_shape
        if self.is_static:
            return torch.zeros((blocks, size, heads, width), dtype=self.dtype, device=self.device).transpose(1, 2)
        return torch.zeros((blocks, heads, size, width), dtype=self.dtype, device=self.device)

    def _move_to_front(self, wanted: Sequence[CacheBlock]) -> None:
        """Moves the wanted blocks, each named once, to the indices 1, 2, ...; those beyond swap places with others."""
        beyond = [block for block in wanted if block.index > len(wanted)]
        occupied = {block.index for block in wanted}
        holes = [index for index in range(1, len(wanted) + 1) if index not in occupied]
        if not beyond:
            return
        sources = torch.tensor([block.index for block in beyond], device=self.device)
        targets = torch.tensor(holes, device=self.device)
        for storage in (*self.keys, *self.values, *self.tokens):
            moved = storage[sources]
            storage[sources] = storage[targets]
            storage[targets] = moved
        for block, hole in zip(beyond, holes, strict=True):
            other = self.allocated.pop(hole, None)
            del self.allocated[block.index]
            if other is not None:
                other.index = block.index
                self.allocated[other.index] = other
            block.index = hole
            self.allocated[hole] = block
        self._free = [index for index in range(1, self.capacity + 1) if index not in self.allocated]

    # ---- one forward pass ------------------------------------------------------------------------

    def make_batch(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> CacheBatch:
        """Prepares a forward pass of `counts` (B,) new tokens of each row, padded on the right to the largest count.

        Allocates the blocks that these tokens need. Padding is stored in block 0 and is never seen.
        """
        needed = [-(-(row.length + count) // self.block_size) for row, count in zip(rows, counts, strict=True)]
        self.reserve(rows, counts)
        starts_empty = all(row.length == 0 for row in rows)
        if not starts_empty and max(counts) == 1 and not self.is_static:
            self._compact_rows(rows)
        lengths = np.array([row.length for row in rows])
        positions = lengths[:, None] + np.arange(max(counts))  # (B, T)
        tables = [[block.index for block in row.block_table[:n]] for row, n in zip(rows, needed, strict=True)]
        blocks = np.zeros_like(positions)
        for number, (table, count) in enumerate(zip(tables, counts, strict=True)):
            blocks[number, :count] = np.array(table)[positions[number, :count] // self.block_size]
        offsets = self.to_tensor(positions % self.block_size)
        return CacheBatch(self, self.to_tensor(positions), self.to_tensor(blocks), offsets, tables, starts_empty)

    def to_tensor(self, values: np.ndarray) -> Tensor:
        """Returns an array as a tensor on the cache's device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _compact_rows(self, rows: Sequence[CacheRow]) -> None:
        """Moves the rows' blocks together where they are scattered: moved once, they are read at every step."""
        indices = [block.index for row in rows for block in row.block_table]
        if len(set(indices)) < MIN_SLICE_DENSITY * (max(indices) + 1 - min(indices)):
            self._move_to_front(list(dict.fromkeys(block for row in rows for block in row.block_table)))


def _make_attention_plan(batch: CacheBatch) -> AttentionPlan:
    """Chooses which blocks are read with whose queries, and how their partial results belong to rows.

    An entry is one block of one row's table, in the order of rows.
    """
    cache, rows = batch.cache, len(batch.block_tables)
    counts = np.array([len(table) for table in batch.block_tables])
    entries = np.fromiter(chain.from_iterable(batch.block_tables), np.int64)  # block indices
    owners = np.repeat(np.arange(rows), counts)
    row_offsets = np.cumsum(counts) - counts
    starts = (np.arange(len(entries)) - row_offsets[owners]) * cache.block_size  # position of the block's first token
    distinct, first = np.unique(entries, return_index=True)
    low, high = int(distinct[0]), int(distinct[-1]) + 1
    span: slice | Tensor
    if len(distinct) >= MIN_SLICE_DENSITY * (high - low):
        span, size, places = slice(low, high), high - low, distinct - low
    else:
        span, size, places = cache.to_tensor(distinct), len(distinct), np.arange(len(distinct))
    output_rows, start_positions = np.full(size, rows), np.full(size, REMAINING_START)
    output_rows[places], start_positions[places] = owners[first], starts[first]
    order = np.empty(len(entries), np.int64)
    order[first] = places
    shared_blocks = []
    repeated = np.delete(np.arange(len(entries)), first) if len(first) < len(entries) else first[:0]
    for group in _group_by_use_count(entries, repeated):
        width = max(map(len, group))
        readers = np.full((len(group), width), rows)
        for number, uses in enumerate(group):
            readers[number, : len(uses)] = owners[uses]
            order[uses] = size + number * width + np.arange(len(uses))
        size += readers.size
        one_use = np.array([uses[0] for uses in group])  # a shared block begins at the same position for all rows
        blocks, block_starts = cache.to_tensor(entries[one_use]), cache.to_tensor(starts[one_use])
        shared_blocks.append(
            SharedBlocks(blocks, cache.to_tensor(readers % rows), cache.to_tensor(readers), block_starts)
        )
    query_rows = cache.to_tensor(output_rows % rows)  # blocks that no row reads are read with the first row's queries
    first_keys = cache.to_tensor(start_positions)
    keys = first_keys[:, None, None] + torch.arange(cache.block_size, device=cache.device)  # (N, 1, S)
    blocked_mask = keys > batch.positions[query_rows][:, :, None]  # (N, T, S)
    return AttentionPlan(
        span,
        query_rows,
        cache.to_tensor(output_rows),
        blocked_mask,
        tuple(shared_blocks),
        cache.to_tensor(order),
        cache.to_tensor(row_offsets),
        first_keys,
    )


def _group_by_use_count(entries: np.ndarray, uses: np.ndarray) -> list[list[np.ndarray]]:
    """Splits uses (places in `entries`) by their block, and groups blocks with about as many uses (within 2x)."""
    if not len(uses):
        return []
    uses = uses[np.argsort(entries[uses], kind="stable")]
    by_block = np.split(uses, np.flatnonzero(np.diff(entries[uses])) + 1)
    groups: dict[int, list[np.ndarray]] = {}
    for block_uses in by_block:
        groups.setdefault(len(block_uses).bit_length(), []).append(block_uses)
    return list(groups.values())
