"""Ring, tree and parameter server written out message by message: how ranks agree on a sum.

Every topology is rounds of `wire.exchange`: send one slice to a rank while receiving another from a rank. Each function
changes `vector` in place, from this rank's gradients to the sum over all ranks, and every rank calls it at the same
time. Costs are in `fledgling/plan/communication.py`, in the same order; diagrams are in docs/communication.md.
Processes and sockets are in `ranks.py`; pipelining and several rings at once, as libraries do, are left out.

n values in a vector, p ranks, s servers. Vectors are padded by the caller, so that p (or s) divides n.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fledgling.plan.communication import tree_children


class Wire(Protocol):
    """One rank's port: it sends and receives at the same time, one message each way."""

    rank: int
    ranks: int

    def exchange(self, outgoing: Tensor | None, to: int, incoming: Tensor | None, source: int) -> None:
        """Send `outgoing` to rank `to` and fill `incoming` from rank `source`; None: not this way; ends when done."""


def ring_reduce_scatter(wire: Wire, vector: Tensor) -> Tensor:
    """Leave in rank r's chunk r the sum over all ranks, and return that chunk (n / p,); the rest is spent.

    p = 4, the chunks that rank 0 handles: each passes once around the ring and grows by one rank's share.

        step 0   sends its own chunk 3           receives 2 from rank 3 and adds its own
        step 1   sends 2, now two shares         receives 1, adds
        step 2   sends 1, now three shares       receives 0, adds: all four shares are in it
    """
    rank, ranks = wire.rank, wire.ranks
    chunks = vector.view(ranks, -1)  # (p, n / p)
    arrived = torch.empty_like(chunks[0])  # (n / p,)
    for step in range(ranks - 1):
        wire.exchange(chunks[(rank - step - 1) % ranks], (rank + 1) % ranks, arrived, (rank - 1) % ranks)
        chunks[(rank - step - 2) % ranks] += arrived
    return chunks[rank]


def ring_all_gather(wire: Wire, vector: Tensor) -> None:
    """Fill the vector (n,) from the chunks that ranks hold: rank r brings chunk r, and each chunk goes once around.

    In step k a rank passes on the chunk that it received in step k - 1, at first its own.
    """
    rank, ranks = wire.rank, wire.ranks
    chunks = vector.view(ranks, -1)  # (p, n / p)
    for step in range(ranks - 1):
        outgoing, incoming = chunks[(rank - step) % ranks], chunks[(rank - step - 1) % ranks]
        wire.exchange(outgoing, (rank + 1) % ranks, incoming, (rank - 1) % ranks)


def ring_all_reduce(wire: Wire, vector: Tensor) -> None:
    """Sum by two turns around the ring: 2 (p-1)/p n sent by every rank, which is the least possible.

    Between the turns each rank owns one summed chunk: ZeRO-1 and ZeRO-2 put the optimizer's step there.
    """
    ring_reduce_scatter(wire, vector)
    ring_all_gather(wire, vector)


def tree_all_reduce(wire: Wire, vector: Tensor) -> None:
    """Sum up a binomial tree to rank 0, then send the sum down: few rounds, but whole vectors.

    A rank's parent is its number without the lowest set bit. p = 8:

        0 -+- 1                 up, round 0: 1 to 0, 3 to 2, 5 to 4, 7 to 6
           +- 2 --- 3           up, round 1: 2 to 0, 6 to 4
           +- 4 -+- 5           up, round 2: 4 to 0, which now has all eight
                 +- 6 --- 7     down: the same edges, the last round first
    """
    rank, below = wire.rank, tree_children(wire.rank, wire.ranks)
    parent = rank & (rank - 1)
    arrived = torch.empty_like(vector)  # (n,)
    for child in below:  # the nearest child has the smallest subtree: it is ready first
        wire.exchange(None, child, arrived, child)
        vector += arrived
    if rank > 0:
        wire.exchange(vector, parent, None, parent)
        wire.exchange(None, parent, vector, parent)
    for child in reversed(below):  # the farthest child has the most to pass on
        wire.exchange(vector, child, None, child)


def parameter_server(wire: Wire, vector: Tensor, servers: int = 1) -> None:
    """Push every chunk to its server, which adds up; pull the sums back. Ranks 0 ... s-1 serve, and work too.

    In round k rank r turns to rank r + k, so that a server hears one rank at a time and is never asked twice
    at once. One server takes in p-1 whole vectors; s of them take in a share of 1/s each.
    """
    rank, ranks = wire.rank, wire.ranks
    chunks = vector.view(servers, -1)  # (s, n / s); chunk i lives on rank i
    serves = rank < servers
    arrived = torch.empty_like(chunks[0]) if serves else None  # (n / s,)
    for step in range(1, ranks):  # push
        server, client = (rank + step) % ranks, (rank - step) % ranks
        wire.exchange(chunks[server] if server < servers else None, server, arrived, client)
        if serves:
            chunks[rank] += arrived
    for step in range(1, ranks):  # pull
        client, server = (rank + step) % ranks, (rank - step) % ranks
        incoming = chunks[server] if server < servers else None
        wire.exchange(chunks[rank] if serves else None, client, incoming, server)
