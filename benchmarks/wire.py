"""The connection of one rank: messages over torch.distributed, whose bytes are counted twice.

Bytes are counted where this program sends them, and where the operating system carries them. The first is the payload.
The second is read from TCP_INFO of this process's own sockets (Linux): payload and the library's headers, also inside
the library's collectives. Sockets of other processes are not read, so other traffic does not change the count.
"""

from __future__ import annotations

import os
import socket
import struct
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor

HEADER = 48  # bytes that gloo sends before each message, and to announce that a side is ready
BYTES_RECEIVED, BYTES_SENT = 128, 200  # where Linux's struct tcp_info holds these (and, next, the retransmitted) as u64
TCP_INFO = 11


class GlooWire:
    """The `Wire` of `topologies.py` over a process group, which counts what it sends and receives."""

    def __init__(self) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.sent = self.received = self.messages = 0

    def exchange(self, outgoing: Tensor | None, to: int, incoming: Tensor | None, source: int) -> None:
        """Sends `outgoing` to rank `to` and fills `incoming` from rank `source`, both at once."""
        pending = []
        if incoming is not None:
            pending.append(dist.irecv(incoming, source))
            self.received += incoming.nbytes
        if outgoing is not None:
            pending.append(dist.isend(outgoing, to))
            self.sent += outgoing.nbytes
            self.messages += 1
        for work in pending:
            assert work is not None, "this rank belongs to the group"
            work.wait()

    def pop_counts(self) -> tuple[int, int, int]:
        """Returns the bytes sent, bytes received and messages sent since the last call."""
        counts = self.sent, self.received, self.messages
        self.sent = self.received = self.messages = 0
        return counts


def socket_bytes() -> tuple[int, int] | None:
    """Returns the bytes that this process's TCP sockets sent (without retransmissions) and received; None off Linux."""
    if not os.path.isdir("/proc/self/fd"):
        return None
    sent = received = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as copy:
                info = copy.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256)
        except OSError:  # not of TCP, or closed in between
            continue
        if len(info) < BYTES_SENT + 16:
            return None  # Linux before 4.19
        total_sent, retransmitted = struct.unpack_from("=QQ", info, BYTES_SENT)
        sent += total_sent - retransmitted
        received += struct.unpack_from("=Q", info, BYTES_RECEIVED)[0]
    return sent, received


def ping(wire: GlooWire, size: int) -> float:
    """Returns the seconds of one message of `size` bytes between ranks 0 and 1: half a round trip. 0 on other ranks."""
    if wire.rank > 1:
        return 0.0
    message = torch.zeros(size // 4)
    start = perf_counter()
    if wire.rank == 0:
        wire.exchange(message, 1, None, 1)
    wire.exchange(None, 1 - wire.rank, message, 1 - wire.rank)
    if wire.rank == 1:
        wire.exchange(message, 0, None, 0)
    return (perf_counter() - start) / 2


def shift_along_ring(wire: GlooWire, outgoing: Tensor, incoming: Tensor) -> None:
    """Sends a vector to the next rank and receives one from the previous rank, as one step of a ring does."""
    wire.exchange(outgoing, (wire.rank + 1) % wire.ranks, incoming, (wire.rank - 1) % wire.ranks)
