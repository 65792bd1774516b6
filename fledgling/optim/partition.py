"""Who owns what: how parameters, gradients and optimizer state are dealt to the ranks of a run.

The one idea: a layout is a pure function of (names, shapes, roles, ranks, ZeRO stage). Every rank computes the same
one, so nobody has to ask; and because it needs no tensor, the planner counts bytes with the very same function.

    embedding, head    by rows: rank r owns rows r k to (r + 1) k, k = ceil(rows / ranks); the last ranks may own less
    matrix             whole matrices, `ranks` equal-shaped ones a bucket, one each; the last bucket may hold fewer
    everything else    small: replicated, every rank owns all of it

A bucket is what travels in one collective: equal chunks, one a rank, padded where the units do not divide. At stage 0,
or on one rank, everything is replicated. Stages (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054): 1 shards the
optimizer's state, 2 the gradients too; parameters stay whole on every rank. 3 shards these too, all large ones by rows;
the state is where it is at 1 and 2.

What it is not: it moves nothing (`gradients.py`, `optimizer.py`) and knows no torch.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from fledgling.optim.roles import assign_role

MAX_IN_FLIGHT = 2  # buckets in flight at most: what overlaps is bounded, and with it the memory of its buffers
# Values of the matrices orthogonalized at once. CPU: 16 of 256 x 256, the last size that gains by stacking. CUDA: all
# 80 of 1,280 x 1,280 of depth 20; on an H100 that model's iterations take 84 ms one by one and 29 ms stacked.
MUON_STACK_VALUES = {"cpu": 1 << 20, "cuda": 1 << 27}
ADAMW_BLOCK_VALUES = (
    1 << 18
)  # updated at once where nothing fuses the rule: its temporaries stay in the processor's cache

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Bucket:
    """`count` units of `unit` values that travel together, `chunk` units a rank.

    A unit is a row of one tensor, a matrix of each of `names`, or, replicated, a single value of any of them.
    """

    names: tuple[str, ...]
    unit_values: int
    num_units: int
    units_per_rank: int
    replicated: bool = False

    @property
    def num_values(self) -> int:
        """Values of all its tensors, without padding."""
        return self.unit_values * self.num_units

    @property
    def chunk_values(self) -> int:
        """Values of one rank's chunk, padding included."""
        return self.unit_values * self.units_per_rank

    def rank_units(self, rank: int) -> range:
        """The units that travel as `rank`'s chunk."""
        return range(
            min(rank * self.units_per_rank, self.num_units), min((rank + 1) * self.units_per_rank, self.num_units)
        )

    def count_owned_values(self, rank: int) -> int:
        """Values that `rank` updates: its chunk's, or all where the bucket is replicated."""
        return self.num_values if self.replicated else self.unit_values * len(self.rank_units(rank))


@dataclass(frozen=True)
class MemoryEstimate:
    """Values (not bytes) that one rank holds at its peak, outside activations; in fp32 each is four bytes.

    gradients: whole ones and own shards; state: the optimizer's; communication: buffers of the buckets in flight, of
    which `padding` is nobody's value; work: temporaries of the update. `total` is the peak of a step: less than the
    sum, because the whole gradients are gone when the update works.
    """

    parameters: int
    gradients: int
    optimizer_state: int
    communication: int
    padding: int
    workspace: int
    total: int


@dataclass(frozen=True)
class GradientArrival:
    """The gradient of `name` has appeared: (gradients, buffers) at the most meanwhile, and afterwards; values."""

    name: str
    peak: tuple[int, int]
    after: tuple[int, int]


def fsdp_module_of(name: str) -> str:
    """The module whose parameters are gathered together with `name` at stage 3: its block, the embedding, or "": the
    model itself, for the head (an embedding that is the head bears its name).
    """
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else "embedding" if parts[0] == "embedding" else ""


def muon_stack_size(shape: Shape, device: str = "cpu") -> int:
    """How many matrices of a shape are orthogonalized at once on a device of that type."""
    return max(1, MUON_STACK_VALUES.get(device, MUON_STACK_VALUES["cpu"]) // prod(shape))


@dataclass(frozen=True)
class Partition:
    """How `parameters` (name -> shape, in the model's order) are dealt to `size` ranks at ZeRO stage `zero`."""

    parameters: Mapping[str, Shape]
    roles: Mapping[str, str]
    world_size: int
    zero_stage: int
    buckets: tuple[Bucket, ...]  # in the order in which a backward pass completes them: the last parameters first
    matrix_optimizer: str = "muon"  # that moves the matrices, as [optimizer] matrix_rule names it

    @property
    def shards_parameters(self) -> bool:
        """Whether a rank holds only rows of the large parameters."""
        return self.zero_stage == 3 and self.world_size > 1

    def owned_rows(self, bucket: Bucket, name: str, rank: int) -> range:
        """The rows (first dimension) of parameter `name` that `rank` owns."""
        whole = range(self.parameters[name][0] if self.parameters[name] else 1)
        if bucket.replicated:
            return whole
        if self.roles[name] == "matrix":
            return whole if bucket.names.index(name) in bucket.rank_units(rank) else range(0)
        return bucket.rank_units(rank)

    def estimate_memory(self, rank: int = 0, deterministic: bool = True) -> MemoryEstimate:
        """Count what `rank` holds at its peak, with one micro-batch a step.

        exact: as gradients travel on gloo and in exact mode, where the chunks of all ranks are received and added here;
        NCCL adds on the way. More micro-batches add, in exact mode, one shard at each doubling.
        """
        total = sum(map(prod, self.parameters.values()))
        state = sum(self._count_state_values(bucket, rank) for bucket in self.buckets)
        padding = max((bucket.chunk_values * self.world_size - bucket.num_values for bucket in self.buckets), default=0)
        gradients, buffers = self._peak_of_reduction(deterministic)
        updating, work = self._peak_of_update(rank)
        step = max(gradients + buffers, updating)
        return MemoryEstimate(
            total, gradients, state, buffers, padding if self.world_size > 1 else 0, work, total + state + step
        )

    def is_stacked(self, bucket: Bucket) -> bool:
        """Whether it holds matrices that are updated together with all of their shape."""
        return self.roles[bucket.names[0]] == "matrix" and self.matrix_optimizer != "adamw"

    def _count_state_values(self, bucket: Bucket, rank: int) -> int:
        """Values of the optimizer's state for what `rank` owns of a bucket."""
        owned = bucket.count_owned_values(rank)
        if not self.is_stacked(bucket):
            return 2 * owned
        return owned + (owned // self.parameters[bucket.names[0]][1] if self.matrix_optimizer == "normuon" else 0)

    def _peak_of_update(self, rank: int) -> tuple[int, int]:
        """(all, of it work) at the fullest moment of the update: gradients not used up, temporaries, one gather.

        Muon makes two more stacks and two Gram matrices a matrix, AdamW six blocks.
        """
        groups: dict[tuple, list[Bucket]] = defaultdict(list)  # updated together, as in `optimizer.py`
        for index, bucket in enumerate(self.buckets):
            groups[self.parameters[bucket.names[0]] if self.is_stacked(bucket) else (index,)].append(bucket)
        left = sum(bucket.count_owned_values(rank) for bucket in self.buckets)
        gathered = max((b.chunk_values * self.world_size for b in self.buckets if not b.replicated), default=0)
        peak = (0, 0)
        for shape, buckets in groups.items():
            owned = sum(bucket.count_owned_values(rank) for bucket in buckets)
            if self.is_stacked(buckets[0]):
                each = 2 * prod(shape) + 2 * min(shape) ** 2
                work = min(owned // prod(shape), muon_stack_size(shape)) * each
            else:
                work = 6 * min(owned, ADAMW_BLOCK_VALUES)
            peak = max(peak, (left + work + gathered, work))
            left -= owned
        return peak

    def _peak_of_reduction(self, exact: bool) -> tuple[int, int]:
        """(gradients, buffers) at the fullest moment of the reduce phase."""
        fullest = max((one.peak for one in self.simulate_reduction(exact)), key=sum)
        return fullest[0], fullest[1]

    def simulate_reduction(self, deterministic: bool = True) -> list[GradientArrival]:
        """What is held as the gradients of one micro-batch appear and travel: a walk through it, tensor by tensor.

        One entry a parameter in the order of backward, then one (name "") of the exchange after it. exact: see `held`.
        """
        sizes = {name: prod(shape) for name, shape in self.parameters.items()}
        gradients = buffers = 0  # whole gradients and own shards; what is packed, sent and received
        flight: deque[tuple[int, int]] = deque()  # (buffers, chunk) of each bucket under way
        waiting = deque(self.buckets if self.world_size > 1 else ())
        arrived: set[str] = set()
        found: list[GradientArrival] = []
        for name in (*reversed(self.parameters), ""):
            gradients += sizes.get(name, 0)
            arrived.add(name)
            peak = (gradients, buffers)
            while waiting and (not name or (self.zero_stage == 2 and arrived.issuperset(waiting[0].names))):
                bucket = waiting.popleft()
                sent = bucket.chunk_values * self.world_size
                received = sent if deterministic else bucket.chunk_values
                copied = len(bucket.names) > 1 or sent > bucket.num_values  # else the gradient itself is sent
                peak = max(peak, (gradients, buffers + sent * copied), key=sum)
                gradients, buffers = gradients - bucket.num_values, buffers + sent + received
                flight.append((sent + received, bucket.chunk_values))
                landing = (
                    flight[0][1] if len(flight) == MAX_IN_FLIGHT and deterministic else 0
                )  # the sum, beside what was received
                peak = max(peak, (gradients + landing, buffers), key=sum)
                if len(flight) == MAX_IN_FLIGHT:
                    done, chunk = flight.popleft()
                    gradients, buffers = gradients + chunk, buffers - done
            while flight and not name:
                done, chunk = flight.popleft()
                peak = max(peak, (gradients + chunk * deterministic, buffers), key=sum)
                gradients, buffers = gradients + chunk, buffers - done
            found.append(GradientArrival(name, peak, (gradients, buffers)))
        return found


def partition_parameters(
    parameters: Mapping[str, Shape],
    world_size: int = 1,
    zero_stage: int = 1,
    roles: Mapping[str, str] | None = None,
    matrix_optimizer: str = "muon",
) -> Partition:
    """Deal parameters to `size` ranks. roles: embedding, head, matrix or scalar by name; default: `role_of` each.

    rule: what moves the matrices; who owns what does not depend on it, only how much state there is.
    """
    assert world_size >= 1 and zero_stage in (0, 1, 2, 3), f"{world_size} ranks, zero {zero_stage}"
    roles = roles or {name: assign_role(name, shape) for name, shape in parameters.items()}
    buckets: list[Bucket] = []
    filling: dict[Shape, list[str]] = defaultdict(list)  # matrices of a shape, until there is one for each rank
    small: list[str] = []
    for name, shape in reversed(parameters.items()):
        if roles[name] not in ("embedding", "head", "matrix"):
            small.append(name)
        elif zero_stage == 0 or world_size == 1:
            buckets.append(_make_replicated_bucket((name,), prod(shape), world_size))
        elif roles[name] == "matrix":
            filling[shape].append(name)
            if len(filling[shape]) == world_size:
                buckets.append(Bucket(tuple(filling.pop(shape)), prod(shape), world_size, 1))
        else:
            buckets.append(Bucket((name,), prod(shape[1:]), shape[0], -(-shape[0] // world_size)))
    buckets += [Bucket(tuple(names), prod(shape), len(names), 1) for shape, names in filling.items()]
    if small:
        buckets.append(_make_replicated_bucket(tuple(small), sum(prod(parameters[name]) for name in small), world_size))
    return Partition(dict(parameters), dict(roles), world_size, zero_stage, tuple(buckets), matrix_optimizer)


def _make_replicated_bucket(names: tuple[str, ...], values: int, size: int) -> Bucket:
    return Bucket(names, 1, values, -(-values // size), replicated=True)
