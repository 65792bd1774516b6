"""Who owns what: how parameters, gradients and optimizer state are dealt to the ranks of a run.

The one idea: a layout is a pure function of (names, shapes, roles, ranks, ZeRO stage). Every rank computes the same
one, so nobody has to ask; and because it needs no tensor, the planner counts bytes with the very same function.

    embedding, head    by rows: rank r owns rows r k to (r + 1) k, k = ceil(rows / ranks); the last ranks may own less
    matrix             whole matrices, `ranks` equal-shaped ones a bucket, one each; the last bucket may hold fewer
    everything else    small: replicated, every rank owns all of it

A bucket is what travels in one collective: equal chunks, one a rank, padded where the units do not divide. At stage 0,
or on one rank, everything is replicated. Stages (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054): 1 shards the
optimizer's state, 2 the gradients too. Parameters stay whole on every rank.

What it is not: it moves nothing (`gradients.py`, `optimizer.py`) and knows no torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from fledgling.optim.groups import role_of

AHEAD = 2  # buckets in flight at most: what overlaps is bounded, and with it the memory of its buffers
MUON_STATE, ADAMW_STATE = 1, 2  # values of state a parameter: a velocity; a mean and a square

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Bucket:
    """`count` units of `unit` values that travel together, `chunk` units a rank.

    A unit is a row of one tensor, a matrix of each of `names`, or, replicated, a single value of any of them.
    """

    names: tuple[str, ...]
    unit: int
    count: int
    chunk: int
    replicated: bool = False

    @property
    def values(self) -> int:
        """Values of all its tensors, without padding."""
        return self.unit * self.count

    @property
    def piece(self) -> int:
        """Values of one rank's chunk, padding included."""
        return self.unit * self.chunk

    def units(self, rank: int) -> range:
        """The units that travel as `rank`'s chunk."""
        return range(min(rank * self.chunk, self.count), min((rank + 1) * self.chunk, self.count))

    def owned(self, rank: int) -> int:
        """Values that `rank` updates: its chunk's, or all where the bucket is replicated."""
        return self.values if self.replicated else self.unit * len(self.units(rank))


@dataclass(frozen=True)
class Held:
    """Values (not bytes) that one rank holds at its peak, outside activations; in fp32 each is four bytes.

    gradients: the whole ones and the own shards that live at once; state: the optimizer's; communication: buffers of
    the buckets in flight; padding: the part of communication that is nobody's value.
    """

    parameters: int
    gradients: int
    state: int
    communication: int
    padding: int

    @property
    def total(self) -> int:
        """All of it; padding is a part of communication."""
        return self.parameters + self.gradients + self.state + self.communication


@dataclass(frozen=True)
class Layout:
    """How `parameters` (name -> shape, in the model's order) are dealt to `size` ranks at ZeRO stage `zero`."""

    parameters: Mapping[str, Shape]
    roles: Mapping[str, str]
    size: int
    zero: int
    buckets: tuple[Bucket, ...]  # in the order in which a backward pass completes them: the last parameters first

    def rows(self, bucket: Bucket, name: str, rank: int) -> range:
        """The rows (first dimension) of parameter `name` that `rank` owns."""
        whole = range(self.parameters[name][0] if self.parameters[name] else 1)
        if bucket.replicated:
            return whole
        if self.roles[name] == "matrix":
            return whole if bucket.names.index(name) in bucket.units(rank) else range(0)
        return bucket.units(rank)

    def held(self, rank: int = 0) -> Held:
        """Count what `rank` holds at its peak."""
        total = sum(prod(shape) for shape in self.parameters.values())
        state = sum(
            bucket.owned(rank) * (MUON_STATE if self.roles[bucket.names[0]] == "matrix" else ADAMW_STATE)
            for bucket in self.buckets
        )
        alone = self.size == 1
        travelling = sorted((bucket.piece * self.size for bucket in self.buckets), reverse=True)[:AHEAD]
        padding = max((bucket.piece * self.size - bucket.values for bucket in self.buckets), default=0)
        shards = sum(bucket.piece for bucket in self.buckets)
        return Held(
            parameters=total,
            gradients=total if alone or self.zero < 2 else shards,
            state=state,
            communication=0 if alone else sum(travelling),
            padding=0 if alone else padding,
        )


def lay_out(
    parameters: Mapping[str, Shape], size: int = 1, zero: int = 1, roles: Mapping[str, str] | None = None
) -> Layout:
    """Deal parameters to `size` ranks. roles: embedding, head, matrix or scalar by name; default: `role_of` each."""
    assert size >= 1 and zero in (0, 1, 2), f"{size} ranks, zero {zero}"
    roles = roles or {name: role_of(name, shape) for name, shape in parameters.items()}
    buckets: list[Bucket] = []
    filling: dict[Shape, list[str]] = defaultdict(list)  # matrices of a shape, until there is one for each rank
    small: list[str] = []
    for name, shape in reversed(parameters.items()):
        if roles[name] not in ("embedding", "head", "matrix"):
            small.append(name)
        elif zero == 0 or size == 1:
            buckets.append(_replicated((name,), prod(shape), size))
        elif roles[name] == "matrix":
            filling[shape].append(name)
            if len(filling[shape]) == size:
                buckets.append(Bucket(tuple(filling.pop(shape)), prod(shape), size, 1))
        else:
            buckets.append(Bucket((name,), prod(shape[1:]), shape[0], -(-shape[0] // size)))
    buckets += [Bucket(tuple(names), prod(shape), len(names), 1) for shape, names in filling.items()]
    if small:
        buckets.append(_replicated(tuple(small), sum(prod(parameters[name]) for name in small), size))
    return Layout(dict(parameters), dict(roles), size, zero, tuple(buckets))


def _replicated(names: tuple[str, ...], values: int, size: int) -> Bucket:
    return Bucket(names, 1, values, -(-values // size), replicated=True)
