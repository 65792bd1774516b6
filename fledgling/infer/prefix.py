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

from fledgling.model.cache import Block, KVCache, Row


class Node:
    """A block in the tree; a last one may hold fewer tokens than there is room for."""

    __slots__ = ("block", "children", "known", "parent", "tokens", "users")

    def __init__(self, block: Block | None, tokens: tuple[int, ...], parent: Node | None) -> None:
        self.block, self.tokens, self.parent = block, tokens, parent
        self.children: dict[tuple[int, ...], Node] = {}
        self.users = 0  # rows under way
        self.known = True  # False: the tree has let go of it


Frontier = tuple[int, tuple[int, ...]]


class Prefixes:
    """The tree over a cache. `tokens`: how many the cache may hold before what nobody reads is let go."""

    def __init__(self, cache: KVCache, tokens: int) -> None:
        self.cache, self.limit = cache, tokens // cache.block
        self.root = Node(None, (), None)
        self.idle: OrderedDict[Node, None] = OrderedDict()  # known and without users, oldest first

    def find(self, tokens: Sequence[int]) -> tuple[list[Node], Node | None, int]:
        """Whole blocks that these tokens begin with; then a block of which some more agree, and how many."""
        size, node, found = self.cache.block, self.root, []
        while len(tokens) >= size * (len(found) + 1):
            child = node.children.get(tuple(tokens[size * len(found) : size * (len(found) + 1)]))
            if child is None:
                break
            found.append(child)
            node = child
        rest = tuple(tokens[size * len(found) : size * (len(found) + 1)])
        best, most = None, 0
        for key, child in node.children.items():
            if rest and key[0] == rest[0] and (agreed := _agreed(key, rest)) > most:
                best, most = child, agreed
        return found, best, most

    def frontier(self, tokens: Sequence[int], nodes: Sequence[Node]) -> Frontier | None:
        """The next whole block that these tokens need beyond `nodes`: of two with the same one, one need compute it."""
        size, start = self.cache.block, self.cache.block * len(nodes)
        if len(tokens) <= start + size:
            return None
        return id(nodes[-1] if nodes else self.root), tuple(tokens[start : start + size])

    def begin(self, row: Row, tokens: Sequence[int]) -> list[Node]:
        """Give an empty row all that is known of these tokens; returns its nodes, one for each of its first blocks."""
        nodes, last, agreed = self.find(tokens)
        for node in nodes:
            node.block.holders += 1
            self._use(node)
        row.table = [node.block for node in nodes]
        if last is not None:
            row.table += self.cache.copies([last.block])
            while last in self.idle:  # used just now, and so were those that it continues
                self.idle.move_to_end(last)
                last = last.parent
        row.length = len(nodes) * self.cache.block + agreed
        return nodes

    def learn(self, row: Row, tokens: Sequence[int], nodes: list[Node], ended: bool = False) -> None:
        """Note what the row holds by now, appending to its nodes; where the same was read elsewhere the row takes that.

        ended: also its last, unfinished block.
        """
        size = self.cache.block
        node = nodes[-1] if nodes else self.root
        while row.length > size * len(nodes):
            held = min(size, row.length - size * len(nodes))
            if held < size and not ended:
                return
            key, mine = tuple(tokens[size * len(nodes) : size * len(nodes) + held]), row.table[len(nodes)]
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(mine, key, node)
                mine.holders += 1
            else:
                child.block.holders += 1
                row.table[len(nodes)] = child.block
                self.cache.release(mine)
            self._use(child)
            nodes.append(child)
            node = child

    def leave(self, nodes: list[Node]) -> None:
        """A row no longer reads these; its last block is the first to be let go."""
        for node in reversed(nodes):
            node.users -= 1
            if not node.users and node.known:
                self.idle[node] = None
        nodes.clear()

    def make_room(self, blocks: int = 0) -> None:
        """Let go of what nobody reads while the cache holds more than its limit, less `blocks`."""
        while self.idle and self.cache.in_use + blocks > self.limit:
            self._lose(next(iter(self.idle)))

    def forget(self) -> None:
        """The weights have changed: nothing that is known is true any more."""
        for node in list(self._all(self.root)):
            self._lose(node)
        self.root = Node(None, (), None)

    def _use(self, node: Node) -> None:
        node.users += 1
        self.idle.pop(node, None)

    def _lose(self, node: Node) -> None:
        self.idle.pop(node, None)
        node.known = False
        node.parent.children.pop(node.tokens, None)
        self.cache.release(node.block)

    def _all(self, node: Node) -> Iterator[Node]:
        for child in node.children.values():
            yield from self._all(child)
            yield child


def _agreed(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens two beginnings share."""
    count = 0
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            break
        count += 1
    return count
