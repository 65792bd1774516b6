"""How parameters, gradients and optimizer state are partitioned over the ranks of a run.

A `Partition` is a pure function of (names, shapes, roles, number of ranks, ZeRO stage). Every rank computes the same
one, so nothing has to be negotiated; and because it needs no tensor, the planner counts bytes with the same function.
This file does not import torch. Start with `partition_parameters`.

    embedding, head    by rows: rank r owns rows r k to (r + 1) k, k = ceil(rows / ranks); the last ranks may own fewer
    matrix             whole matrices, one for each rank in a bucket of equal shapes; the last bucket may hold fewer
    everything else    small: replicated, every rank owns all of it

A bucket is what one collective sends: equal chunks, one for each rank, padded where the units do not divide. At stage
0, or on one rank, everything is replicated. Stages of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): 1 shards the
optimizer state, 2 also the gradients; parameters stay whole on every rank. 3 also shards all large parameters by rows;
the optimizer state is where it is at stages 1 and 2.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from fledgling.optim.roles import assign_role

MAX_IN_FLIGHT = 2  # buckets: bounds what overlaps, and with it the memory of the buffers
# Values of the matrices orthogonalized at once. CPU: 16 of 256 x 256, the last size that gains by stacking. CUDA: all
# 80 of 1,280 x 1,280 of depth 20; on an H100 that model's iterations take 84 ms one by one and 29 ms stacked.
MUON_STACK_VALUES = {"cpu": 1 << 20, "cuda": 1 << 27, "xpu": 1 << 27, "mps": 1 << 24}  # the last two not measured
ADAMW_BLOCK_VALUES = 1 << 18  # updated at once where the rule is not fused: temporaries stay in the processor's cache
# Optimizer state that is not fp32 on the device (`optimizer.state`): tensors of fewer values keep fp32, as in the paper
# that `state.py` names; others have a scale for each block of a row, and are updated in pieces.
SMALL_STATE_VALUES, STATE_BLOCK = 4096, 256
STATE_PIECE_VALUES = {
    "cpu": ADAMW_BLOCK_VALUES,
    "cuda": 1 << 22,
}  # few temporaries; on a GPU few launches (not measured)
ROUNDING_VALUES = 4  # fp32 values that rounding holds for each value of a piece: fractions, and codes as int32

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Bucket:
    """The parameters that one collective sends: `num_units` units of `unit_values` values, `units_per_rank` a rank.

    A unit is a row of the one tensor; a matrix, one of each of `names`; or, where the bucket is replicated, a single
    value of any of them.
    """

    names: tuple[str, ...]
    unit_values: int
    num_units: int
    units_per_rank: int
    replicated: bool = False

    @property
    def num_values(self) -> int:
        """Number of values of all its tensors, without padding."""
        return self.unit_values * self.num_units

    @property
    def chunk_values(self) -> int:
        """Number of values of one rank's chunk, padding included."""
        return self.unit_values * self.units_per_rank

    def rank_units(self, rank: int) -> range:
        """Returns the units in the chunk of `rank`."""
        first, end = rank * self.units_per_rank, (rank + 1) * self.units_per_rank
        return range(min(first, self.num_units), min(end, self.num_units))

    def count_owned_values(self, rank: int) -> int:
        """Returns the number of values that `rank` updates: its chunk's, or all where the bucket is replicated."""
        return self.num_values if self.replicated else self.unit_values * len(self.rank_units(rank))


@dataclass(frozen=True)
class MemoryEstimate:
    """Numbers of values (not bytes) that one rank holds at its peak, without activations; in fp32 each is four bytes.

    gradients: whole gradients and the rank's shards; communication: buffers of the buckets in flight, of which
    `padding` belongs to no parameter; workspace: temporaries of the update. `total` is the peak of a step: less than
    the sum, because the whole gradients are freed when the update begins.
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
    """Values held when backward has produced the gradient of `name`: (gradients, buffers), at the peak and after it."""

    name: str
    peak: tuple[int, int]
    after: tuple[int, int]


def fsdp_module_of(name: str) -> str:
    """Returns the name of the module with which parameter `name` is gathered at stage 3.

    That is its block, the embedding, or "" (the model itself) for the head; an embedding that is also the head has the
    head's name.
    """
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else "embedding" if parts[0] == "embedding" else ""


def is_small_state(state_name: str, shape: Shape) -> bool:
    """Returns whether a parameter's state of that name is fp32 on the device whatever `optimizer.state` says."""
    return state_name == "exp_avg_sq_row" or len(shape) < 2 or prod(shape) < SMALL_STATE_VALUES


def state_value_bytes(state_name: str, shape: Shape, form: str) -> float:
    """Returns the bytes on the device of one value of a parameter's state, its share of the scales included.

    form: of `optimizer.state`; on a CPU "host" is "float32".
    """
    if form == "float32" or is_small_state(state_name, shape):
        return 4
    return 0 if form == "host" else 1 + 4 * -(-shape[-1] // STATE_BLOCK) / shape[-1]


def state_piece_values(device: str) -> int:
    """Returns how many values of state are read, or rounded, at once on a device of that type."""
    return STATE_PIECE_VALUES.get(device, STATE_PIECE_VALUES["cuda"])


def update_temporaries(form: str, of_rule: int, values: int, device: str, moments: int = 1) -> int:
    """Returns the bytes that an update holds for a while, its state in fp32 included.

    Args:
        form: of `optimizer.state`.
        of_rule: bytes that the rule itself takes.
        values: of one moment that are updated at once.
        device: its type.
        moments: the moments of each value.
    """
    if form == "float32":
        return of_rule
    rounding = 4 * ROUNDING_VALUES * min(values, state_piece_values(device)) * (form == "8bit")
    return 4 * moments * values + max(of_rule, rounding)


def muon_stack_size(shape: Shape, device: str = "cpu") -> int:
    """Returns how many matrices of a shape are orthogonalized at once on a device of that type."""
    return max(1, MUON_STACK_VALUES.get(device, MUON_STACK_VALUES["cpu"]) // prod(shape))


@dataclass(frozen=True)
class Partition:
    """How `parameters` (name -> shape, in the model's order) are partitioned over the ranks at a ZeRO stage."""

    parameters: dict[str, Shape]
    roles: Mapping[str, str]
    world_size: int
    zero_stage: int
    buckets: tuple[Bucket, ...]  # in the order in which a backward pass completes them: the last parameters first
    matrix_optimizer: str = "muon"  # the rule of the matrices, as in [optimizer] matrix_optimizer

    @property
    def shards_parameters(self) -> bool:
        """Whether a rank holds only rows of the large parameters."""
        return self.zero_stage == 3 and self.world_size > 1

    def owned_rows(self, bucket: Bucket, name: str, rank: int) -> range:
        """Returns the rows (first dimension) of parameter `name` that `rank` owns."""
        all_rows = range(self.parameters[name][0] if self.parameters[name] else 1)
        if bucket.replicated:
            return all_rows
        if self.roles[name] == "matrix":
            return all_rows if bucket.names.index(name) in bucket.rank_units(rank) else range(0)
        return bucket.rank_units(rank)

    def estimate_memory(self, rank: int = 0, deterministic: bool = True) -> MemoryEstimate:
        """Counts what `rank` holds at its peak, with one micro-batch a step.

        Args:
            deterministic: as gradients are reduced on gloo and in deterministic mode, where the chunks of all ranks are
                received and added on the owner; NCCL adds them on the way. In deterministic mode more micro-batches add
                one shard at each doubling.
        """
        total = sum(map(prod, self.parameters.values()))
        state = sum(self._count_state_values(bucket, rank) for bucket in self.buckets)
        padding = max((bucket.chunk_values * self.world_size - bucket.num_values for bucket in self.buckets), default=0)
        gradients, buffers = self._peak_of_reduction(deterministic)
        updating, workspace = self._peak_of_update(rank)
        step = max(gradients + buffers, updating)
        padding = padding if self.world_size > 1 else 0
        return MemoryEstimate(total, gradients, state, buffers, padding, workspace, total + state + step)

    def is_stacked(self, bucket: Bucket) -> bool:
        """Whether the bucket holds matrices that are updated together with all others of their shape."""
        return self.roles[bucket.names[0]] == "matrix" and self.matrix_optimizer != "adamw"

    def _count_state_values(self, bucket: Bucket, rank: int) -> int:
        """Returns the number of values of optimizer state for what `rank` owns of a bucket."""
        owned = bucket.count_owned_values(rank)
        if not self.is_stacked(bucket):
            return 2 * owned
        columns = self.parameters[bucket.names[0]][1]
        return owned + (owned // columns if self.matrix_optimizer == "normuon" else 0)

    def count_state_bytes(self, form: str, rank: int = 0) -> int:
        """Returns the bytes of optimizer state that `rank` holds on its device. form: of `optimizer.state`."""
        total = 0.0
        for bucket in self.buckets:
            is_several = bucket.replicated and len(bucket.names) > 1  # the small ones
            for name in bucket.names if is_several else bucket.names[:1]:
                shape = self.parameters[name]
                owned = prod(shape) if is_several else bucket.count_owned_values(rank)
                if self.is_stacked(bucket):
                    total += owned * state_value_bytes("momentum_buffer", shape, form)
                    total += 4 * (owned // shape[1]) * (self.matrix_optimizer == "normuon")
                else:
                    total += 2 * owned * state_value_bytes("exp_avg", shape, form)
        return round(total)

    def _peak_of_update(self, rank: int) -> tuple[int, int]:
        """Returns (all, of it workspace) at the update's peak: gradients not yet used, temporaries, one all_gather.

        Muon makes two more stacks and two Gram matrices for each matrix, AdamW six blocks.
        """
        groups: dict[tuple, list[Bucket]] = defaultdict(list)  # updated together, as in `optimizer.py`
        for index, bucket in enumerate(self.buckets):
            groups[self.parameters[bucket.names[0]] if self.is_stacked(bucket) else (index,)].append(bucket)
        remaining = sum(bucket.count_owned_values(rank) for bucket in self.buckets)
        gathered = max((b.chunk_values * self.world_size for b in self.buckets if not b.replicated), default=0)
        peak = (0, 0)
        for shape, buckets in groups.items():
            owned = sum(bucket.count_owned_values(rank) for bucket in buckets)
            if self.is_stacked(buckets[0]):
                per_matrix = 2 * prod(shape) + 2 * min(shape) ** 2
                workspace = min(owned // prod(shape), muon_stack_size(shape)) * per_matrix
            else:
                workspace = 6 * min(owned, ADAMW_BLOCK_VALUES)
            peak = max(peak, (remaining + workspace + gathered, workspace))
            remaining -= owned
        return peak

    def _peak_of_reduction(self, deterministic: bool) -> tuple[int, int]:
        """Returns (gradients, buffers) at the peak of the reduction."""
        return max((arrival.peak for arrival in self.simulate_reduction(deterministic)), key=sum)

    def simulate_reduction(self, deterministic: bool = True, in_backward: bool | None = None) -> list[GradientArrival]:
        """Simulates what is held while the gradients of one micro-batch appear and are reduced, tensor by tensor.

        Returns one entry for each parameter in the order of backward, then one (name "") for the collectives after it.
        deterministic: see `estimate_memory`. in_backward: buckets are launched during the backward pass; None: at stage
        2, and otherwise where `deterministic` is False.
        """
        launches_early = self.zero_stage == 2 or (not deterministic if in_backward is None else in_backward)
        sizes = {name: prod(shape) for name, shape in self.parameters.items()}
        gradients = buffers = 0  # whole gradients and the rank's shards; what is packed, sent and received
        in_flight: deque[tuple[int, int]] = deque()  # (buffers, chunk) of each bucket
        unsent = deque(self.buckets if self.world_size > 1 else ())
        ready: set[str] = set()
        arrivals: list[GradientArrival] = []
        for name in (*reversed(self.parameters), ""):
            gradients += sizes.get(name, 0)
            ready.add(name)
            peak = (gradients, buffers)
            while unsent and (not name or (launches_early and ready.issuperset(unsent[0].names))):
                bucket = unsent.popleft()
                sent = bucket.chunk_values * self.world_size
                received = sent if deterministic else bucket.chunk_values
                copied = len(bucket.names) > 1 or sent > bucket.num_values  # else the gradient itself is sent
                peak = max(peak, (gradients, buffers + sent * copied), key=sum)
                gradients, buffers = gradients - bucket.num_values, buffers + sent + received
                in_flight.append((sent + received, bucket.chunk_values))
                # the sum is held together with what was received
                added = in_flight[0][1] if len(in_flight) == MAX_IN_FLIGHT and deterministic else 0
                peak = max(peak, (gradients + added, buffers), key=sum)
                if len(in_flight) == MAX_IN_FLIGHT:
                    freed, chunk = in_flight.popleft()
                    gradients, buffers = gradients + chunk, buffers - freed
            while in_flight and not name:
                freed, chunk = in_flight.popleft()
                peak = max(peak, (gradients + chunk * deterministic, buffers), key=sum)
                gradients, buffers = gradients + chunk, buffers - freed
            arrivals.append(GradientArrival(name, peak, (gradients, buffers)))
        return arrivals


def partition_parameters(
    parameters: dict[str, Shape],
    world_size: int = 1,
    zero_stage: int = 1,
    roles: Mapping[str, str] | None = None,
    matrix_optimizer: str = "muon",
) -> Partition:
    """Partitions parameters over `world_size` ranks.

    Args:
        parameters: shapes by name, in the model's order.
        zero_stage: 0 to 3.
        roles: embedding, head, matrix or scalar by name; None takes `assign_role` of each.
        matrix_optimizer: the rule of the matrices. Ownership does not depend on it, only the amount of state.
    """
    assert world_size >= 1 and zero_stage in (0, 1, 2, 3), f"{world_size} ranks, zero_stage {zero_stage}"
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
        values = sum(prod(parameters[name]) for name in small)
        buckets.append(_make_replicated_bucket(tuple(small), values, world_size))
    return Partition(dict(parameters), dict(roles), world_size, zero_stage, tuple(buckets), matrix_optimizer)


def _make_replicated_bucket(names: tuple[str, ...], values: int, world_size: int) -> Bucket:
    return Bucket(names, 1, values, -(-values // world_size), replicated=True)
