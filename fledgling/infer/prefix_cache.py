"""The prefix cache: a tree of cache blocks by the tokens they hold, so that a common prefix is computed once.

Keys and values depend on a token and on all tokens before it, so a block is identified by its tokens and its parent.
Requests with a common prefix share its blocks: whole blocks in place, the last one as a copy of as many tokens as
agree. Unused blocks stay until memory is needed; the least recently used is evicted first, and never before the
blocks that continue it.

The tree is valid for one set of weights: call `clear` when they change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from fledgling.model.cache import CacheBlock, CacheRow, KVCache

BlockKey = tuple[int, tuple[int, ...]]  # (identity of the parent node, the block's tokens)


class PrefixNode:
    """A block in the tree. A leaf may hold fewer tokens than the block size."""

    __slots__ = ("block", "cached", "children", "parent", "ref_count", "tokens")

    def __init__(self, block: CacheBlock, tokens: tuple[int, ...], parent: PrefixNode | None) -> None:
        self.block, self.tokens, self.parent = block, tokens, parent
        self.children: dict[tuple[int, ...], PrefixNode] = {}
        self.ref_count = 0  # rows that use the block
        self.cached = True  # False once the node has been removed from the tree


class PrefixCache:
    """The tree of a KV cache. Evicts unused blocks while the cache holds more than `max_tokens` tokens."""

    def __init__(self, cache: KVCache, max_tokens: int) -> None:
        self.cache, self.max_blocks = cache, max_tokens // cache.block_size
        self.roots: dict[tuple[int, ...], PrefixNode] = {}
        self.evictable: OrderedDict[PrefixNode, None] = OrderedDict()  # nodes without users, oldest first

    def match_prefix(self, tokens: Sequence[int]) -> tuple[list[PrefixNode], PrefixNode | None, int]:
        """Finds what is cached of these tokens.

        Returns:
            The nodes of whole blocks; the node that agrees with the most tokens after these blocks, or None; and the
            number of tokens that agree in that node.
        """
        size, children = self.cache.block_size, self.roots
        nodes: list[PrefixNode] = []
        while len(tokens) >= size * (len(nodes) + 1):
            child = children.get(tuple(tokens[size * len(nodes) : size * (len(nodes) + 1)]))
            if child is None:
                break
            nodes.append(child)
            children = child.children
        rest = tuple(tokens[size * len(nodes) : size * (len(nodes) + 1)])
        best, best_length = None, 0
        for key, child in children.items():
            if rest and key[0] == rest[0] and (length := _common_length(key, rest)) > best_length:
                best, best_length = child, length
        return nodes, best, best_length

    def next_block_key(self, tokens: Sequence[int], nodes: Sequence[PrefixNode]) -> BlockKey | None:
        """Returns the key of the next whole block after `nodes`, None unless more than one block of tokens remains.

        The last token is always computed, since the answer needs its logits.
        Requests with equal keys need the same block: one of them computes it.
        """
        start = self.cache.block_size * len(nodes)
        end = start + self.cache.block_size
        if len(tokens) <= end:
            return None
        return id(nodes[-1]) if nodes else 0, tuple(tokens[start:end])

    def attach(self, row: CacheRow, tokens: Sequence[int]) -> list[PrefixNode]:
        """Gives an empty row everything that is cached of these tokens; returns the nodes of its whole blocks."""
        nodes, partial, length = self.match_prefix(tokens)
        for node in nodes:
            node.block.ref_count += 1
            self._acquire(node)
        row.block_table = [node.block for node in nodes]
        if partial is not None:
            row.block_table += self.cache.copy_blocks([partial.block])
            used: PrefixNode | None = partial
            while used and used in self.evictable:  # the node and those that it continues have just been used
                self.evictable.move_to_end(used)
                used = used.parent
        row.length = len(nodes) * self.cache.block_size + length
        return nodes

    def insert(
        self, row: CacheRow, tokens: Sequence[int], nodes: list[PrefixNode], include_partial: bool = False
    ) -> None:
        """Inserts a row's blocks, and appends their nodes to `nodes`.

        Where another row has computed the same block, the row takes that one and releases its own.

        Args:
            row: the row; its first `len(nodes)` blocks are in the tree.
            tokens: the row's tokens, from the first.
            nodes: the row's nodes, extended in place.
            include_partial: also insert the last block where it is not full.
        """
        size = self.cache.block_size
        while row.length > size * len(nodes):
            count = min(size, row.length - size * len(nodes))
            if count < size and not include_partial:
                return
            parent = nodes[-1] if nodes else None
            children = parent.children if parent else self.roots
            key, block = tuple(tokens[size * len(nodes) : size * len(nodes) + count]), row.block_table[len(nodes)]
            child = children.get(key)
            if child is None:
                child = children[key] = PrefixNode(block, key, parent)
                block.ref_count += 1
            else:
                child.block.ref_count += 1
                row.block_table[len(nodes)] = child.block
                self.cache.release(block)
            self._acquire(child)
            nodes.append(child)

    def detach(self, nodes: list[PrefixNode]) -> None:
        """Ends a row's use of its nodes and empties the list. The last of its unused blocks is evicted first."""
        for node in reversed(nodes):
            node.ref_count -= 1
            if not node.ref_count and node.cached:
                self.evictable[node] = None
        nodes.clear()

    def evict(self, extra_blocks: int = 0) -> None:
        """Evicts unused blocks while the cache, with `extra_blocks` more, exceeds its limit."""
        while self.evictable and self.cache.used_blocks + extra_blocks > self.max_blocks:
            self._remove(next(iter(self.evictable)))

    def clear(self) -> None:
        """Removes all nodes, also those in use; rows keep their blocks until they release them."""
        for node in list(_walk(self.roots)):
            self._remove(node)

    def _acquire(self, node: PrefixNode) -> None:
        node.ref_count += 1
        self.evictable.pop(node, None)

    def _remove(self, node: PrefixNode) -> None:
        self.evictable.pop(node, None)
        node.cached = False
        (node.parent.children if node.parent else self.roots).pop(node.tokens, None)
        self.cache.release(node.block)


def _walk(children: dict[tuple[int, ...], PrefixNode]) -> Iterator[PrefixNode]:
    """Yields the nodes of these subtrees, children before their parents."""
    for child in children.values():
        yield from _walk(child.children)
        yield child


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the length of the longest common prefix."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)
