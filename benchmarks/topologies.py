"""Ring, tree and parameter server, message by message: the ways to sum a vector over ranks.

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
    """The port of one rank: it sends and receives at the same time, one message each way."""

    rank: int
    ranks: int

    def exchange(self, outgoing: Tensor | None, to: int, incoming: Tensor | None, source: int) -> None:
        """Sends `outgoing` to rank `to`, fills `incoming` from rank `source`, and waits for both; None: no message."""


def ring_reduce_scatter(wire: Wire, vector: Tensor) -> Tensor:
    """Sums chunk r over all ranks on rank r, and returns that chunk (n / p,). Other chunks are overwritten.

    p = 4, the chunks that rank 0 handles: each passes once around the ring and grows by one rank's share.

        step 0   sends its own chunk 3           receives 2 from rank 3 and adds its own
        step 1   sends 2, now two shares         receives 1, adds
        step 2   sends 1, now three shares       receives 0, adds: all four shares are in it
    """
    rank, ranks = wire.rank, wire.ranks
    chunks = vector.view(ranks, -1)  # (p, n / p)
    received = torch.empty_like(chunks[0])  # (n / p,)
    for step in range(ranks - 1):
        wire.exchange(chunks[(rank - step - 1) % ranks], (rank + 1) % ranks, received, (rank - 1) % ranks)
        chunks[(rank - step - 2) % ranks] += received
    return chunks[rank]


def ring_all_gather(wire: Wire, vector: Tensor) -> None:
    """Fills the vector (n,) with the chunks of all ranks: rank r has chunk r, and each chunk passes around the ring.

    In step k a rank passes on the chunk that it received in step k - 1, at first its own.
    """
    rank, ranks = wire.rank, wire.ranks
    chunks = vector.view(ranks, -1)  # (p, n / p)
    for step in range(ranks - 1):
        outgoing, incoming = chunks[(rank - step) % ranks], chunks[(rank - step - 1) % ranks]
        wire.exchange(outgoing, (rank + 1) % ranks, incoming, (rank - 1) % ranks)


def ring_all_reduce(wire: Wire, vector: Tensor) -> None:
    """Sums by two passes around the ring: every rank sends 2 (p-1)/p n, the least possible.

    Between the passes each rank owns one summed chunk: ZeRO-1 and ZeRO-2 put the optimizer's step there.
    """
    ring_reduce_scatter(wire, vector)
    ring_all_gather(wire, vector)


def tree_all_reduce(wire: Wire, vector: Tensor) -> None:
    """Sums up a binomial tree to rank 0, then sends the sum down: few rounds, but whole vectors.

    A rank's parent is its number without the lowest set bit. p = 8:

        0 -+- 1                 up, round 0: 1 to 0, 3 to 2, 5 to 4, 7 to 6
           +- 2 --- 3           up, round 1: 2 to 0, 6 to 4
           +- 4 -+- 5           up, round 2: 4 to 0, which now has all eight
                 +- 6 --- 7     down: the same edges, the last round first
    """
    rank, children = wire.rank, tree_children(wire.rank, wire.ranks)
    parent = rank & (rank - 1)
    received = torch.empty_like(vector)  # (n,)
    for child in children:  # the nearest child has the smallest subtree, so it is ready first
        wire.exchange(None, child, received, child)
        vector += received
    if rank > 0:
        wire.exchange(vector, parent, None, parent)
        wire.exchange(None, parent, vector, parent)
    for child in reversed(children):  # the farthest child has the most to pass on
        wire.exchange(vector, child, None, child)


def parameter_server(wire: Wire, vector: Tensor, servers: int = 1) -> None:
    """Sends every chunk to its server, which adds them, and fetches the sums. Ranks 0 ... s-1 are servers and clients.

    In round k rank r sends to rank r + k, so that a server receives from one rank at a time. A single server receives
    p-1 whole vectors; each of s servers receives 1/s of that.
    """
    rank, ranks = wire.rank, wire.ranks
    chunks = vector.view(servers, -1)  # (s, n / s); chunk i is summed on rank i
    is_server = rank < servers
    received = torch.empty_like(chunks[0]) if is_server else None  # (n / s,)
    for step in range(1, ranks):  # push
        server, client = (rank + step) % ranks, (rank - step) % ranks
        wire.exchange(chunks[server] if server < servers else None, server, received, client)
        if is_server:
            assert received is not None
            chunks[rank] += received
    for step in range(1, ranks):  # pull
        client, server = (rank + step) % ranks, (rank - step) % ranks
        incoming = chunks[server] if server < servers else None
        wire.exchange(chunks[rank] if is_server else None, client, incoming, server)
