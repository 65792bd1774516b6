"""Counts memory with sharded parameters (ZeRO-3): what is gathered, sent and kept, phase by phase.

`fully_shard` holds at any time one block in full, the next one in transit, the gradient of the previous one leaving,
and the head from the start of forward to the end of backward. In values, padded where rows do not divide:

    gather      the head and its buffer, then the embedding's
    backward    the head and its gradient, a block and its gradient, the block before it arriving, the one after leaving
    exchange    the gradients of both tables, and the head's in transit
    optimizer   the rows of gradients; a stack of collected matrices, and as much in transit

Activations are counted in `memory.py`; small tensors are replicated.
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
    """Parameters that are gathered together: their names in the model's order, values, and padded values per rank."""

    names: tuple[str, ...]
    values: int
    rank_values: int
    ranks: int

    @property
    def padded_values(self) -> int:
        """Padded values over all ranks."""
        return self.rank_values * self.ranks


def gather_groups(partition: Partition) -> dict[str, GatherGroup]:
    """Returns the groups that are gathered together, by module: the blocks, the embedding, and "" for the head."""
    sharded = {name for bucket in partition.buckets if not bucket.replicated for name in bucket.names}
    groups: dict[str, list[str]] = {"": []}
    for name in partition.parameters:
        if name in sharded:
            groups.setdefault(fsdp_module_of(name), []).append(name)
    return {module: _make_gather_group(partition, tuple(names)) for module, names in groups.items()}


def _make_gather_group(partition: Partition, names: tuple[str, ...]) -> GatherGroup:
    shapes = [partition.parameters[name] for name in names]
    rank_values = sum(-(-shape[0] // partition.world_size) * prod(shape[1:]) for shape in shapes)
    return GatherGroup(names, sum(map(prod, shapes)), rank_values, partition.world_size)


def replicated_values(partition: Partition) -> int:
    """Returns the values that stay in full on every rank."""
    return sum(bucket.num_values for bucket in partition.buckets if bucket.replicated)


def resident_values(partition: Partition) -> int:
    """Returns the parameter values that a rank holds between steps."""
    return sum(group.rank_values for group in gather_groups(partition).values()) + replicated_values(partition)


def gather_peak(partition: Partition) -> int:
    """Returns the buffer values of the first gather: the head in its buffer, itself, and the group after it."""
    groups = gather_groups(partition)
    following = groups.get("embedding") or groups["blocks.0"]
    return 2 * groups[""].padded_values + following.padded_values


def backward_arrivals(partition: Partition, received: bool) -> list[GradientArrival]:
    """Returns gradients and buffers over a backward pass, last parameters first; the last entry, named "", is its end.

    received: whether gradients are received in full and added locally, as with gloo and in deterministic mode.
    """
    groups = gather_groups(partition)
    head, embedding = groups.pop(""), groups.pop("embedding", None)
    blocks = list(groups.values())
    arrivals: list[GradientArrival] = []
    gradients = head.values
    arrivals.append(GradientArrival(head.names[-1], (gradients, head.padded_values), (gradients, head.padded_values)))
    leaving = 0
    for index in range(len(blocks) - 1, -1, -1):
        block, arriving = blocks[index], blocks[index - 1].padded_values if index else 0
        buffers = head.padded_values + block.padded_values + arriving + leaving
        for name in reversed(block.names):
            gradients += prod(partition.parameters[name])
            arrivals.append(GradientArrival(name, (gradients, buffers), (gradients, buffers)))
        packed = (gradients, head.padded_values + arriving + block.padded_values)
        gradients += block.rank_values - block.values
        late_gradient = prod(partition.parameters[block.names[-1]])  # PyTorch frees the last gradient of a group late
        sent = (
            gradients + late_gradient + block.rank_values * received,
            head.padded_values + arriving + block.padded_values * (1 + received),
        )
        leaving = block.padded_values
        peak = max(arrivals[-1].peak, packed, sent, key=sum)
        arrivals[-1] = GradientArrival(arrivals[-1].name, peak, (gradients, head.padded_values + arriving + leaving))
    if embedding:
        gradients += embedding.values
        totals = (gradients, head.padded_values + leaving)
        arrivals.append(GradientArrival(embedding.names[0], totals, totals))
    gradients += replicated_values(partition)
    candidates = []
    for table in filter(None, (head, embedding)):
        candidates.append((gradients, table.padded_values))
        gradients += table.rank_values - table.values
        candidates.append(
            (gradients + table.values + table.rank_values * received, table.padded_values * (1 + received))
        )
    return [*arrivals, GradientArrival("", max(candidates, key=sum), (gradients, 0))]


def update_peak(partition: Partition, width: float, compiled: bool) -> tuple[int, int, int]:
    """Returns (gradients, temporaries, buffers) at the optimizer's peak. width: of Muon's products, in fp32 values."""
    modules = gather_groups(partition)
    remaining = {module: group.rank_values for module, group in modules.items()}
    pending = {module: set(group.names) for module, group in modules.items()}
    owned = replicated_values(partition)  # gradients that the rank already owns
    candidates = [(sum(remaining.values()) + owned, 0, 0)]
    groups: dict[tuple, list[Bucket]] = {}
    for bucket in partition.buckets:
        if bucket.replicated or not _is_matrix(partition, bucket):
            continue
        groups.setdefault(partition.parameters[bucket.names[0]], []).append(bucket)
        matrix = _count_padded_values(partition, bucket)
        candidates.append((sum(remaining.values()) + owned, 0, 2 * matrix))
        owned += matrix * bool(bucket.rank_units(0))
        for name in bucket.names:
            module = fsdp_module_of(name)
            pending[module].discard(name)
            remaining[module] *= bool(pending[module])
    tables = sum(remaining.values())
    for table in (remaining[module] for module in ("", "embedding") if module in remaining):
        temporaries = 0 if compiled else 7 * min(table, ADAMW_BLOCK_VALUES)
        candidates.append((tables + owned, temporaries, 0))
    for shape, buckets in groups.items():
        stacked = min(muon_stack_size(shape), len(buckets))
        matrices = stacked * _count_padded_values(partition, buckets[0])
        gram = 2 * width * min(shape) / max(shape)
        temporaries = round(matrices * (2 + gram if width == 1 else 2.5))
        candidates.append((tables + owned, 0, 2 * matrices))
        candidates.append((tables + owned, temporaries, matrices))
        candidates.append((tables + owned - matrices, 0, 3 * matrices))
        owned -= len(buckets) * _count_padded_values(partition, buckets[0])
    return max(candidates, key=sum)


def _is_matrix(partition: Partition, bucket: Bucket) -> bool:
    """Returns whether the bucket holds matrices of blocks."""
    return partition.roles[bucket.names[0]] == "matrix"


def _count_padded_values(partition: Partition, bucket: Bucket) -> int:
    """Returns the values of one of the bucket's matrices, its rows padded to a multiple of the ranks."""
    rows, columns = partition.parameters[bucket.names[0]]
    return -(-rows // partition.world_size) * partition.world_size * columns
