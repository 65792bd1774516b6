"""Who owns what: how parameters, gradients and optimizer state are dealt to the ranks of a run.

The one idea: a layout is a pure function of (names, shapes, roles, ranks, zero stage). Every rank computes the same
one, so nobody has to ask; and because it needs no tensor, the planner counts bytes with the very same function.

    embedding, head    by rows: rank r owns rows r k to (r + 1) k, k = ceil(rows / ranks); the last ranks may own less
    matrix             whole matrices, `ranks` equal-shaped ones a bucket, one each; the last bucket may hold fewer
    everything else    small: replicated, every rank owns all of it

A bucket is what travels in one collective: `chunk` units (rows or matrices) a rank, padded to equal chunks. At
stage 0, or on one rank, everything is replicated. Stages (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054): 1 shards
the optimizer's state, 2 the gradients too. Parameters stay whole on every rank.

What it is not: it moves nothing (`optimizer.py`) and knows no torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from fledgling.optim.groups import role_of

AHEAD = 2  # buckets in flight at most: what overlaps is bounded, and with it the memory of its buffers
STATE = {"matrix": 1}  # tensors of state a parameter: Muon keeps a velocity, AdamW a mean and a square
ADAMW_STATE = 2

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Bucket:
    """Equal units that travel together: the rows of one tensor, or one matrix of each of `names`.

    unit: values of one unit; count: units there are; chunk: units a rank owns at most. A replicated bucket has
    chunk 0: nobody's and everybody's.
    """

    names: tuple[str, ...]
    shape: Shape  # of each tensor
    unit: int
    count: int
    chunk: int

    @property
    def replicated(self) -> bool:
        """Whether every rank holds all of it."""
        return self.chunk == 0

    @property
    def by_rows(self) -> bool:
        """Whether its units are rows of one tensor."""
        return not self.replicated and self.unit != prod(self.shape)

    @property
    def values(self) -> int:
        """Values of all its tensors, without padding."""
        return self.unit * self.count

    def units(self, rank: int) -> range:
        """The units that `rank` owns; all of them where the bucket is replicated."""
        if self.replicated:
            return range(self.count)
        return range(min(rank * self.chunk, self.count), min((rank + 1) * self.chunk, self.count))

    def padded(self, size: int) -> int:
        """Values that travel: `size` equal chunks."""
        return self.values if self.replicated else self.unit * self.chunk * size


@dataclass(frozen=True)
class Held:
    """Values (not bytes) that one rank holds at its peak, outside activations; fp32 makes each four bytes.

    gradients: those that live at once, with the buckets being filled; state: the optimizer's; communication: buffers
    of the buckets in flight; padding: the part of these that is nobody's value.
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
    buckets: tuple[Bucket, ...]  # in the order in which a backward pass fills them: the last parameters first

    def held(self, rank: int = 0) -> Held:
        """Count what `rank` holds at its peak."""
        sizes = {name: prod(shape) for name, shape in self.parameters.items()}
        total = sum(sizes.values())
        own = [(bucket, bucket.unit * len(bucket.units(rank))) for bucket in self.buckets]
        state = sum(values * STATE.get(self.roles[b.names[0]], ADAMW_STATE) for b, values in own)
        travelling = sorted((bucket.padded(self.size) for bucket in self.buckets), reverse=True)[:AHEAD]
        communication = sum(travelling) if self.size > 1 else 0
        padding = max((b.padded(self.size) - b.values for b in self.buckets), default=0)
        shard = sum(values for _, values in own)
        gradients = total if self.zero < 2 or self.size == 1 else shard
        return Held(total, gradients, state, communication, padding)


def lay_out(
    parameters: Mapping[str, Shape], size: int = 1, zero: int = 1, roles: Mapping[str, str] | None = None
) -> Layout:
    """Deal parameters to `size` ranks. roles: by name; default: `role_of` each."""
    assert size >= 1 and zero in (0, 1, 2), f"{size} ranks, zero {zero}"
    roles = roles or {name: role_of(name, shape) for name, shape in parameters.items()}
    buckets: list[Bucket] = []
    filling: dict[Shape, list[str]] = defaultdict(list)  # matrices of a shape, until there is one for each rank
    small: list[str] = []
    for name, shape in reversed(parameters.items()):
        if roles[name] not in ("embedding", "head", "matrix"):
            small.append(name)
        elif zero == 0 or size == 1:
            buckets.append(Bucket((name,), shape, prod(shape), 1, 0))
        elif roles[name] == "matrix":
            filling[shape].append(name)
            if len(filling[shape]) == size:
                buckets.append(_stack(shape, filling.pop(shape)))
        else:
            buckets.append(Bucket((name,), shape, prod(shape[1:]), shape[0], -(-shape[0] // size)))
    buckets += [_stack(shape, names) for shape, names in filling.items()]
    buckets += [Bucket((name,), parameters[name], prod(parameters[name]), 1, 0) for name in small]
    return Layout(dict(parameters), dict(roles), size, zero, tuple(buckets))


def _stack(shape: Shape, names: list[str]) -> Bucket:
    return Bucket(tuple(names), shape, prod(shape), len(names), 1)
