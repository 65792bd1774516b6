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

from fledgling.optim.partition import (
    ADAMW_BLOCK_VALUES,
    Bucket,
    GradientArrival,
    Partition,
    fsdp_module_of,
    muon_stack_size,
)


@dataclass(frozen=True)
class GatherGroup:
    """Parameters that are gathered together: their names in the model's order, values, and padded values of a rank."""

    names: tuple[str, ...]
    values: int
    rank_values: int
    ranks: int

    @property
    def padded_values(self) -> int:
        """Values of all ranks' pieces."""
        return self.rank_values * self.ranks


def gather_groups(dealt: Partition) -> dict[str, GatherGroup]:
    """What is gathered together, by module: the blocks, the embedding, and "" for the head."""
    sharded = {name for bucket in dealt.buckets if not bucket.replicated for name in bucket.names}
    found: dict[str, list[str]] = {"": []}
    for name in dealt.parameters:
        if name in sharded:
            found.setdefault(fsdp_module_of(name), []).append(name)
    return {home: _together(dealt, tuple(names)) for home, names in found.items()}


def _together(dealt: Partition, names: tuple[str, ...]) -> GatherGroup:
    shapes = [dealt.parameters[name] for name in names]
    piece = sum(-(-shape[0] // dealt.world_size) * prod(shape[1:]) for shape in shapes)
    return GatherGroup(names, sum(map(prod, shapes)), piece, dealt.world_size)


def replicated_values(dealt: Partition) -> int:
    """Values of what stays whole on every rank."""
    return sum(bucket.num_values for bucket in dealt.buckets if bucket.replicated)


def resident_values(dealt: Partition) -> int:
    """Values of parameters that a rank holds between steps."""
    return sum(home.rank_values for home in gather_groups(dealt).values()) + replicated_values(dealt)


def gather_peak(dealt: Partition) -> int:
    """Values of buffers when the first parameters come together: the head in its buffer, itself, and what follows."""
    places = gather_groups(dealt)
    after = places.get("embedding") or places["blocks.0"]
    return 2 * places[""].padded_values + after.padded_values


def backward_arrivals(dealt: Partition, received: bool) -> list[GradientArrival]:
    """Gradients and buffers while a backward pass goes through the model, last parameters first; the last entry, named
    "", is its end. received: gradients are received whole and added here, as on gloo and in exact mode.
    """
    places = gather_groups(dealt)
    head, embedding = places.pop(""), places.pop("embedding", None)
    blocks = list(places.values())
    found: list[GradientArrival] = []
    gradients = head.values
    found.append(GradientArrival(head.names[-1], (gradients, head.padded_values), (gradients, head.padded_values)))
    leaving = 0
    for index in range(len(blocks) - 1, -1, -1):
        block, ahead = blocks[index], blocks[index - 1].padded_values if index else 0
        buffers = head.padded_values + block.padded_values + ahead + leaving
        for name in reversed(block.names):
            gradients += prod(dealt.parameters[name])
            found.append(GradientArrival(name, (gradients, buffers), (gradients, buffers)))
        packed = (gradients, head.padded_values + ahead + block.padded_values)
        gradients += block.rank_values - block.values
        kept = prod(dealt.parameters[block.names[-1]])  # of a group's gradients PyTorch lets go of the last one late
        sent = (
            gradients + kept + block.rank_values * received,
            head.padded_values + ahead + block.padded_values * (1 + received),
        )
        leaving = block.padded_values
        peak = max(found[-1].peak, packed, sent, key=sum)
        found[-1] = GradientArrival(found[-1].name, peak, (gradients, head.padded_values + ahead + leaving))
    if embedding:
        gradients += embedding.values
        both = (gradients, head.padded_values + leaving)
        found.append(GradientArrival(embedding.names[0], both, both))
    gradients += replicated_values(dealt)
    worst = []
    for table in filter(None, (head, embedding)):
        worst.append((gradients, table.padded_values))
        gradients += table.rank_values - table.values
        worst.append((gradients + table.values + table.rank_values * received, table.padded_values * (1 + received)))
    return [*found, GradientArrival("", max(worst, key=sum), (gradients, 0))]


def update_peak(dealt: Partition, width: float, compiled: bool) -> tuple[int, int, int]:
    """(gradients, temporaries, buffers) at the optimizer's fullest moment. width: of Muon's products, in values."""
    places = gather_groups(dealt)
    left = {home: place.rank_values for home, place in places.items()}
    waiting = {home: set(place.names) for home, place in places.items()}
    whole = replicated_values(dealt)  # gradients that the rank owns already
    found = [(sum(left.values()) + whole, 0, 0)]
    groups: dict[tuple, list[Bucket]] = {}
    for bucket in dealt.buckets:
        if bucket.replicated or not _is_matrix(dealt, bucket):
            continue
        groups.setdefault(dealt.parameters[bucket.names[0]], []).append(bucket)
        matrix = _padded(dealt, bucket)
        found.append((sum(left.values()) + whole, 0, 2 * matrix))
        whole += matrix * bool(bucket.rank_units(0))
        for name in bucket.names:
            home = fsdp_module_of(name)
            waiting[home].discard(name)
            left[home] *= bool(waiting[home])
    tables = sum(left.values())
    for table in (left[home] for home in ("", "embedding") if home in left):
        work = 0 if compiled else 7 * min(table, ADAMW_BLOCK_VALUES)
        found.append((tables + whole, work, 0))
    for shape, buckets in groups.items():
        together = min(muon_stack_size(shape), len(buckets))
        matrices = together * _padded(dealt, buckets[0])
        gram = 2 * width * min(shape) / max(shape)
        temporaries = round(matrices * (2 + gram if width == 1 else 2.5))
        found.append((tables + whole, 0, 2 * matrices))
        found.append((tables + whole, temporaries, matrices))
        found.append((tables + whole - matrices, 0, 3 * matrices))
        whole -= len(buckets) * _padded(dealt, buckets[0])
    return max(found, key=sum)


def _is_matrix(dealt: Partition, bucket: Bucket) -> bool:
    return dealt.roles[bucket.names[0]] == "matrix"


def _padded(dealt: Partition, bucket: Bucket) -> int:
    """Values of one of its matrices, its rows padded to a multiple of the ranks."""
    rows, columns = dealt.parameters[bucket.names[0]]
    return -(-rows // dealt.world_size) * dealt.world_size * columns
