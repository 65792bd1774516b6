"""Where memory goes when parameters are sharded too (`zero = 3`): what is gathered, sent and kept, moment by moment.

The one idea: `fully_shard` holds at any time one block whole, the next one on its way and the last one's gradient
leaving, and the head from the beginning of forward to the end of backward. In values, padded where rows do not divide:

    gather      the head and its buffer, then the embedding's
    backward    the head and its gradient, a block and its gradient, the block before it arriving, the one after leaving
    exchange    both tables' gradients, and the head's on its way
    optimizer   the rows of gradients; a stack of matrices that came together, and as much on its way

What it is not: activations, which are `memory.py`'s, and small tensors, which stay whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from fledgling.optim.layout import ADAMW_VALUES, Arrival, Bucket, Layout, gathered_with, stack_size


@dataclass(frozen=True)
class Together:
    """Parameters that are gathered together: their names in the model's order, values, and padded values of a rank."""

    names: tuple[str, ...]
    values: int
    piece: int
    ranks: int

    @property
    def whole(self) -> int:
        """Values of all ranks' pieces."""
        return self.piece * self.ranks


def homes(dealt: Layout) -> dict[str, Together]:
    """What is gathered together, by module: the blocks, the embedding, and "" for the head."""
    sharded = {name for bucket in dealt.buckets if not bucket.replicated for name in bucket.names}
    found: dict[str, list[str]] = {"": []}
    for name in dealt.parameters:
        if name in sharded:
            found.setdefault(gathered_with(name), []).append(name)
    return {home: _together(dealt, tuple(names)) for home, names in found.items()}


def _together(dealt: Layout, names: tuple[str, ...]) -> Together:
    shapes = [dealt.parameters[name] for name in names]
    piece = sum(-(-shape[0] // dealt.size) * prod(shape[1:]) for shape in shapes)
    return Together(names, sum(map(prod, shapes)), piece, dealt.size)


def small(dealt: Layout) -> int:
    """Values of what stays whole on every rank."""
    return sum(bucket.values for bucket in dealt.buckets if bucket.replicated)


def standing(dealt: Layout) -> int:
    """Values of parameters that a rank holds between steps."""
    return sum(home.piece for home in homes(dealt).values()) + small(dealt)


def gather(dealt: Layout) -> int:
    """Values of buffers when the first parameters come together: the head in its buffer, itself, and what follows."""
    places = homes(dealt)
    after = places.get("embedding") or places["blocks.0"]
    return 2 * places[""].whole + after.whole


def arrivals(dealt: Layout, received: bool) -> list[Arrival]:
    """Gradients and buffers while a backward pass goes through the model, last parameters first; the last entry, named
    "", is its end. received: gradients are received whole and added here, as on gloo and in exact mode.
    """
    places = homes(dealt)
    head, embedding = places.pop(""), places.pop("embedding", None)
    blocks = list(places.values())
    found: list[Arrival] = []
    gradients = head.values
    found.append(Arrival(head.names[-1], (gradients, head.whole), (gradients, head.whole)))
    leaving = 0
    for index in range(len(blocks) - 1, -1, -1):
        block, ahead = blocks[index], blocks[index - 1].whole if index else 0
        buffers = head.whole + block.whole + ahead + leaving
        for name in reversed(block.names):
            gradients += prod(dealt.parameters[name])
            found.append(Arrival(name, (gradients, buffers), (gradients, buffers)))
        packed = (gradients, head.whole + ahead + block.whole)
        gradients += block.piece - block.values
        kept = prod(dealt.parameters[block.names[-1]])  # of a group's gradients PyTorch lets go of the last one late
        sent = (gradients + kept + block.piece * received, head.whole + ahead + block.whole * (1 + received))
        leaving = block.whole
        peak = max(found[-1].peak, packed, sent, key=sum)
        found[-1] = Arrival(found[-1].name, peak, (gradients, head.whole + ahead + leaving))
    if embedding:
        gradients += embedding.values
        both = (gradients, head.whole + leaving)
        found.append(Arrival(embedding.names[0], both, both))
    gradients += small(dealt)
    worst = []
    for table in filter(None, (head, embedding)):
        worst.append((gradients, table.whole))
        gradients += table.piece - table.values
        worst.append((gradients + table.values + table.piece * received, table.whole * (1 + received)))
    return [*found, Arrival("", max(worst, key=sum), (gradients, 0))]


def update(dealt: Layout, width: float, compiled: bool) -> tuple[int, int, int]:
    """(gradients, temporaries, buffers) at the optimizer's fullest moment. width: of Muon's products, in values."""
    places = homes(dealt)
    left = {home: place.piece for home, place in places.items()}
    waiting = {home: set(place.names) for home, place in places.items()}
    whole = small(dealt)  # gradients that the rank owns already
    found = [(sum(left.values()) + whole, 0, 0)]
    groups: dict[tuple, list[Bucket]] = {}
    for bucket in dealt.buckets:
        if bucket.replicated or not _is_matrix(dealt, bucket):
            continue
        groups.setdefault(dealt.parameters[bucket.names[0]], []).append(bucket)
        matrix = _padded(dealt, bucket)
        found.append((sum(left.values()) + whole, 0, 2 * matrix))
        whole += matrix * bool(bucket.units(0))
        for name in bucket.names:
            home = gathered_with(name)
            waiting[home].discard(name)
            left[home] *= bool(waiting[home])
    tables = sum(left.values())
    for table in (left[home] for home in ("", "embedding") if home in left):
        work = 0 if compiled else 7 * min(table, ADAMW_VALUES)
        found.append((tables + whole, work, 0))
    for shape, buckets in groups.items():
        together = min(stack_size(shape), len(buckets))
        matrices = together * _padded(dealt, buckets[0])
        gram = 2 * width * min(shape) / max(shape)
        temporaries = round(matrices * (2 + gram if width == 1 else 2.5))
        found.append((tables + whole, 0, 2 * matrices))
        found.append((tables + whole, temporaries, matrices))
        found.append((tables + whole - matrices, 0, 3 * matrices))
        whole -= len(buckets) * _padded(dealt, buckets[0])
    return max(found, key=sum)


def _is_matrix(dealt: Layout, bucket: Bucket) -> bool:
    return dealt.roles[bucket.names[0]] == "matrix"


def _padded(dealt: Layout, bucket: Bucket) -> int:
    """Values of one of its matrices, its rows padded to a multiple of the ranks."""
    rows, columns = dealt.parameters[bucket.names[0]]
    return -(-rows // dealt.size) * dealt.size * columns
