"""What has been read before is not read again: a tree of blocks by the tokens they hold.

The one idea: keys and values depend on a token and all before it, so a block is known by its tokens and its parent.
Whoever begins alike shares the blocks from the root down, whole ones in place, the last one as a copy of as many
tokens as agree. What nobody reads any more stays until room is needed; the least recently used goes first, and a
block never before those that continue it.

What it is not: it computes nothing and knows no requests (batch.py). It holds for one set of weights: `forget` when
they change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from fledgling.model.cache import CacheBlock, CacheRow, KVCache


class PrefixNode:
    """A block in the tree; a last one may hold fewer tokens than there is room for."""

    __slots__ = ("block", "cached", "children", "parent", "ref_count", "tokens")

    def __init__(self, block: CacheBlock | None, tokens: tuple[int, ...], parent: PrefixNode | None) -> None:
        self.block, self.tokens, self.parent = block, tokens, parent
        self.children: dict[tuple[int, ...], PrefixNode] = {}
        self.ref_count = 0  # rows under way
        self.cached = True  # False: the tree has let go of it


BlockKey = tuple[int, tuple[int, ...]]


class PrefixCache:
    """The tree over a cache. `tokens`: how many the cache may hold before what nobody reads is let go."""

    def __init__(self, cache: KVCache, max_tokens: int) -> None:
        self.cache, self.max_blocks = cache, max_tokens // cache.block_size
        self.root = PrefixNode(None, (), None)
        self.evictable: OrderedDict[PrefixNode, None] = OrderedDict()  # known and without users, oldest first

    def match_prefix(self, tokens: Sequence[int]) -> tuple[list[PrefixNode], PrefixNode | None, int]:
        """Whole blocks that these tokens begin with; then a block of which some more agree, and how many."""
        size, node, found = self.cache.block_size, self.root, []
        while len(tokens) >= size * (len(found) + 1):
            child = node.children.get(tuple(tokens[size * len(found) : size * (len(found) + 1)]))
            if child is None:
                break
            found.append(child)
            node = child
        rest = tuple(tokens[size * len(found) : size * (len(found) + 1)])
        best, most = None, 0
        for key, child in node.children.items():
            if rest and key[0] == rest[0] and (agreed := _common_length(key, rest)) > most:
                best, most = child, agreed
        return found, best, most

    def next_block_key(self, tokens: Sequence[int], nodes: Sequence[PrefixNode]) -> BlockKey | None:
        """The next whole block that these tokens need beyond `nodes`: of two with the same one, one need compute it."""
        size, start = self.cache.block_size, self.cache.block_size * len(nodes)
        if len(tokens) <= start + size:
            return None
        return id(nodes[-1] if nodes else self.root), tuple(tokens[start : start + size])

    def attach(self, row: CacheRow, tokens: Sequence[int]) -> list[PrefixNode]:
        """Give an empty row all that is known of these tokens; returns its nodes, one for each of its first blocks."""
        nodes, last, agreed = self.match_prefix(tokens)
        for node in nodes:
            node.block.ref_count += 1
            self._acquire(node)
        row.block_table = [node.block for node in nodes]
        if last is not None:
            row.block_table += self.cache.copy_blocks([last.block])
            while last in self.evictable:  # used just now, and so were those that it continues
                self.evictable.move_to_end(last)
                last = last.parent
        row.length = len(nodes) * self.cache.block_size + agreed
        return nodes

    def insert(
        self, row: CacheRow, tokens: Sequence[int], nodes: list[PrefixNode], include_partial: bool = False
    ) -> None:
        """Note what the row holds by now, appending to its nodes; where the same was read elsewhere the row takes that.

        ended: also its last, unfinished block.
        """
        size = self.cache.block_size
        node = nodes[-1] if nodes else self.root
        while row.length > size * len(nodes):
            held = min(size, row.length - size * len(nodes))
            if held < size and not include_partial:
                return
            key, mine = tuple(tokens[size * len(nodes) : size * len(nodes) + held]), row.block_table[len(nodes)]
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = PrefixNode(mine, key, node)
                mine.ref_count += 1
            else:
                child.block.ref_count += 1
                row.block_table[len(nodes)] = child.block
                self.cache.release(mine)
            self._acquire(child)
            nodes.append(child)
            node = child

    def detach(self, nodes: list[PrefixNode]) -> None:
        """A row no longer reads these; its last block is the first to be let go."""
        for node in reversed(nodes):
            node.ref_count -= 1
            if not node.ref_count and node.cached:
                self.evictable[node] = None
        nodes.clear()

    def evict(self, extra_blocks: int = 0) -> None:
        """Let go of what nobody reads while the cache holds more than its limit, less `blocks`."""
        while self.evictable and self.cache.used_blocks + extra_blocks > self.max_blocks:
            self._remove(next(iter(self.evictable)))

    def clear(self) -> None:
        """The weights have changed: nothing that is known is true any more."""
        for node in list(self._descendants(self.root)):
            self._remove(node)
        self.root = PrefixNode(None, (), None)

    def _acquire(self, node: PrefixNode) -> None:
        node.ref_count += 1
        self.evictable.pop(node, None)

    def _remove(self, node: PrefixNode) -> None:
        self.evictable.pop(node, None)
        node.cached = False
        node.parent.children.pop(node.tokens, None)
        self.cache.release(node.block)

    def _descendants(self, node: PrefixNode) -> Iterator[PrefixNode]:
        for child in node.children.values():
            yield from self._descendants(child)
            yield child


def _common_length(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens two beginnings share."""
    count = 0
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            break
        count += 1
    return count
