"""The key/value cache of decoding: blocks of a fixed number of tokens, and a table of them for every row.

One idea: a row owns no stretch of memory, only a list of blocks, so that rows of any length lie side by side without
gaps, a block that is let go serves whoever comes next, and rows that begin alike share what they share. Blocks are
never gathered to be read: a forward attends to each block where it lies, once, and adds up what belongs to a row
(`attention.paged`); those in use are kept together at the front, so that they are one slice.

What it is not: it does not know which tokens a block holds (infer/prefix_cache.py does), nor who asks.

B rows, T new tokens of a row, N blocks of S tokens, H key/value heads, D head width, L layers.
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

BLOCK_SIZE = (
    64  # tokens: read as quickly as a row in one piece; blocks of 16 take half as long again (docs/benchmarks.md)
)
GROWTH_DIVISOR = 8  # storage grows by an eighth, layer by layer
MIN_SLICE_DENSITY = 0.75  # of a slice of blocks must be wanted, else it is put in order, or its blocks are gathered
UNREAD_START = 1 << 40  # where a block that no row reads begins: beyond every query


@dataclass(eq=False, slots=True)
class CacheBlock:
    """S tokens of keys and values in every layer; `index` is where they lie now, `holders` how many hold on to it."""

    index: int
    ref_count: int = 1


@dataclass(eq=False)
class CacheRow:
    """One sequence: its blocks in order, and how many tokens they hold. The model writes behind `length`; only the
    caller moves it on."""

    block_table: list[CacheBlock] = field(default_factory=list)
    length: int = 0


@dataclass(frozen=True)
class SharedBlocks:
    """M blocks that K more rows read, beside the first one: asks, owners (M, K) as in `Plan`."""

    blocks: Tensor
    query_rows: Tensor
    output_rows: Tensor
    start_positions: Tensor  # (M,): the position of each block's first key


@dataclass(frozen=True)
class AttentionPlan:
    """What attention to blocks reads. Partial results stand in the order: span, then each of `shared`.

    span: the blocks read, a slice or their indices (N,); asks (N,): whose queries each is read with; owners (N,): the
    row that gets the result, B for nobody; hidden (N, T, S): keys that a query must not see; order (P,), begins (B,):
    the partial results of each row one row after the other, and where each row's begin.
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
    """One forward of B rows: where its T new tokens of each stand and go, and what they attend to.

    positions (B, T); blocks, offsets (B, T): where the new keys go; tables: of each row, the indices of its blocks that
    hold anything. `fresh`: nothing came before.
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
        """Made when a forward first asks for it."""
        return _make_attention_plan(self)

    def blocked_mask(self, window_size: int | None) -> tuple[Tensor, list[Tensor | None]]:
        """What queries that see `window` tokens must not: (N, 1, T, S) of the span, (M, K, T, S) of each of `shared`.

        None hides nothing. Made once for all layers of a window.
        """
        plan = self.attention_plan
        if window_size is None:
            return plan.blocked_mask[:, None], [None] * len(plan.shared_blocks)
        if window_size not in self.window_masks:
            within = torch.arange(self.cache.block_size, device=self.cache.device)
            span = ~window_mask(self.positions[plan.query_rows], plan.start_positions[:, None] + within, window_size)[
                :, None
            ]
            shared = [
                ~window_mask(self.positions[s.query_rows], s.start_positions[:, None, None] + within, window_size)
                for s in plan.shared_blocks
            ]
            self.window_masks[window_size] = span, shared
        return self.window_masks[window_size]

    @cached_property
    def padded_block_tables(self) -> Tensor:
        """The tables as one (B, most blocks of a row), 0 behind a row's last: for who follows them token by token."""
        most = max(map(len, self.block_tables))
        return self.cache.to_tensor(np.array([[*table, *[0] * (most - len(table))] for table in self.block_tables]))

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (B, H, T, D) of the new tokens."""
        cache = self.cache
        cache.keys[layer][self.block_indices, :, self.block_offsets] = keys.transpose(1, 2).to(cache.dtype)
        cache.values[layer][self.block_indices, :, self.block_offsets] = values.transpose(1, 2).to(cache.dtype)


class KVCache:
    """Blocks of keys and values, L tensors (N, H, S, D) of each. Block 0 takes what is padded, and is never read."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self.block_size, self.dtype, self.device = block_size, dtype, torch.device(device)
        empty = torch.zeros((1, config.kv_heads, block_size, config.head_width), dtype=dtype, device=device)
        self.keys = [empty.clone() for _ in range(config.depth)]
        self.values = [empty.clone() for _ in range(config.depth)]
        self.allocated: dict[int, CacheBlock] = {}  # by index
        self._free: list[int] = []  # a heap: the lowest is taken first

    # ---- who holds what --------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Blocks that there is storage for."""
        return self.keys[0].shape[0] - 1

    @property
    def used_blocks(self) -> int:
        """Blocks held by anybody."""
        return len(self.allocated)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return 2 * len(self.keys) * self.keys[0][0].numel() * self.keys[0].element_size()

    def allocate(self) -> CacheBlock:
        """A free block, held once; grows the storage where there is none."""
        if not self._free:
            self.ensure_free(1)
        block = CacheBlock(heapq.heappop(self._free))
        self.allocated[block.index] = block
        return block

    def release(self, block: CacheBlock) -> None:
        """Let go of a block; it is free once nobody holds it."""
        block.ref_count -= 1
        if not block.ref_count:
            del self.allocated[block.index]
            heapq.heappush(self._free, block.index)

    def copy_blocks(self, sources: Sequence[CacheBlock]) -> list[CacheBlock]:
        """For each of the sources a block of one's own with the same content."""
        self.ensure_free(len(sources))
        blocks = [self.allocate() for _ in sources]
        to, of = (
            torch.tensor([block.index for block in part], dtype=torch.int64, device=self.device)
            for part in (blocks, sources)
        )
        for pool in (*self.keys, *self.values):
            pool[to] = pool[of]
        return blocks

    def fork(self, rows: Sequence[CacheRow]) -> list[CacheRow]:
        """For each of the rows another that goes on from there: whole blocks are shared, the one that is being filled
        is copied."""
        ends = [row.length // self.block_size for row in rows]
        for row, end in zip(rows, ends, strict=True):
            for block in row.block_table[:end]:
                block.ref_count += 1
        begun = [row.block_table[end] for row, end in zip(rows, ends, strict=True) if row.length % self.block_size]
        own = iter(self.copy_blocks(begun))
        return [
            CacheRow([*row.block_table[:end], *([next(own)] if row.length % self.block_size else [])], row.length)
            for row, end in zip(rows, ends, strict=True)
        ]

    def release_row(self, row: CacheRow) -> None:
        """Let go of all that a row holds."""
        for block in row.block_table:
            self.release(block)
        row.block_table, row.length = [], 0

    def reserve(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> None:
        """Let each row hold so many more tokens."""
        lacking = [
            -(-(row.length + n) // self.block_size) - len(row.block_table) for row, n in zip(rows, counts, strict=True)
        ]
        self.ensure_free(sum(n for n in lacking if n > 0))
        for row, count in zip(rows, lacking, strict=True):
            row.block_table += [self.allocate() for _ in range(count)]

    def ensure_free(self, count: int) -> None:
        """Have storage for `count` more blocks."""
        if len(self._free) < count:
            self._resize(max(self.used_blocks + count, self.used_blocks + self.used_blocks // GROWTH_DIVISOR, 4))

    def trim(self) -> None:
        """Give back storage of which less than half is in use."""
        if 2 * self.used_blocks >= self.capacity:
            return
        kept = [self.allocated[index] for index in sorted(self.allocated)]
        places = torch.tensor([0, *(block.index for block in kept)], device=self.device)
        for pools in (self.keys, self.values):
            for layer, old in enumerate(pools):
                pools[layer] = old[places]
        for index, block in enumerate(kept, 1):
            block.index = index
        self.allocated, self._free = {block.index: block for block in kept}, []

    def _resize(self, blocks: int) -> None:
        """Have storage for that many blocks, more than there are."""
        kept = self.capacity + 1
        for pools in (self.keys, self.values):
            for layer, old in enumerate(pools):
                pools[layer] = old.new_zeros((blocks + 1, *old.shape[1:]))
                pools[layer][:kept] = old[:kept]
        self._free = [index for index in range(1, blocks + 1) if index not in self.allocated]

    def _move_to_front(self, wanted: Sequence[CacheBlock]) -> None:
        """Let the wanted blocks, each once, lie at 1, 2, ...: those beyond change places with what is there."""
        beyond = [block for block in wanted if block.index > len(wanted)]
        here = {block.index for block in wanted}
        holes = [index for index in range(1, len(wanted) + 1) if index not in here]
        if not beyond:
            return
        sources = torch.tensor([block.index for block in beyond], device=self.device)
        targets = torch.tensor(holes, device=self.device)
        for pool in (*self.keys, *self.values):
            moved = pool[sources]
            pool[sources] = pool[targets]
            pool[targets] = moved
        for block, hole in zip(beyond, holes, strict=True):
            other = self.allocated.pop(hole, None)
            del self.allocated[block.index]
            if other is not None:
                other.index = block.index
                self.allocated[other.index] = other
            block.index = hole
            self.allocated[hole] = block
        self._free = [index for index in range(1, self.capacity + 1) if index not in self.allocated]

    # ---- one forward -----------------------------------------------------------------------------

    def make_batch(self, rows: Sequence[CacheRow], counts: Sequence[int]) -> CacheBatch:
        """What a forward of `counts` (B,) new tokens of each row, padded on the right to the most, writes and reads.

        The rows get the blocks that these tokens need. Padded tokens go to block 0, and nobody sees them.
        """
        needed = [-(-(row.length + count) // self.block_size) for row, count in zip(rows, counts, strict=True)]
        self.reserve(rows, counts)
        fresh = all(row.length == 0 for row in rows)
        if not fresh and max(counts) == 1:
            self._compact_rows(rows)
        lengths = np.array([row.length for row in rows])
        positions = lengths[:, None] + np.arange(max(counts))  # (B, T)
        tables = [[block.index for block in row.block_table[:n]] for row, n in zip(rows, needed, strict=True)]
        blocks = np.zeros_like(positions)
        for number, (table, count) in enumerate(zip(tables, counts, strict=True)):
            blocks[number, :count] = np.array(table)[positions[number, :count] // self.block_size]
        written = (self.to_tensor(positions), self.to_tensor(blocks), self.to_tensor(positions % self.block_size))
        return CacheBatch(self, *written, tables, fresh)

    def to_tensor(self, values: np.ndarray) -> Tensor:
        """An array on the cache's device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _compact_rows(self, rows: Sequence[CacheRow]) -> None:
        """Bring the rows' blocks together where they are scattered: moved once, they are read at every step."""
        indices = [block.index for row in rows for block in row.block_table]
        if len(set(indices)) < MIN_SLICE_DENSITY * (max(indices) + 1 - min(indices)):
            self._move_to_front(list(dict.fromkeys(block for row in rows for block in row.block_table)))


def _make_attention_plan(reading: CacheBatch) -> AttentionPlan:
    """Which blocks are read, with whose queries, and how their partial results belong to rows."""
    cache, rows = reading.cache, len(reading.block_tables)
    count = np.array([len(table) for table in reading.block_tables])
    flat = np.fromiter(chain.from_iterable(reading.block_tables), np.int64)
    owner = np.repeat(np.arange(rows), count)
    begins = np.cumsum(count) - count
    starts = (
        np.arange(len(flat)) - begins[owner]
    ) * cache.block_size  # position of each block's first token in its row
    distinct, first = np.unique(flat, return_index=True)
    low, high = int(distinct[0]), int(distinct[-1]) + 1
    if len(distinct) >= MIN_SLICE_DENSITY * (high - low):
        span, size, place = slice(low, high), high - low, distinct - low
    else:
        span, size, place = cache.to_tensor(distinct), len(distinct), np.arange(len(distinct))
    owners, at = np.full(size, rows), np.full(size, UNREAD_START)
    owners[place], at[place] = owner[first], starts[first]
    order = np.empty(len(flat), np.int64)
    order[first] = place
    shared = []
    again = np.delete(np.arange(len(flat)), first) if len(first) < len(flat) else first[:0]
    for group in _group_by_use_count(flat, again):
        width = max(map(len, group))
        theirs = np.full((len(group), width), rows)
        for number, pairs in enumerate(group):
            theirs[number, : len(pairs)] = owner[pairs]
            order[pairs] = size + number * width + np.arange(len(pairs))
        size += theirs.size
        one = np.array([pairs[0] for pairs in group])  # a block that is shared begins at one position for all
        of, begun = cache.to_tensor(flat[one]), cache.to_tensor(starts[one])
        shared.append(SharedBlocks(of, cache.to_tensor(theirs % rows), cache.to_tensor(theirs), begun))
    asks = cache.to_tensor(owners % rows)  # nobody's blocks are read with the first row's queries, for nothing
    places = cache.to_tensor(at)
    keys = places[:, None, None] + torch.arange(cache.block_size, device=cache.device)  # (N, 1, S)
    hidden = keys > reading.positions[asks][:, :, None]  # (N, T, S)
    of_rows = (cache.to_tensor(order), cache.to_tensor(begins))
    return AttentionPlan(span, asks, cache.to_tensor(owners), hidden, tuple(shared), *of_rows, places)


def _group_by_use_count(flat: np.ndarray, pairs: np.ndarray) -> list[list[np.ndarray]]:
    """Pairs (places in `flat`) by the block they name, in groups of blocks named about equally often (within 2x)."""
    if not len(pairs):
        return []
    pairs = pairs[np.argsort(flat[pairs], kind="stable")]
    by_block = np.split(pairs, np.flatnonzero(np.diff(flat[pairs])) + 1)
    groups: dict[int, list[np.ndarray]] = {}
    for each in by_block:
        groups.setdefault(len(each).bit_length(), []).append(each)
    return list(groups.values())
