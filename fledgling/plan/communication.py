"""What data-parallel training says over the wire: bytes, messages and seconds a step, for each topology.

The one idea: every rank has one port that sends and receives at once, and a message of n bytes takes
alpha + n / beta seconds (latency, bandwidth). A topology is then four numbers: what each rank sends and
receives, how many messages follow one another, and how many bytes lie on that path. With n bytes of
gradients, p ranks and s servers,

    topology                      the busiest rank sends   rounds             bytes on the path
    ring all-reduce               2 (p-1)/p n              2 (p-1)            2 (p-1)/p n
    reduce-scatter, all-gather    (p-1)/p n each           p-1 each           (p-1)/p n each
    binomial tree                 ceil(log2 p) n           2 ceil(log2 p)     2 ceil(log2 p) n
    all-to-all                    (p-1)/p^2 n             p-1                (p-1)/p^2 n
    parameter server              (p+s-2)/s n              2 (p-1)            2 (p-1)/s n

so the ring is bandwidth-optimal and the tree has the fewest rounds; a server sharded over all p ranks moves
the ring's bytes. Sources: Thakur, Rabenseifner and Gropp 2005 (the cost model, trees, rings); Patarasuk and
Yuan 2009 (the ring is optimal); Li et al. 2014 (parameter server); Rajbhandari et al. 2020 (ZeRO). The
topologies themselves, as code that runs, are in `benchmarks/topologies.py`; that they move exactly
these bytes is tested.

What it is not: a model of switches, of hierarchies of links, or of messages cut into a pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fledgling.config import UserError, did_you_mean
from fledgling.plan.hardware import DeviceSpec

ITEM_BYTES = 4  # bytes of one gradient or parameter: both are float32
BACKWARD_SHARE = 2 / 3  # share of a step's compute that gradients can be sent behind


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second: of one rank alone, and of all ranks together where they share something (a bus, cores)."""

    per_rank: float
    shared: float = math.inf

    def seconds(self, path: float, total: float) -> float:
        """Seconds for `path` bytes one after the other at the busiest place, of `total` bytes in all."""
        return max(path / self.per_rank, total / self.shared)


@dataclass(frozen=True)
class Link:
    """What one rank's port does: latency in seconds a message, bytes a second in each direction at once."""

    name: str
    latency: float
    bandwidth: Bandwidth


# Bandwidth: the makers' figure for one direction. Latency: from memory to memory with the software between, an
# order of magnitude. Loopback is what `python -m benchmarks comm` measured on two cores (docs/communication.md).
LINKS = {
    link.name: link
    for link in (
        Link("nvlink-b200", 3e-6, Bandwidth(900e9)),  # fifth generation, 1.8 TB/s both ways
        Link("nvlink-h100", 3e-6, Bandwidth(450e9)),  # fourth generation, 900 GB/s both ways
        Link("nvlink-a100", 3e-6, Bandwidth(300e9)),  # third generation, 600 GB/s both ways
        Link("pcie5", 5e-6, Bandwidth(63e9)),  # 16 lanes
        Link("pcie4", 5e-6, Bandwidth(31.5e9)),
        Link("infiniband-ndr", 5e-6, Bandwidth(50e9)),  # 400 Gb/s
        Link("ethernet-100g", 15e-6, Bandwidth(12.5e9)),
        Link("ethernet-25g", 20e-6, Bandwidth(3.125e9)),
        Link("ethernet-10g", 30e-6, Bandwidth(1.25e9)),
        Link("ethernet-1g", 50e-6, Bandwidth(0.125e9)),
        Link("loopback", 40e-6, Bandwidth(4e9, shared=2.8e9)),
    )
}
DEFAULT_LINKS = {"a100": "nvlink-a100", "h100": "nvlink-h100", "h200": "nvlink-h100", "b200": "nvlink-b200"}


@dataclass(frozen=True)
class Traffic:
    """One synchronization of p ranks. All in bytes, but for `messages` (of all ranks) and `rounds`.

    sent, received: by rank. rounds: messages that follow one another; path: the bytes of these. summed: bytes of
    gradients added up on that path; summed_in_all: by all ranks, at least (p-1) n whatever the topology.
    """

    sent: tuple[int, ...]
    received: tuple[int, ...]
    messages: int
    rounds: int
    path: int
    reduced: int = 0
    reduced_total: int = 0

    @property
    def busiest_bytes(self) -> int:
        """Bytes through the busiest port in its busier direction."""
        return max(*self.sent, *self.received)

    def seconds(self, link: Link, adding: Bandwidth | None = None) -> float:
        """Seconds over `link`: alpha x rounds + path / beta, and the sums where `adding` says how fast they are.

        The cost model of Thakur et al. 2005. A medium that all share is busy for at least its bytes in all.
        """
        sums = adding.seconds(self.reduced, self.reduced_total) if adding else 0.0
        return self.rounds * link.latency + link.bandwidth.seconds(self.path, sum(self.sent)) + sums

    def __add__(self, other: Traffic) -> Traffic:
        """One after the other."""
        return Traffic(
            tuple(a + b for a, b in zip(self.sent, other.sent, strict=True)),
            tuple(a + b for a, b in zip(self.received, other.received, strict=True)),
            self.messages + other.messages,
            self.rounds + other.rounds,
            self.path + other.path,
            self.reduced + other.reduced,
            self.reduced_total + other.reduced_total,
        )


def chunk_bytes(size: int, parts: int) -> int:
    """Bytes of one of `parts` equal chunks of a vector of `size` bytes, padded with zeros to whole chunks."""
    return -(-size // (ITEM_BYTES * parts)) * ITEM_BYTES


def reduce_scatter(size: int, ranks: int) -> Traffic:
    """Each rank ends with the sum of one chunk of `size` bytes: p-1 rounds of a ring (Patarasuk and Yuan 2009)."""
    steps, piece = ranks - 1, chunk_bytes(size, ranks)
    moved = (steps * piece,) * ranks
    return Traffic(moved, moved, ranks * steps, steps, steps * piece, steps * piece, ranks * steps * piece)


def all_gather(size: int, ranks: int) -> Traffic:
    """Each rank starts with one chunk of `size` bytes and ends with all: p-1 rounds of a ring."""
    steps, piece = ranks - 1, chunk_bytes(size, ranks)
    moved = (steps * piece,) * ranks
    return Traffic(moved, moved, ranks * steps, steps, steps * piece)


def ring_all_reduce(size: int, ranks: int) -> Traffic:
    """Every rank ends with the whole sum: reduce-scatter, then all-gather; 2 (p-1)/p n bytes a rank.

    No all-reduce sends less (Patarasuk and Yuan 2009).
    """
    return reduce_scatter(size, ranks) + all_gather(size, ranks)


def tree_all_reduce(size: int, ranks: int) -> Traffic:
    """Whole vectors up a binomial tree to rank 0 and down again: 2 ceil(log2 p) rounds (Thakur et al. 2005)."""
    piece, depth = chunk_bytes(size, 1), (ranks - 1).bit_length()  # ceil(log2 p)
    # Up, rank r > 0 sends once and receives from each child; down, the same edges the other way round.
    moved = tuple((len(tree_children(rank, ranks)) + (rank > 0)) * piece for rank in range(ranks))
    edges = ranks - 1
    return Traffic(moved, moved, 2 * edges, 2 * depth, 2 * depth * piece, depth * piece, edges * piece)


def tree_children(rank: int, ranks: int) -> list[int]:
    """The children of a rank in the binomial tree over 0 ... ranks-1, nearest first.

    Rank r's parent is r without its lowest set bit, so its children are r + 1, r + 2, r + 4 ... below that bit.
    """
    below = rank & -rank or ranks
    return [rank + (1 << k) for k in range(ranks.bit_length()) if 1 << k < below and rank + (1 << k) < ranks]


def parameter_server(size: int, ranks: int, servers: int = 1, answer: int | None = None) -> Traffic:
    """Every rank pushes gradients to the servers and pulls back what they make of them (Li et al. 2014).

    size: bytes pushed; answer: bytes pulled (default: as many, the sum). Ranks 0 ... s-1 are the servers, each for
    one of s chunks, and work as the others do. A server's port takes p-1 chunks in and gives p-1 out: that is
    the path. With s = 1 it is p times the ring's, with s = p it is the ring's.
    """
    pushed, pulled = chunk_bytes(size, servers), chunk_bytes(size if answer is None else answer, servers)
    clients, steps = [servers - (rank < servers) for rank in range(ranks)], ranks - 1  # chunks that others serve
    serving = [steps if rank < servers else 0 for rank in range(ranks)]  # clients that this rank serves
    messages = 2 * servers * steps
    return Traffic(
        tuple(c * pushed + s * pulled for c, s in zip(clients, serving, strict=True)),
        tuple(c * pulled + s * pushed for c, s in zip(clients, serving, strict=True)),
        messages,
        2 * steps,
        steps * (pushed + pulled),
        steps * pushed,
        servers * steps * pushed,
    )


def zero1(gradients: int, parameters: int, ranks: int) -> Traffic:
    """ZeRO-1, optimizer state sharded: reduce-scatter the gradients, update, all-gather the parameters.

    As many bytes as an all-reduce (Rajbhandari et al. 2020, section 7).
    """
    return reduce_scatter(gradients, ranks) + all_gather(parameters, ranks)


def zero2(gradients: int, parameters: int, ranks: int, micro_batches: int = 1) -> Traffic:
    """ZeRO-2, gradients sharded too: a rank may not keep whole ones, so each micro-batch is reduce-scattered.

    ZeRO-1's bytes with one micro-batch a step; (k + 1) / 2 times these with k of them.
    """
    total = all_gather(parameters, ranks)
    for _ in range(micro_batches):
        total += reduce_scatter(gradients, ranks)
    return total


def all_to_all(size: int, ranks: int) -> Traffic:
    """Each rank gives every other an equal share of its part of `size` bytes: all to all, (p-1)/p^2 n a rank."""
    steps, piece = ranks - 1, chunk_bytes(chunk_bytes(size, ranks), ranks)
    moved = (steps * piece,) * ranks
    return Traffic(moved, moved, ranks * steps, steps, steps * piece)


def zero3(tables: int, matrices: int, ranks: int, micro_batches: int = 1) -> Traffic:
    """ZeRO-3, parameters sharded too: gathered when a micro-batch needs them, its gradients reduce-scattered.

    Matrices are gathered twice, for forward and backward, and each one's gradient and rows come together on its owner
    and go back once a step; tables, embedding and head, are gathered once. At most 1.5 times ZeRO-1's bytes a
    micro-batch, and 3 / p of it a step (Rajbhandari et al. 2020, section 7, without the exchange).
    """
    total = all_to_all(matrices, ranks) + all_to_all(matrices, ranks) + all_to_all(matrices, ranks)
    for _ in range(micro_batches):
        total += all_gather(tables, ranks) + reduce_scatter(tables, ranks)
        total += all_gather(matrices, ranks) + all_gather(matrices, ranks) + reduce_scatter(matrices, ranks)
    return total


def topology_traffic(size: int, ranks: int, micro_batches: int = 1, matrices: int | None = None) -> dict[str, Traffic]:
    """Every topology for `size` bytes of gradients, and as many of parameters, by name; servers: 1, half, all ranks.

    matrices: bytes of these that are matrices of blocks (default: all), which ZeRO-3 gathers twice.
    """
    blocks = size if matrices is None else matrices
    found = {
        "ring all-reduce": ring_all_reduce(size, ranks),
        "ZeRO-1": zero1(size, size, ranks),
        "ZeRO-2": zero2(size, size, ranks, micro_batches),
        "ZeRO-3": zero3(size - blocks, blocks, ranks, micro_batches),
        "tree all-reduce": tree_all_reduce(size, ranks),
    }
    for servers in sorted({1, max(1, ranks // 2), ranks}):
        found[f"parameter server, {servers}"] = parameter_server(size, ranks, servers)
    return found


def find_link(name: str) -> Link:
    """Return the link of that name; raises UserError for one that is not in the table."""
    if name.lower() not in LINKS:
        hint = did_you_mean(name.lower(), LINKS) or f": there are {', '.join(LINKS)}"
        raise UserError(f'unknown link "{name}"{hint}')
    return LINKS[name.lower()]


def default_link(device: str) -> str:
    """The link that devices of that name usually have between them inside one machine."""
    return "loopback" if device.startswith("cpu") else DEFAULT_LINKS.get(device, "pcie4")


def fit_link(sizes: Sequence[int], seconds: Sequence[float], name: str = "measured") -> Link:
    """The link whose alpha + n / beta is nearest to one-way times of messages of n bytes: least relative squares.

    Relative, so that the small messages (latency) weigh as much as the large ones (bandwidth). Needs two sizes.
    Times so disturbed that longer messages seem quicker give the bandwidth of the longest message alone.
    """
    rows = [(1 / t, n / t) for n, t in zip(sizes, seconds, strict=True)]  # x alpha + y / beta = 1
    xx, xy, yy = sum(x * x for x, _ in rows), sum(x * y for x, y in rows), sum(y * y for _, y in rows)
    xs, ys = sum(x for x, _ in rows), sum(y for _, y in rows)
    determinant = xx * yy - xy * xy
    alpha, slope = (xs * yy - ys * xy) / determinant, (ys * xx - xs * xy) / determinant
    longest = max(zip(sizes, seconds, strict=True))
    return Link(name, max(alpha, 0.0), Bandwidth(1 / slope if slope > 0 else longest[0] / longest[1]))


def step_seconds(compute: float, communication: float, overlap: bool = False) -> float:
    """Seconds of a step. With `overlap`, what fits behind the backward pass, two thirds of compute, costs nothing."""
    return compute + (max(0.0, communication - BACKWARD_SHARE * compute) if overlap else communication)


def first_bound_rank_count(
    traffic: Callable[[int], Traffic], compute: float, link: Link, most: int = 1 << 14
) -> int | None:
    """The fewest ranks, a power of two up to `most`, at which communication takes longer than computing; else None.

    compute: seconds of the whole batch on one rank. The batch stays the same, so each of p ranks computes compute / p.
    """
    counts = (1 << k for k in range(1, most.bit_length()))
    return next((p for p in counts if traffic(p).seconds(link) > compute / p), None)


def required_bandwidth(traffic: Traffic, compute: float, latency: float) -> float:
    """Bytes a second of a link over which communication takes just as long as computing; inf where latency forbids."""
    left = compute - traffic.rounds * latency
    return traffic.path / left if left > 0 else math.inf


def plan_communication(
    parameters: int,
    step_flops: float,
    device: DeviceSpec,
    mfu: float,
    accumulation: int,
    ranks: int,
    name: str | None,
    matrices: int | None = None,
) -> dict[str, Any]:
    """The plan's section: what a training step says over the wire, by topology, and whether that holds it up.

    parameters: of the model, counted; step_flops: of one step over all ranks; mfu: utilization in (0, 1];
    accumulation: micro-batches of a rank's step; name: of the link, else the device's usual one; matrices: how
    many of the parameters are matrices of blocks. Gradients and parameters are float32. Raises UserError for an unknown
    link.
    """
    wire, size = find_link(name or default_link(device.name)), ITEM_BYTES * parameters
    blocks = None if matrices is None else ITEM_BYTES * matrices
    alone = step_flops / (device.peak_flops * mfu)  # seconds of the whole step on one rank
    compute = alone / ranks
    found = {}
    for topology, traffic in topology_traffic(size, ranks, accumulation, blocks).items() if ranks > 1 else ():
        seconds = traffic.seconds(wire)
        hidden = step_seconds(compute, seconds, overlap=True)
        found[topology] = {
            "bytes_sent": max(traffic.sent),
            "bytes_received": max(traffic.received),
            "bytes_busiest_link": traffic.busiest_bytes,
            "bytes_total": sum(traffic.sent),
            "messages": traffic.messages,
            "rounds": traffic.rounds,
            "seconds": seconds,
            "share_of_step": seconds / step_seconds(compute, seconds),
            "share_of_step_overlapped": (hidden - compute) / hidden,
            "bottleneck": "network" if seconds > compute else "compute",
            "bandwidth_needed": required_bandwidth(traffic, compute, wire.latency),
        }
    return {
        "estimate": True,
        "link": {"name": wire.name, "latency": wire.latency, "bandwidth": wire.bandwidth.per_rank},
        "gradient_bytes": size,
        "compute_seconds": compute,
        "ring_bound_from_ranks": first_bound_rank_count(lambda p: ring_all_reduce(size, p), alone, wire),
        "topologies": found,
    }
