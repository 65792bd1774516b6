"""Models the communication of data-parallel training: bytes, messages and seconds per step, for each topology.

Every rank has one port that sends and receives at the same time, and a message of n bytes takes alpha + n / beta
seconds (latency, bandwidth). A topology is then described by what each rank sends and receives, how many messages
follow one another, and how many bytes lie on that critical path. With n bytes of gradients, p ranks and s servers,

    topology                      the busiest rank sends   rounds             bytes on the path
    ring all-reduce               2 (p-1)/p n              2 (p-1)            2 (p-1)/p n
    reduce-scatter, all-gather    (p-1)/p n each           p-1 each           (p-1)/p n each
    binomial tree                 ceil(log2 p) n           2 ceil(log2 p)     2 ceil(log2 p) n
    all-to-all                    (p-1)/p^2 n             p-1                (p-1)/p^2 n
    parameter server              (p+s-2)/s n              2 (p-1)            2 (p-1)/s n

The ring is bandwidth-optimal and the tree has the fewest rounds; a server sharded over all p ranks moves the ring's
bytes. Switches, hierarchies of links (the slowest counts) and pipelined messages are not modelled. Sources: Thakur,
Rabenseifner and Gropp 2005 (the cost model, trees, rings); Patarasuk and Yuan 2009 (the ring is optimal); Li et al.
2014 (parameter server); Rajbhandari et al. 2020 (ZeRO). `benchmarks/topologies.py` implements the topologies; a test
checks that they move exactly these bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fledgling.config import UserError, did_you_mean

ITEM_BYTES = 4  # bytes of one gradient or parameter: both are float32
GPUS_OF_A_MACHINE = 8  # assumed where no link is given
NETWORK_LINK = "infiniband-ndr"  # between machines, likewise
BACKWARD_SHARE = 2 / 3  # share of a step's compute that can hide the sending of gradients


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second: of one rank, and of all ranks together where they share a medium (a bus, cores)."""

    per_rank: float
    shared: float = math.inf

    def seconds(self, path: float, total: float) -> float:
        """Returns the seconds for `path` bytes in sequence at the busiest rank, of `total` bytes over all ranks."""
        return max(path / self.per_rank, total / self.shared)


@dataclass(frozen=True)
class Link:
    """The port of one rank: latency in seconds per message, bandwidth in each direction at the same time."""

    name: str
    latency: float
    bandwidth: Bandwidth


# Bandwidth: the vendors' figure for one direction. Latency: memory to memory including software, an order of
# magnitude. Loopback: `python -m benchmarks comm` on two cores (docs/communication.md).
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
DEFAULT_LINKS = {
    "a100-40": "nvlink-a100",
    "a100-80": "nvlink-a100",
    "h100": "nvlink-h100",
    "h200": "nvlink-h100",
    "b200": "nvlink-b200",
}


@dataclass(frozen=True)
class Traffic:
    """One synchronization of p ranks. All values in bytes, except `messages` (of all ranks) and `rounds`.

    sent, received: per rank. rounds: messages that follow one another; path: bytes of these messages. reduced: bytes of
    gradients added on that path; reduced_total: added by all ranks, at least (p-1) n for every topology.
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

    def seconds(self, link: Link, addition: Bandwidth | None = None) -> float:
        """Returns the seconds over `link`: alpha x rounds + path / beta, plus additions at the bandwidth `addition`.

        Source: the cost model of Thakur et al. 2005. A shared medium is busy for at least the bytes of all ranks.
        """
        sums = addition.seconds(self.reduced, self.reduced_total) if addition else 0.0
        return self.rounds * link.latency + link.bandwidth.seconds(self.path, sum(self.sent)) + sums

    def __add__(self, other: Traffic) -> Traffic:
        """Returns the traffic of both, one after the other."""
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
    """Returns the bytes of one of `parts` equal chunks of a vector of `size` bytes, padded with zeros."""
    return -(-size // (ITEM_BYTES * parts)) * ITEM_BYTES


def reduce_scatter(size: int, ranks: int) -> Traffic:
    """Returns the traffic of p-1 rounds of a ring that sum one chunk of `size` bytes on each rank.

    Source: Patarasuk and Yuan 2009.
    """
    rounds, chunk = ranks - 1, chunk_bytes(size, ranks)
    per_rank = (rounds * chunk,) * ranks
    return Traffic(per_rank, per_rank, ranks * rounds, rounds, rounds * chunk, rounds * chunk, ranks * rounds * chunk)


def all_gather(size: int, ranks: int) -> Traffic:
    """Returns the traffic of p-1 rounds of a ring that copy each rank's chunk of `size` bytes to all ranks."""
    rounds, chunk = ranks - 1, chunk_bytes(size, ranks)
    per_rank = (rounds * chunk,) * ranks
    return Traffic(per_rank, per_rank, ranks * rounds, rounds, rounds * chunk)


def ring_all_reduce(size: int, ranks: int) -> Traffic:
    """Returns the traffic of a reduce-scatter followed by an all-gather: 2 (p-1)/p n per rank.

    No all-reduce sends less (Patarasuk and Yuan 2009).
    """
    return reduce_scatter(size, ranks) + all_gather(size, ranks)


def tree_all_reduce(size: int, ranks: int) -> Traffic:
    """Returns the traffic of whole vectors up a binomial tree and down again: 2 ceil(log2 p) rounds.

    Source: Thakur et al. 2005.
    """
    vector, depth = chunk_bytes(size, 1), (ranks - 1).bit_length()  # ceil(log2 p)
    # Up, rank r > 0 sends once and receives from each child; down, the same edges in reverse.
    per_rank = tuple((len(tree_children(rank, ranks)) + (rank > 0)) * vector for rank in range(ranks))
    edges = ranks - 1
    return Traffic(per_rank, per_rank, 2 * edges, 2 * depth, 2 * depth * vector, depth * vector, edges * vector)


def tree_children(rank: int, ranks: int) -> list[int]:
    """Returns the children of a rank in the binomial tree over 0 ... ranks-1, nearest first.

    The parent of rank r is r without its lowest set bit, so its children are r + 1, r + 2, r + 4 ... below that bit.
    """
    limit = rank & -rank or ranks
    return [rank + (1 << k) for k in range(ranks.bit_length()) if 1 << k < limit and rank + (1 << k) < ranks]


def parameter_server(size: int, ranks: int, servers: int = 1, pulled_size: int | None = None) -> Traffic:
    """Returns the traffic in which every rank pushes gradients to the servers and pulls the result (Li et al. 2014).

    size: bytes pushed; pulled_size: bytes pulled (default: as many, the sum). Ranks 0 ... s-1 are the servers, each for
    one of s chunks, and also compute like the others. A server's port receives p-1 chunks and sends p-1: that is the
    critical path. With s = 1 it is p times the ring's, with s = p it equals the ring's.
    """
    pushed, pulled = chunk_bytes(size, servers), chunk_bytes(size if pulled_size is None else pulled_size, servers)
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
    """Returns the traffic of ZeRO-1, optimizer state sharded: reduce-scatter gradients, update, all-gather parameters.

    As many bytes as an all-reduce (Rajbhandari et al. 2020, section 7).
    """
    return reduce_scatter(gradients, ranks) + all_gather(parameters, ranks)


def zero2(gradients: int, parameters: int, ranks: int, micro_batches: int = 1) -> Traffic:
    """Returns the traffic of ZeRO-2: gradients are sharded too, so each micro-batch is reduce-scattered.

    The bytes of ZeRO-1 with one micro-batch per step; (k + 1) / 2 times these with k micro-batches.
    """
    total = all_gather(parameters, ranks)
    for _ in range(micro_batches):
        total += reduce_scatter(gradients, ranks)
    return total


def all_to_all(size: int, ranks: int) -> Traffic:
    """Returns the traffic in which each rank sends 1/p of its part of `size` bytes to every other: (p-1)/p^2 n."""
    rounds, chunk = ranks - 1, chunk_bytes(chunk_bytes(size, ranks), ranks)
    per_rank = (rounds * chunk,) * ranks
    return Traffic(per_rank, per_rank, ranks * rounds, rounds, rounds * chunk)


def zero3(tables: int, matrices: int, ranks: int, micro_batches: int = 1) -> Traffic:
    """Returns the traffic of ZeRO-3, parameters sharded too: gathered for each micro-batch, gradients reduce-scattered.

    Matrices are gathered twice, for forward and backward, and the gradient and rows of each are collected on its owner
    and returned once per step; tables (embedding and head) are gathered once. At most 1.5 times the bytes of ZeRO-1 per
    micro-batch, and 3 / p of it per step (Rajbhandari et al. 2020, section 7, without the exchange).
    """
    total = all_to_all(matrices, ranks) + all_to_all(matrices, ranks) + all_to_all(matrices, ranks)
    for _ in range(micro_batches):
        total += all_gather(tables, ranks) + reduce_scatter(tables, ranks)
        total += all_gather(matrices, ranks) + all_gather(matrices, ranks) + reduce_scatter(matrices, ranks)
    return total


def topology_traffic(size: int, ranks: int, micro_batches: int = 1, matrices: int | None = None) -> dict[str, Traffic]:
    """Returns the traffic of every topology by name, for `size` bytes of gradients and as many of parameters.

    Parameter servers: 1, half of the ranks and all ranks. matrices: bytes of these that belong to matrices of blocks
    (default: all), which ZeRO-3 gathers twice.
    """
    block_bytes = size if matrices is None else matrices
    traffic = {
        "ring all-reduce": ring_all_reduce(size, ranks),
        "ZeRO-1": zero1(size, size, ranks),
        "ZeRO-2": zero2(size, size, ranks, micro_batches),
        "ZeRO-3": zero3(size - block_bytes, block_bytes, ranks, micro_batches),
        "tree all-reduce": tree_all_reduce(size, ranks),
    }
    for servers in sorted({1, max(1, ranks // 2), ranks}):
        traffic[f"parameter server, {servers}"] = parameter_server(size, ranks, servers)
    return traffic


def find_link(name: str) -> Link:
    """Returns the link with this name; raises UserError for an unknown name."""
    if name.lower() not in LINKS:
        hint = did_you_mean(name.lower(), LINKS) or f": there are {', '.join(LINKS)}"
        raise UserError(f'unknown link "{name}"{hint}')
    return LINKS[name.lower()]


def default_link(device: str, ranks: int = 1) -> str:
    """Returns the name of the usual link between devices of this name: the slowest that a ring of `ranks` uses.

    That is the one inside of a machine, and between machines of GPUS_OF_A_MACHINE a port of the network for each.
    """
    if device.startswith("cpu"):
        return "loopback"
    return NETWORK_LINK if ranks > GPUS_OF_A_MACHINE else DEFAULT_LINKS.get(device, "pcie4")


def fit_link(sizes: Sequence[int], seconds: Sequence[float], name: str = "measured") -> Link:
    """Returns the link whose alpha + n / beta is nearest to measured one-way times of messages: least relative squares.

    Relative, so that small messages (latency) weigh as much as large ones (bandwidth). Needs two sizes. If the times
    are so disturbed that longer messages appear faster, the longest message alone gives the bandwidth.
    """
    weighted = [(1 / t, n / t) for n, t in zip(sizes, seconds, strict=True)]  # x alpha + y / beta = 1
    xx, xy, yy = sum(x * x for x, _ in weighted), sum(x * y for x, y in weighted), sum(y * y for _, y in weighted)
    xs, ys = sum(x for x, _ in weighted), sum(y for _, y in weighted)
    determinant = xx * yy - xy * xy
    alpha, slope = (xs * yy - ys * xy) / determinant, (ys * xx - xs * xy) / determinant
    longest = max(zip(sizes, seconds, strict=True))
    return Link(name, max(alpha, 0.0), Bandwidth(1 / slope if slope > 0 else longest[0] / longest[1]))


def step_seconds(compute: float, communication: float, overlap: bool = False) -> float:
    """Returns the seconds of a step; with `overlap`, communication overlaps with the backward pass."""
    return compute + (max(0.0, communication - BACKWARD_SHARE * compute) if overlap else communication)


def first_bound_rank_count(
    traffic: Callable[[int], Traffic], compute: float, link: Link, max_ranks: int = 1 << 14
) -> int | None:
    """Returns the fewest ranks, a power of two, at which communication takes longer than computing; else None.

    compute: seconds of the whole batch on one rank. The batch is fixed, so each of p ranks computes for compute / p.
    """
    counts = (1 << k for k in range(1, max_ranks.bit_length()))
    return next((p for p in counts if traffic(p).seconds(link) > compute / p), None)


def required_bandwidth(traffic: Traffic, compute: float, latency: float) -> float:
    """Returns the bytes per second at which communication takes as long as computing; inf if none suffices."""
    remaining = compute - traffic.rounds * latency
    return traffic.path / remaining if remaining > 0 else math.inf


def describe_assumption(given: str | None, link: str, ranks: int) -> dict[str, Any]:
    """Returns whether a link is assumed, and the machines that it is assumed to connect; None: it is inside of one.

    Args:
        given: the link that the user has named; None: none.
        link: that is planned with.
        ranks: that it connects.
    """
    is_network = given is None and link == NETWORK_LINK
    return {"assumed": given is None, "machines": -(-ranks // GPUS_OF_A_MACHINE) if is_network else None}


def plan_communication(
    parameters: int, single_rank_seconds: float, accumulation: int, ranks: int, link: str, matrices: int | None = None
) -> dict[str, Any]:
    """Returns the plan's section on communication: traffic and time of a step by topology.

    Args:
        parameters: parameters of the model.
        single_rank_seconds: of the whole step on one rank, computing alone.
        accumulation: micro-batches per step of one rank.
        ranks: number of ranks.
        link: its name.
        matrices: parameters that belong to matrices of blocks (default: all).

    Gradients and parameters are float32. Raises UserError for an unknown link.
    """
    chosen_link, size = find_link(link), ITEM_BYTES * parameters
    block_bytes = None if matrices is None else ITEM_BYTES * matrices
    compute = single_rank_seconds / ranks
    by_topology = {}
    for topology, traffic in topology_traffic(size, ranks, accumulation, block_bytes).items() if ranks > 1 else ():
        seconds = traffic.seconds(chosen_link)
        overlapped = step_seconds(compute, seconds, overlap=True)
        by_topology[topology] = {
            "bytes_sent": max(traffic.sent),
            "bytes_received": max(traffic.received),
            "bytes_busiest_link": traffic.busiest_bytes,
            "bytes_total": sum(traffic.sent),
            "messages": traffic.messages,
            "rounds": traffic.rounds,
            "seconds": seconds,
            "share_of_step": seconds / step_seconds(compute, seconds),
            "share_of_step_overlapped": (overlapped - compute) / overlapped,
            "bottleneck": "network" if seconds > compute else "compute",
            "bandwidth_needed": required_bandwidth(traffic, compute, chosen_link.latency),
        }
    return {
        "estimate": True,
        "link": {"name": chosen_link.name, "latency": chosen_link.latency, "bandwidth": chosen_link.bandwidth.per_rank},
        "gradient_bytes": size,
        "compute_seconds": compute,
        "ring_bound_from_ranks": first_bound_rank_count(
            lambda p: ring_all_reduce(size, p), single_rank_seconds, chosen_link
        ),
        "topologies": by_topology,
    }
